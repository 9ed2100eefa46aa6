"""Which device a model computes on."""

import torch

from cmtvision.artefact.card import Card
from cmtvision.artefact.runtimes import CUDA_PROVIDER, import_onnxruntime
from cmtvision.errors import ConfigError


def pick_device(wanted: str) -> str:
    """The device to use: what is wanted, or for 'auto' a GPU where there is one.

    Raises:
        ConfigError: a device that is not there.
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if wanted == "auto":
        return "cuda" if available["cuda"] else "mps" if available["mps"] else "cpu"
    if not available.get(wanted.partition(":")[0], False):
        here = ", ".join(name for name, present in available.items() if present)
        raise ConfigError(f"device {wanted!r}: not available, this machine has {here}")
    return wanted


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
