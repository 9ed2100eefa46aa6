"""Static 8-bit networks for ONNX Runtime: QuantizeLinear and DequantizeLinear around each layer, weights per channel.

Convolutions and matrix products are quantised, with uint8 activations and int8 weights; additions, norms and activation
functions stay fp32. Ranges are collected once, so a network with other layers in 8 bits is a matter of a second.
"""

import copy
import json
import logging
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cmtvision.artefact.runtimes.onnx import EXACT_INT8, import_onnxruntime
from cmtvision.deploy.exporting.onnx_file import ONNX_FILE, require_onnx
from cmtvision.deploy.quantizing.calibration import Forward
from cmtvision.deploy.quantizing.half import fits_float16
from cmtvision.deploy.quantizing.profile import attribute
from cmtvision.deploy.quantizing.quantized import Kind, Layer, Rest
from cmtvision.errors import ConfigError, ExportError, first_line
from cmtvision.machine import default_threads

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

_TYPES = ["Conv", "MatMul", "Gemm"]
_STORED_FP16 = 1024  # numbers: larger tensors that stay floating point are stored as float16
_PROFILED = 12


class OnnxQuantizer:
    """See ``Backend`` in search.py.

    Args:
        folder: of the fp32 graph, model.onnx.
        rest: 'fp32', the only precision that ONNX Runtime computes in on a CPU besides 8 bits.

    Raises:
        ConfigError: packages that are missing, or another rest.
    """

    name = "onnx"

    def __init__(self, folder: Path, rest: Rest) -> None:
        check_onnx(rest)
        onnx = require_onnx()
        self.rest: Rest = rest
        path = folder / ONNX_FILE
        with _quiet():
            from onnxruntime.quantization.shape_inference import quant_pre_process

            try:
                quant_pre_process(str(path), str(folder / "prepared.onnx"), skip_symbolic_shape=True)
            except Exception as error:  # whatever shape inference and the optimiser meet
                raise ExportError(f"onnx: the graph cannot be prepared for 8 bits: {first_line(error)}") from error
        self._path = folder / "prepared.onnx"
        self._original = onnx.load(str(path))
        self._prepared = onnx.load(str(self._path))
        self._ranges: Any = None
        self.layers: list[Layer] = []

    def calibrate(self, images: Iterable[npt.NDArray[np.float32]]) -> None:
        """Collect ranges from inputs (B, C, H, W) and find the layers."""
        from onnxruntime.quantization import CalibrationMethod
        from onnxruntime.quantization.calibrate import create_calibrator

        name = self._prepared.graph.input[0].name
        with _quiet(), tempfile.TemporaryDirectory() as folder:
            calibrator = create_calibrator(
                self._path,
                _TYPES,
                augmented_model_path=str(Path(folder) / "augmented.onnx"),
                calibrate_method=CalibrationMethod.MinMax,
            )
            for batch in images:
                calibrator.collect_data(_Reader(name, batch))
            self._ranges = calibrator.compute_data()
        shapes = {weight.name: tuple(weight.dims) for weight in self._prepared.graph.initializer}
        self.layers = [_layer(node, shapes) for node in self._prepared.graph.node if node.op_type in _TYPES]

    def reference(self) -> "ModelProto":
        """The fp32 graph."""
        return self._original

    def built(self, int8: frozenset[str]) -> "ModelProto":
        """The graph as it ships with these layers in 8 bits."""
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        kept = [layer.name for layer in self.layers if layer.name not in int8]
        with _quiet():
            quantizer = QDQQuantizer(
                copy.deepcopy(self._prepared),
                True,  # weights per channel
                False,  # all 8 bits of them
                QuantType.QInt8,
                QuantType.QUInt8,
                self._ranges,
                [],
                kept,
                _TYPES,
                {},
            )
            quantizer.quantize_model()
        model: ModelProto = quantizer.model.model
        return model

    def simulated(self, int8: frozenset[str]) -> "ModelProto":
        """The same as ``built``."""
        return self.built(int8)

    def open(self, model: "ModelProto", rest: Rest | None = None, batch: int = 16) -> Forward:
        """Start a session; any batch size."""
        del rest, batch
        session = _session(model)
        name = session.get_inputs()[0].name

        def forward(images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
            logits: npt.NDArray[np.float32] = session.run(None, {name: np.ascontiguousarray(images)})[0]
            return logits

        return forward

    def times(self, model: "ModelProto", images: npt.NDArray[np.float32]) -> dict[str, float]:
        """Milliseconds of each layer, by ONNX Runtime's own profile: the least of several runs."""
        with tempfile.TemporaryDirectory() as folder:
            session = _session(model, profile=str(Path(folder) / "profile"))
            for _ in range(_PROFILED):
                session.run(None, {session.get_inputs()[0].name: images})
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        least: dict[str, float] = {}
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                name, ms = event["name"].removesuffix("_kernel_time"), event["dur"] / 1000
                least[name] = min(ms, least.get(name, ms))
        # the optimiser names a node after the one it was made of, or after its output, with something after it
        owners = {layer.name: layer.name for layer in self.layers}
        owners |= {node.output[0]: node.name for node in self._prepared.graph.node if node.name in owners}
        return attribute([(_made_of(name, owners), ms) for name, ms in least.items()], set(owners.values()))

    def save(self, model: "ModelProto", folder: Path) -> list[str]:
        """Write model.onnx; large tensors that stay floating point are stored as float16, scales are not.

        Returns its name.
        """
        model = copy.deepcopy(model)
        scales = _scales(model)
        _store(model, lambda name, values: None if name in scales else _as_float16(name, values))
        for part in (model.graph, *model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer):
            part.doc_string = ""
            del part.metadata_props[:]
        del model.graph.value_info[:]
        _shorten(model, {layer.name for layer in self.layers})
        (folder / ONNX_FILE).write_bytes(model.SerializeToString())
        return [ONNX_FILE]

    def read(self, folder: Path) -> "ModelProto":
        """What ``save`` wrote."""
        return require_onnx().load(str(folder / ONNX_FILE))

    def weight_only(self) -> "ModelProto":
        """The graph with weights in symmetric int8, a scale per channel; it computes in fp32.

        A Cast and a Mul bring them back, which ONNX Runtime does once, when it loads the file; a DequantizeLinear
        would be computed again for every batch.
        """
        model = copy.deepcopy(self._original)
        axes = {}
        for node in model.graph.node:
            if node.op_type in _TYPES:
                transposed = any(one.name == "transB" and one.i for one in node.attribute)
                axes[node.input[1]] = 0 if node.op_type == "Conv" or transposed else -1
        _store(model, lambda name, values: _as_int8(name, values, axes[name]) if name in axes else None)
        return model


def check_onnx(rest: Rest) -> None:
    """Raises ConfigError for packages that are missing, or a rest that ONNX Runtime does not compute in."""
    if rest != "fp32":
        raise ConfigError(f"rest {rest}: ONNX Runtime computes in fp32 on a processor; use fp32, or openvino")
    require_onnx("quantising for ONNX")
    import_onnxruntime("quantising for ONNX")


class _Reader:
    """One batch, as ONNX Runtime's calibrators read them."""

    def __init__(self, name: str, batch: npt.NDArray[np.float32]) -> None:
        self._left: list[dict[str, Any]] = [{name: batch}]

    def get_next(self) -> dict[str, Any] | None:
        """The batch, then None."""
        return self._left.pop() if self._left else None


def _layer(node: "NodeProto", shapes: dict[str, tuple[int, ...]]) -> Layer:
    kind: Kind
    shape = shapes.get(node.input[1], ())
    if not shape:
        return Layer(node.name, "attention", "attention", 0)
    weights = int(np.prod(shape))
    if node.op_type != "Conv":
        transposed = any(one.name == "transB" and one.i for one in node.attribute)
        rows, columns = shape[-2:][::-1] if transposed else shape[-2:]
        return Layer(node.name, "linear", f"linear {rows} to {columns}", weights)
    kernel = f"{shape[-2]}x{shape[-1]}"
    if any(one.name == "group" and one.i > 1 for one in node.attribute):
        return Layer(node.name, "depthwise conv", f"depthwise conv {shape[0]}, {kernel}", weights)
    kind = "1x1 conv" if kernel == "1x1" else "conv"
    size = "" if kind == "1x1 conv" else f", {kernel}"
    return Layer(node.name, kind, f"{kind} {shape[1]} to {shape[0]}{size}", weights)


def _made_of(node: str, owners: dict[str, str]) -> list[str]:
    """The layer that a node of the optimised graph was made of, as its name says; none or one."""
    fits = [name for name in owners if node == name or node.startswith((f"{name}_", f"{name}/"))]
    return [owners[max(fits, key=len)]] if fits else []


def _session(model: "ModelProto", profile: str | None = None) -> Any:
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = default_threads()
    options.inter_op_num_threads = 1
    options.add_session_config_entry(*EXACT_INT8)
    options.log_severity_level = 3
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _store(model: "ModelProto", change: Any) -> None:
    """Replace float32 tensors by ``change(name, values)``: None, or (new tensors, nodes that give back the old)."""
    from onnx import TensorProto, numpy_helper

    kept: list[Any] = []
    added: list[Any] = []
    for tensor in model.graph.initializer:
        made = None
        if tensor.data_type == TensorProto.FLOAT:
            made = change(tensor.name, numpy_helper.to_array(tensor))
        kept.extend([tensor] if made is None else made[0])
        added.extend([] if made is None else made[1])
    tensors = [type(one).FromString(one.SerializeToString()) for one in kept]
    nodes = [type(one).FromString(one.SerializeToString()) for one in (*added, *model.graph.node)]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(tensors)
    model.graph.node.extend(nodes)


def _shorten(model: "ModelProto", layers: set[str]) -> None:
    """Give tensors numbers for names, and only layers a name: of a small network's file, names are a tenth."""
    graph = model.graph
    ends = {value.name for value in (*graph.input, *graph.output)} | {""}
    short: dict[str, str] = {}

    def renamed(name: str) -> str:
        return name if name in ends else short.setdefault(name, f"{len(short):x}")

    for tensor in graph.initializer:
        tensor.name = renamed(tensor.name)
    for node in graph.node:
        node.input[:] = [renamed(name) for name in node.input]
        node.output[:] = [renamed(name) for name in node.output]
        if node.name not in layers:
            node.name = ""


def _scales(model: "ModelProto") -> set[str]:
    """Names of what 8-bit numbers are multiplied by."""
    nodes = model.graph.node
    scales = {node.input[1] for node in nodes if node.op_type in ("QuantizeLinear", "DequantizeLinear")}
    steps = {node.output[0] for node in nodes if node.op_type == "Cast"}  # weights alone in 8 bits: a Cast and a Mul
    return scales | {node.input[1] for node in nodes if node.op_type == "Mul" and node.input[0] in steps}


def _as_float16(name: str, values: npt.NDArray[np.float32]) -> tuple[list[Any], list[Any]] | None:
    from onnx import TensorProto, helper, numpy_helper

    if values.size < _STORED_FP16 or not fits_float16(values):
        return None
    stored = numpy_helper.from_array(values.astype(np.float16), f"{name}.fp16")
    return [stored], [helper.make_node("Cast", [stored.name], [name], name=f"{name}.cast", to=TensorProto.FLOAT)]


def _as_int8(name: str, values: npt.NDArray[np.float32], axis: int) -> tuple[list[Any], list[Any]] | None:
    from onnx import TensorProto, helper, numpy_helper

    others = tuple(i for i in range(values.ndim) if i != axis % values.ndim)
    largest = np.abs(values).max(axis=others, keepdims=True)
    scale = (np.where(largest > 0, largest, 1) / 127).astype(np.float32)
    rounded = np.round(values / scale).astype(np.int8)
    tensors = [numpy_helper.from_array(rounded, f"{name}.int8"), numpy_helper.from_array(scale, f"{name}.scale")]
    cast = helper.make_node("Cast", [f"{name}.int8"], [f"{name}.steps"], name=f"{name}.cast", to=TensorProto.FLOAT)
    scaled = helper.make_node("Mul", [f"{name}.steps", f"{name}.scale"], [name], name=f"{name}.mul")
    return tensors, [cast, scaled]


@contextmanager
def _quiet() -> Iterator[None]:
    """ONNX Runtime's quantiser remarks on every tensor and advises steps that were taken, via the root logger."""
    import warnings

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations between its own packages, which no caller can change
            yield
    finally:
        logging.disable(before)
