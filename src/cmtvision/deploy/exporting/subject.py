"""The model to export, the folder it came from, and the image size to export it for."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm

from cmtvision.artefact import Artefact, read_artefact
from cmtvision.artefact.card import model_folder
from cmtvision.errors import ConfigError, first_line

Size = tuple[int, int]


def open_subject(source: str | Path | Artefact) -> tuple[Artefact, Path | None]:
    """A trained model and its folder; an artefact object alone has no folder.

    Raises:
        CheckpointError: nothing that can be opened, or an export, which cannot be exported again.
    """
    if isinstance(source, Artefact):
        return source, None
    folder = model_folder(source)
    return read_artefact(folder), folder


def as_size(img_size: int | tuple[int, int] | None, default: Size) -> Size:
    """(height, width) in pixels. Raises ConfigError for an invalid size."""
    if img_size is None:
        return default
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    if min(height, width) < 1:
        raise ConfigError(f"image size {height}x{width}: expected pixels")
    return height, width


def size_name(size: Size) -> str:
    """A size in a folder's name: '224', or '224x320' (height first)."""
    return str(size[0]) if size[0] == size[1] else f"{size[0]}x{size[1]}"


def resized(artefact: Artefact, size: Size) -> Artefact:
    """The model for another image size: position biases are resampled once; crop and everything else are kept.

    Its calibration is not, which was fitted on images of the former size.

    The given artefact is left as it is.

    Raises:
        ConfigError: its network accepts no other size.
    """
    if size == artefact.preprocess.size and getattr(artefact.model, "img_size", size) == size:
        return artefact
    cfg = timm.get_pretrained_cfg(artefact.architecture, allow_unregistered=True)
    arguments: dict[str, Any] = dict(artefact.arguments)
    model: Any = copy.deepcopy(artefact.model)
    if hasattr(model, "set_input_size"):
        try:
            model.set_input_size(img_size=size)
        except (AssertionError, RuntimeError, TypeError, ValueError) as error:
            raise ConfigError(f"{artefact.architecture} at {size_name(size)} px: {first_line(error)}") from error
        arguments["img_size"] = list(size)
    elif cfg is not None and cfg.fixed_input_size:
        raise ConfigError(
            f"{artefact.architecture}: takes images of {size_name(artefact.preprocess.size)} px only; "
            "train it at the size to export"
        )
    preprocess = replace(artefact.preprocess, size=size)
    return replace(artefact, model=model, arguments=arguments, preprocess=preprocess, trust=None)
