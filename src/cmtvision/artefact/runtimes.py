"""The runtimes behind one interface: PyTorch, .pt2, ONNX Runtime and OpenVINO take a batch and give logits.

A .pt2 file is a program: a compiled package is native code, and even a graph is rebuilt by evaluating expressions that
stand in it. Open only .pt2 files that you trust. The other kinds are data.
"""

import logging
import sys
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from cmtvision.artefact.card import CARD_FILE, Card
from cmtvision.errors import CheckpointError, ConfigError

Batch: TypeAlias = npt.NDArray[np.float32] | npt.NDArray[np.uint8]
Logits: TypeAlias = npt.NDArray[np.float32]
CUDA_PROVIDER = "CUDAExecutionProvider"
"""ONNX Runtime's name for NVIDIA's GPUs."""
_log = logging.getLogger(__name__)


class Runtime(Protocol):
    """Something that computes logits.

    Attributes:
        name: 'torch', 'onnx' or 'openvino'.
        precision: that the model's file was made for: 'fp32', 'bf16', 'int8' ...
        arithmetic: what it computes in here. A processor without fp16 or bf16 computes such a model in 'fp32'.
        device: where it computes: 'cpu', 'cuda:0' ...
    """

    name: str
    precision: str
    arithmetic: str
    device: str

    def __call__(self, batch: Batch) -> Logits:
        """Logits (B, classes) float32 of a batch of any size.

        Args:
            batch: preprocessed images (B, C, H, W) float32; pixels (B, H, W, C) uint8 where scale and normalisation
                are in the graph.
        """


class Checked:
    """A runtime that refuses a batch of another shape than its model's, and logits that are not its classes'."""

    def __init__(self, runtime: Runtime, card: Card) -> None:
        self.name, self.precision, self.device = runtime.name, runtime.precision, runtime.device
        self.arithmetic = runtime.arithmetic
        self.runtime = runtime
        self._shape, self._dtype = input_of(card)
        self._classes = len(card.classes)

    def __call__(self, batch: Batch) -> Logits:
        """See ``Runtime``. Raises ConfigError for a batch of another shape or type."""
        if batch.shape[1:] != self._shape or batch.dtype != self._dtype:
            expected = f"(B, {', '.join(map(str, self._shape))}) {self._dtype}"
            raise ConfigError(f"{self.name} model: a batch of {batch.shape} {batch.dtype}, expected {expected}")
        if not len(batch):
            return np.zeros((0, self._classes), np.float32)
        logits = self.runtime(batch if batch.flags.c_contiguous else batch.copy())
        if logits.shape != (len(batch), self._classes):
            raise CheckpointError(
                f"{self.name} model: logits of shape {logits.shape} for {len(batch)} images and {self._classes} "
                f"classes; {CARD_FILE} is of another model"
            )
        return logits


def arithmetic_of(precision: str, available: Collection[str]) -> str:
    """What a model of a precision is computed in.

    Args:
        precision: an export's: 'bf16', or 'int8-bf16', which is 8 bits with a rest in bf16. 'int8-weights' has floating
            point arithmetic throughout.
        available: of 'fp16', 'bf16' and 'int8', what the device computes in; else it is fp32.
    """
    parts = precision.split("-")
    rest = next((part for part in parts if part in ("fp16", "bf16") and part in available), "fp32")
    if "int8" not in parts or "weights" in parts or "int8" not in available:
        return rest
    return "int8" if rest == "fp32" else f"int8-{rest}"


def in_words(runtime: Runtime) -> str | None:
    """A line for who asked for less precise arithmetic than there is here; None where all is as asked for."""
    if runtime.arithmetic == arithmetic_of(runtime.precision, ("fp16", "bf16", "int8")):
        return None
    return f"{runtime.precision} model computed in {runtime.arithmetic}: {runtime.name} has nothing else on this device"


