"""ONNX Runtime: opens model.onnx on the processor, or on a GPU where the CUDA build of it is installed."""

from pathlib import Path
from typing import Any

from cmtvision.artefact.card import Card
from cmtvision.artefact.runtimes.base import Batch, Logits, arithmetic_of, check_shapes
from cmtvision.errors import CheckpointError, ConfigError, first_line
from cmtvision.machine import default_threads

CUDA_PROVIDER = "CUDAExecutionProvider"
"""ONNX Runtime's name for NVIDIA's GPUs."""
EXACT_INT8 = ("session.x64quantprecision", "1")
"""On a processor without VNNI the fastest 8-bit products saturate at 16 bits, and a model decides otherwise there."""


class OnnxRuntime:
    """See ``Runtime`` and ``open_runtime``.

    Attributes:
        session: ONNX Runtime's own.
    """

    name = "onnx"

    def __init__(self, folder: Path, card: Card, device: str, threads: int | None) -> None:
        assert card.export is not None
        path = folder / card.export.file
        self.session, self.device = open_session(path, device, threads)
        self.precision: str = card.export.precision
        # in a bf16 file the weights alone are bf16; the CPU's kernels of fp16 files convert to fp32 and back
        self.arithmetic = arithmetic_of(self.precision, ("int8",) if self.device == "cpu" else ("int8", "fp16"))
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1:
            raise CheckpointError(f"{path}: {len(inputs)} inputs and {len(outputs)} outputs, expected one of each")
        check_shapes(path, card, tuple(inputs[0].shape[1:]), tuple(outputs[0].shape[1:]))
        self._input, self._output = inputs[0].name, outputs[0].name

    def __call__(self, batch: Batch) -> Logits:
        """Logits (B, classes) of a batch."""
        (logits,) = self.session.run([self._output], {self._input: batch})
        found: Logits = logits
        return found


def open_session(path: Path, device: str = "auto", threads: int | None = None) -> tuple[Any, str]:
    """ONNX Runtime's session of a file, and the device that it runs on; arguments as for ``open_runtime``.

    Raises:
        CheckpointError: a file that it cannot open.
        ConfigError: it is not installed, or the device is not there.
    """
    onnxruntime = import_onnxruntime(str(path.parent))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads or default_threads()
    options.inter_op_num_threads = 1  # the graph is a chain: nothing to run side by side
    options.enable_cpu_mem_arena = False  # it only grows: 350 MB held after a batch of 16 that needs 180, no faster
    options.add_session_config_entry(*EXACT_INT8)
    options.log_severity_level = 3
    cuda = _wants_cuda(device, onnxruntime.get_available_providers())
    number = int(device.partition(":")[2] or 0)
    providers: list[Any] = [(CUDA_PROVIDER, {"device_id": number})] if cuda else []
    try:
        session = onnxruntime.InferenceSession(path, options, [*providers, "CPUExecutionProvider"])
    except Exception as error:  # each kind of fault has a class of its own, and all derive from Exception only
        raise CheckpointError(f"{path}: ONNX Runtime cannot open it ({first_line(error)})") from error
    if cuda and device != "auto" and CUDA_PROVIDER not in session.get_providers():
        raise ConfigError(f"device {device!r}: ONNX Runtime cannot start its CUDA provider; install CUDA, or use cpu")
    return session, f"cuda:{number}" if CUDA_PROVIDER in session.get_providers() else "cpu"


def import_onnxruntime(who: str = "an ONNX model") -> Any:
    """The package. Raises ConfigError where it is not installed, with who needs it."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError(f"{who}: needs onnxruntime: pip install 'cmtvision[onnx]'") from error
    return onnxruntime


def _wants_cuda(device: str, providers: list[str]) -> bool:
    if device == "auto":
        return CUDA_PROVIDER in providers
    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise ConfigError(f"device {device!r}: an ONNX model runs on cpu or cuda")
    if device != "cpu" and CUDA_PROVIDER not in providers:
        raise ConfigError(f"device {device!r}: this ONNX Runtime has no CUDA; use cpu, or pip install onnxruntime-gpu")
    return device != "cpu"
