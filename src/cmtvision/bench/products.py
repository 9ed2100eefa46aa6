"""Matrix products and memory, by every library that is installed: what a machine's limits are measured with.

A library is faster than another on one processor and slower on the next (oneDNN beats MKL on AMD's), and small matrices
that stay in the caches may beat large ones, so none is the limit by itself:

    torch.mm              MKL or oneDNN, on a GPU cuBLAS; int8: torch._int_mm
    oneDNN linear         weights packed beforehand, as the fused network and torch.compile use it
    PyTorch conv KxK      channels-last maps without padding; on a GPU cuDNN, which takes TF32 for float32 by default
    OpenVINO              a chain of products, so that types are converted at its ends only
    ONNX Runtime          one product

Every weight is constant, as in a network. A convolution counts as the product that it is: (B H' W', C k k) by
(C k k, D).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F

from cmtvision.artefact.runtimes.onnx import import_onnxruntime
from cmtvision.artefact.runtimes.openvino import arithmetic_settings, capabilities, import_openvino, openvino_core
from cmtvision.errors import ConfigError
from cmtvision.models.accelerate.fusing.fused_layers import can_pack

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8}
Step: TypeAlias = Callable[[], Any]
Shape: TypeAlias = tuple[int, int, int]  # (M, K, N): matrices (M, K) times (K, N)
_CHAIN = 4  # products of OpenVINO's graph


@dataclass(frozen=True)
class Sizes:
    """What is multiplied and moved.

    Attributes:
        products: (M, K, N) each, the smallest first.
        graphs: the same for runtimes that compile a graph, of which each takes a while.
        maps: convolutions: (B, C, side, D, k) of a map (B, C, side, side) and weights (D, C, k, k).
        memory: bytes of an array larger than the caches.
        caches: bytes of arrays that fit into them.
    """

    products: Sequence[Shape]
    graphs: Sequence[Shape]
    maps: Sequence[tuple[int, int, int, int, int]]
    memory: int = 256 * 2**20
    caches: Sequence[int] = (2**17, 2**19, 2**21, 2**23)


_CPU = Sizes(
    products=[(196, 256, 1024), (512, 512, 512), (1568, 256, 1024), (1024, 1024, 1024), (2048, 2048, 2048)],
    graphs=[(196, 256, 1024), (512, 512, 512), (1024, 1024, 1024)],
    maps=[(1, 256, 28, 256, 1), (1, 512, 16, 512, 3)],
)
_GPU = Sizes(
    products=[(4096, 4096, 4096), (16384, 2048, 8192), (8192, 8192, 8192)],
    graphs=[],
    maps=[(64, 512, 28, 2048, 1), (64, 512, 30, 512, 3)],
    caches=(2**22, 2**24),
)


def sizes_for(device: str) -> Sizes:
    """The sizes that are tried on a device: 'cpu', 'cuda:1', 'mps' ..."""
    return _GPU if device.startswith("cuda") else _CPU


@dataclass(frozen=True)
class Candidate:
    """A way to reach a limit.

    Attributes:
        kind: 'fp32' and so on; 'copy' for memory, 'cache' for caches.
        library: what computes.
        shape: (M, K, N), or the bytes of an array.
        work: FLOPs of a pass, or the bytes that it moves.
        open: allocates and compiles; gives the function that runs one pass.
    """

    kind: str
    library: str
    shape: tuple[int, ...]
    work: int
    open: Callable[[], Step] = field(compare=False)

    @property
    def name(self) -> str:
        """Such as 'fp32 oneDNN linear 512x512x512'; ``parse`` reads it."""
        return f"{self.kind} {self.library} {'x'.join(map(str, self.shape))}"


def parse(name: str) -> tuple[str, str, list[int]]:
    """Kind, library and shape of a candidate's name."""
    kind, _, rest = name.partition(" ")
    library, _, shape = rest.rpartition(" ")
    return kind, library, [int(edge) for edge in shape.split("x")]


def candidates(kind: str, device: str, sizes: Sizes) -> Iterator[Candidate]:
    """All ways to a limit, those of one library together, the smallest first."""
    if kind in ("copy", "cache"):
        for size in (sizes.memory,) if kind == "copy" else sizes.caches:
            yield Candidate(kind, "copy", (size,), 2 * size, partial(_copy, size, device))
            yield Candidate(kind, "read", (size,), size, partial(_read, size, device))
        return
    libraries: list[tuple[str, Callable[[str, Shape, str], Step], int]] = [("torch.mm", _torch, 1)]
    if device == "cpu":
        libraries.append(("oneDNN linear", _onednn, 1))
    for library, build, count in libraries:
        yield from (_product(kind, library, build, shape, count, device) for shape in sizes.products)
    if kind != "int8":
        for map_shape in sizes.maps:
            yield _convolution(kind, map_shape, device)
    if device == "cpu":
        for library, build, count in (("ONNX Runtime", _onnxruntime, 1), ("OpenVINO", _openvino, _CHAIN)):
            yield from (_product(kind, library, build, shape, count, device) for shape in sizes.graphs)


def _product(
    kind: str, library: str, build: Callable[[str, Shape, str], Step], shape: Shape, count: int, device: str
) -> Candidate:
    return Candidate(kind, library, shape, 2 * count * math.prod(shape), lambda: build(kind, shape, device))