def open_runtime(
    folder: Path,
    card: Mapping[str, Any],
    device: str = "auto",
    threads: int | None = None,
    streams: int | None = None,
) -> Runtime:
    """Open the network of an artefact or the files of an export.

    Args:
        folder: holds them.
        card: what ``read_card(folder)`` gives.
        device: 'auto', 'cpu', 'cuda' or 'mps'; 'gpu' for Intel's in OpenVINO. 'auto' takes a GPU that the runtime can
            use, of OpenVINO the processor.
        threads: for the arithmetic of one batch; None takes a thread for each physical core that this process may use,
            or OMP_NUM_THREADS. PyTorch has one setting for the whole process, which this changes.
        streams: parts of a batch computed at a time, in OpenVINO only; None takes one.

    Raises:
        CheckpointError: files that are missing, torn, or of another model than the card's.
        ConfigError: a runtime that is not installed, a device that is not there, or an option it does not have.
    """
    parsed = Card.from_dict(card, folder / CARD_FILE)
    check_options(parsed, threads, streams)
    if parsed.export is None:
        from cmtvision.artefact.files import read_artefact
        from cmtvision.artefact.runtime_torch import NetworkRuntime

        return NetworkRuntime(read_artefact(folder).model, device, threads)
    parsed.export.check_files(folder)
    opened = Checked(_open_export(folder, parsed, device, threads, streams), parsed)
    remark = in_words(opened)
    if remark is not None:
        _log.info("%s: %s", folder, remark)
    return opened


def input_of(card: Card) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape without the batch, and type, of what the model takes: (C, H, W) float32 or (H, W, C) uint8."""
    channels, (height, width) = card.preprocess.channels, card.preprocess.size
    if card.export is not None and card.export.preprocess_inside:
        return (height, width, channels), np.dtype(np.uint8)
    return (channels, height, width), np.dtype(np.float32)


def check_shapes(path: Path, card: Card, inputs: tuple[int, ...], logits: tuple[int, ...]) -> None:
    """Compare a graph's own shapes, without the batch, with the card's. Raises CheckpointError where they differ."""
    expected, _ = input_of(card)
    if inputs != expected or logits != (len(card.classes),):
        raise CheckpointError(
            f"{path}: takes images of {inputs} and gives logits of {logits}, {CARD_FILE} beside it says {expected} and "
            f"{len(card.classes)} classes; take both files from one export"
        )


def check_options(card: Card, threads: int | None, streams: int | None) -> None:
    """Refuse options that make no sense or that the model's runtime does not have. Raises ConfigError."""
    runtime = "torch" if card.export is None else card.export.runtime
    for name, count in (("threads", threads), ("streams", streams)):
        if count is not None and count < 1:
            raise ConfigError(f"{name} {count}: expected at least 1")
    if streams is not None and runtime != "openvino":
        raise ConfigError(f"streams: a setting of OpenVINO, and this model runs in {runtime}; leave it out")


def import_onnxruntime(who: str = "an ONNX model") -> Any:
    """The package. Raises ConfigError where it is not installed, with who needs it."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError(f"{who}: needs onnxruntime: pip install 'cmtvision[onnx]'") from error
    return onnxruntime


def openvino_core(who: str = "an OpenVINO model") -> Any:
    """OpenVINO's Core, one for the whole process; use it wherever OpenVINO reads or compiles.

    Where the processor has AMX, each Core with a graph puts its own stack for signals in the place of the former, and
    gives the former back when it is deleted, even where that one's Core is gone: with two Cores that overlap, the next
    signal (of a loader process that ends, say) kills the process. One that is never deleted keeps its stack.

    Raises:
        ConfigError: it is not installed; with who needs it.
    """
    openvino = import_openvino(who)
    return _core(openvino)


@cache
def _core(openvino: Any) -> Any:
    return openvino.Core()


def import_openvino(who: str = "an OpenVINO model") -> Any:
    """The package, imported without the telemetry that it sends when it is imported and when it converts.

    Raises:
        ConfigError: it is not installed; with who needs it.
    """
    name = "openvino_telemetry"
    absent = name not in sys.modules
    if absent:
        sys.modules[name] = None  # type: ignore[assignment]  # openvino then takes its own stub that sends nothing
    try:
        import openvino
    except ImportError as error:
        raise ConfigError(f"{who}: needs openvino: pip install 'cmtvision[openvino]'") from error
    finally:
        if absent:
            del sys.modules[name]
    return openvino


def _open_export(folder: Path, card: Card, device: str, threads: int | None, streams: int | None) -> Runtime:
    assert card.export is not None
    if card.export.runtime == "onnx":
        from cmtvision.artefact.runtime_onnx import OnnxRuntime

        return OnnxRuntime(folder, card, device, threads)
    if card.export.runtime == "openvino":
        from cmtvision.artefact.runtime_openvino import OpenVinoRuntime

        return OpenVinoRuntime(folder, card, device, threads, streams)
    from cmtvision.artefact.runtime_torch import open_pt2

    return open_pt2(folder, card, device, threads)
