"""Where weights come from: files through our safe reader, and one clear line where a model has none to download."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from timm.models import load_pretrained

from cmtvision.errors import ConfigError
from cmtvision.weights import read_state_dict

TRAIN_IT = "train it (`cmtvision train`), or name a file: pretrained_cfg_overlay={'file': 'model.safetensors'}"
SOURCES = ("state_dict", "file", "hf_hub_id", "url")


def refuse_missing_weights(name: str, pretrained: bool, kwargs: dict[str, Any], advice: str) -> None:
    """Check what ``pretrained`` asks of a model whose own configuration names no weights.

    A source of the caller's own, as ``pretrained_cfg_overlay={'file': ...}``, is accepted.

    Raises:
        ConfigError: no source of weights is named; ``advice`` says what to do instead.
    """
    if not pretrained:
        return
    for key in ("pretrained_cfg", "pretrained_cfg_overlay"):
        given = kwargs.get(key) or {}
        if any((given.get(s) if isinstance(given, dict) else getattr(given, s, None)) for s in SOURCES):
            return
    raise ConfigError(f"{name}: there are no weights to download for it; {advice}")


def read_by_us(kwargs: dict[str, Any]) -> None:
    """Have a file or URL that the caller names read by the model's ``load_pretrained``, in place.

    timm would read a source named in ``pretrained_cfg_overlay`` with torch.load, unless told otherwise.
    """
    overlay = kwargs.get("pretrained_cfg_overlay") or {}
    if overlay.get("file") or overlay.get("url"):
        kwargs["pretrained_cfg_overlay"] = {"custom_load": True, **overlay}


def load_file(model: Any, path: str | Path, filter_fn: Callable[..., Any]) -> None:
    """Load a file of weights by our safe reader; timm adapts classifier and channels, ``filter_fn`` the rest.

    Raises:
        CheckpointError: where the file cannot be read safely, or ``filter_fn`` says that it belongs elsewhere.
    """
    cfg = dict(model.pretrained_cfg, state_dict=read_state_dict(path), custom_load=False)
    load_pretrained(model, cfg, num_classes=model.num_classes, in_chans=model.in_chans, filter_fn=filter_fn)