def _convolution(kind: str, shape: tuple[int, int, int, int, int], device: str) -> Candidate:
    B, C, side, out, k = shape
    product = (B * (side - k + 1) ** 2, C * k * k, out)

    def build() -> Step:
        dtype = DTYPES[kind]
        x, weight = (
            torch.randn(*edges, device=device).to(dtype).contiguous(memory_format=torch.channels_last)
            for edges in ((B, C, side, side), (out, C, k, k))
        )
        if can_pack(x.device, dtype):
            packed = torch.ops.mkldnn._reorder_convolution_weight(weight, [0, 0], [1, 1], [1, 1], 1)
            conv = torch.ops.mkldnn._convolution_pointwise
            return lambda: conv(x, packed, None, [0, 0], [1, 1], [1, 1], 1, "none", [], "")
        return lambda: F.conv2d(x, weight)

    return Candidate(kind, f"PyTorch conv {k}x{k}", product, 2 * math.prod(product), build)


def _torch(kind: str, shape: Shape, device: str) -> Step:
    m, k, n = shape
    if kind == "int8":
        first, second = (torch.randint(-100, 100, edges, dtype=torch.int8, device=device) for edges in ((m, k), (k, n)))
        return lambda: torch._int_mm(first, second)
    a, b = (torch.randn(*edges, device=device).to(DTYPES[kind]) for edges in ((m, k), (k, n)))
    out = torch.empty(m, n, dtype=DTYPES[kind], device=device)
    return lambda: torch.mm(a, b, out=out)


def _onednn(kind: str, shape: Shape, device: str) -> Step:
    """Raises RuntimeError where this PyTorch or processor lacks it."""
    m, k, n = shape
    if kind == "int8":
        x = torch.randint(0, 255, (m, k), dtype=torch.uint8)
        weight = torch.randint(-127, 127, (n, k), dtype=torch.int8)
        packed = torch.ops.onednn.qlinear_prepack(weight, None)
        scales, zeros = torch.full((n,), 0.01), torch.zeros(n, dtype=torch.int32)
        linear = torch.ops.onednn.qlinear_pointwise
        return lambda: linear(x, 0.01, 0, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], "")
    if not can_pack(torch.device(device), DTYPES[kind]):
        raise RuntimeError(f"oneDNN has no packed product in {kind} here")
    a, weight = (torch.randn(*edges).to(DTYPES[kind]) for edges in ((m, k), (n, k)))
    packed = torch.ops.mkldnn._reorder_linear_weight(weight)
    return lambda: torch.ops.mkldnn._linear_pointwise(a, packed, None, "none", [], "")


def _onnxruntime(kind: str, shape: Shape, device: str) -> Step:
    """Raises ConfigError, ImportError: it is not installed. RuntimeError: it has no such product on a processor."""
    onnxruntime = import_onnxruntime()
    from onnx import TensorProto, helper, numpy_helper

    if kind not in ("fp32", "int8"):
        raise RuntimeError(f"ONNX Runtime multiplies no {kind} on a processor")
    m, k, n = shape
    rng = np.random.default_rng(0)
    int8 = kind == "int8"
    weight = rng.integers(-127, 127, (k, n), np.int8) if int8 else rng.standard_normal((k, n), np.float32)
    x = rng.integers(0, 255, (m, k), np.uint8) if int8 else rng.standard_normal((m, k), np.float32)
    takes, gives = (TensorProto.UINT8, TensorProto.INT32) if int8 else (TensorProto.FLOAT, TensorProto.FLOAT)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger" if int8 else "MatMul", ["x", "weight"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", takes, [m, k])],
        [helper.make_tensor_value_info("y", gives, [m, n])],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": x})


def _openvino(kind: str, shape: Shape, device: str) -> Step:
    """Raises ConfigError: it is not installed, or has no such arithmetic here. int8 is quantised as NNCF does it."""
    openvino = import_openvino()
    if kind not in capabilities(openvino_core(), "CPU"):  # it would take another one without a word
        raise ConfigError(f"OpenVINO: no {kind} arithmetic on this processor")
    ops = openvino.opset13
    m, k, n = shape
    rng = np.random.default_rng(0)
    x = out = ops.parameter([m, k], np.float32)
    for number in range(_CHAIN):
        outer, inner = (n, k) if number % 2 == 0 else (k, n)
        if kind == "int8":
            low, high = ops.constant(np.float32(-3)), ops.constant(np.float32(3))
            out = ops.fake_quantize(out, low, high, low, high, 256)
            whole = ops.constant(rng.integers(-127, 127, (outer, inner), np.int8))
            weight = ops.multiply(ops.convert(whole, np.float32), ops.constant(np.float32(1 / 64 / inner**0.5)))
        else:
            weight = ops.constant(rng.standard_normal((outer, inner), np.float32) / np.float32(inner**0.5))
        out = ops.matmul(out, weight, False, True)
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        **arithmetic_settings(kind, kind),
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    request = openvino_core().compile_model(openvino.Model([out], [x]), "CPU", settings).create_infer_request()
    images = rng.standard_normal((m, k), np.float32)
    return lambda: request.infer({0: images}, share_inputs=True)


def _copy(num_bytes: int, device: str) -> Step:
    a = torch.ones(num_bytes // 4, device=device)
    b = torch.zeros_like(a)
    return lambda: b.copy_(a)


def _read(num_bytes: int, device: str) -> Step:
    """A sum: a network reads its weights and does not write them."""
    return torch.ones(num_bytes // 4, device=device).sum
