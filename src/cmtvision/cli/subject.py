"""What a command is pointed at: a model's name, or a run folder."""

from pathlib import Path
from typing import Any


def is_run(name: str) -> bool:
    """Whether a word means a folder or file on disk rather than a model's name."""
    return "/" in name or "\\" in name or Path(name).is_dir() or name in (".", "..")


def build_shapes_only(
    name: str, img_size: int | tuple[int, int] | None = None, num_classes: int | None = None, **arguments: Any
) -> tuple[Any, tuple[int, int, int]]:
    """A timm model without values, on the meta device, and the (C, H, W) of its input in pixels.

    Raises:
        ConfigError: an unknown name, or a size the model does not take.
    """
    import timm
    import torch

    from cmtvision.errors import ConfigError
    from cmtvision.models import create_model

    if num_classes is not None:
        arguments["num_classes"] = num_classes
    cfg = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if img_size is not None and cfg is not None and cfg.fixed_input_size:
        arguments["img_size"] = img_size
    try:
        with torch.device("meta"):
            model = create_model(name, **arguments)
    except (NotImplementedError, RuntimeError):  # a constructor that computes with values
        try:
            model = create_model(name, **arguments).to("meta")
        except (RuntimeError, ValueError, AssertionError) as error:
            raise ConfigError(f"model {name!r} with {arguments}: {str(error).splitlines()[0]}") from error
    except (ValueError, AssertionError) as error:
        raise ConfigError(f"model {name!r} with {arguments}: {str(error).splitlines()[0]}") from error
    channels, height, width = model.pretrained_cfg.get("input_size") or (3, 224, 224)
    channels = arguments.get("in_chans", channels)
    if img_size is not None:
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    return model, (channels, height, width)
