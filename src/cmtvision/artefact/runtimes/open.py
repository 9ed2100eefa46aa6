"""Open a model in its runtime: PyTorch, .pt2, ONNX Runtime or OpenVINO, whichever its card names.

A .pt2 file is a program: a compiled package is native code, and even a graph is rebuilt by evaluating expressions that
stand in it. Open only .pt2 files that you trust. The other kinds are data.
"""

import logging
from pathlib import Path

import numpy as np
import torch

from cmtvision.artefact.card import CARD_FILE, Card
from cmtvision.artefact.files import artefact_of
from cmtvision.artefact.runtimes.base import Batch, Logits, Runtime, in_words, input_of
from cmtvision.artefact.runtimes.onnx import CUDA_PROVIDER, OnnxRuntime, import_onnxruntime
from cmtvision.artefact.runtimes.openvino import OpenVinoRuntime
from cmtvision.artefact.runtimes.torch import NetworkRuntime, open_pt2, pick_device
from cmtvision.errors import CheckpointError, ConfigError

_log = logging.getLogger(__name__)


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


def open_runtime(
    folder: Path,
    card: Card,
    device: str = "auto",
    threads: int | None = None,
    streams: int | None = None,
) -> Runtime:
    """Open the network of an artefact or the files of an export.

    Args:
        folder: holds them.
        card: its card.
        device: 'auto', 'cpu', 'cuda' or 'mps'; 'gpu' for Intel's in OpenVINO. 'auto' takes a GPU that the runtime can
            use, of OpenVINO the processor.
        threads: for the arithmetic of one batch; None takes a thread for each physical core that this process may use,
            or OMP_NUM_THREADS. PyTorch has one setting for the whole process, which this changes.
        streams: parts of a batch computed at a time, in OpenVINO only; None takes one.

    Raises:
        CheckpointError: files that are missing, torn, or of another model than the card's.
        ConfigError: a runtime that is not installed, a device that is not there, or an option it does not have.
    """
    check_options(card, threads, streams)
    if card.export is None:
        return NetworkRuntime(artefact_of(card, folder).model, device, threads)
    card.export.check_files(folder)
    opened = Checked(_open_export(folder, card, device, threads, streams), card)
    remark = in_words(opened)
    if remark is not None:
        _log.info("%s: %s", folder, remark)
    return opened


def device_for(card: Card, wanted: str) -> str:
    """Where a model will run, known before it is opened: for 'auto' the kind of device that its runtime takes.

    Raises:
        ConfigError: a device that is not there, or a runtime that is not installed.
    """
    if wanted != "auto":
        return wanted if wanted.partition(":")[0] == "gpu" else pick_device(wanted)
    if card.export is None or (card.export.runtime == "torch" and not card.export.compiled):
        return pick_device(wanted)
    if card.export.runtime == "onnx" and torch.cuda.is_available():
        return "cuda" if CUDA_PROVIDER in import_onnxruntime().get_available_providers() else "cpu"
    return "cpu"


def check_options(card: Card, threads: int | None, streams: int | None) -> None:
    """Refuse options that make no sense or that the model's runtime does not have. Raises ConfigError."""
    runtime = "torch" if card.export is None else card.export.runtime
    for name, count in (("threads", threads), ("streams", streams)):
        if count is not None and count < 1:
            raise ConfigError(f"{name} {count}: expected at least 1")
    if streams is not None and runtime != "openvino":
        raise ConfigError(f"streams: a setting of OpenVINO, and this model runs in {runtime}; leave it out")


def _open_export(folder: Path, card: Card, device: str, threads: int | None, streams: int | None) -> Runtime:
    assert card.export is not None
    if card.export.runtime == "onnx":
        return OnnxRuntime(folder, card, device, threads)
    if card.export.runtime == "openvino":
        return OpenVinoRuntime(folder, card, device, threads, streams)
    return open_pt2(folder, card, device, threads)
