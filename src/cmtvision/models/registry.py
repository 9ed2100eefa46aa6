"""Models by name: what this package adds to timm, and how any model is made, with values or as shapes only."""

from difflib import get_close_matches
from typing import Any

import timm
import torch

from cmtvision.errors import ConfigError, first_line
from cmtvision.models.user_models import registered_names
from cmtvision.models.weight_sources import HOSTED, SOURCE_ARGUMENTS, check_source, explained

FAMILIES = ("cmt_*", "ceit_*", "cvt_*", "pvt_v1_*", "vit_nano", "deit_nano_distilled")


def list_models(pattern: str | None = None) -> list[str]:
    """The names of the models this package adds to timm; with a pattern ('cmt_ladder_*') those that match it."""
    ours: list[str] = timm.list_models([*FAMILIES, *registered_names()])
    if pattern is None:
        return ours
    matching = set(timm.list_models(pattern))
    return [name for name in ours if name in matching]


def create_model(name: str, **kwargs: Any) -> Any:
    """timm.create_model, with a did-you-mean for names that neither timm nor this package knows.

    Raises:
        ConfigError: an unknown name, or an argument the model does not take.
        FetchError: weights to download that do not come.
    """
    check_name(name)
    try:
        with explained(name):
            if name.startswith(HOSTED) or (kwargs.get("pretrained") and not SOURCE_ARGUMENTS & kwargs.keys()):
                check_source(name)
            return timm.create_model(name, **kwargs)
    except TypeError as error:
        raise ConfigError(f"model {name!r}: {error}") from error


def check_name(name: str) -> None:
    """Refuse a name that neither timm nor this package knows. Raises ConfigError, with a did-you-mean."""
    base = name.partition(".")[0]
    if "/" in name or name.startswith(HOSTED) or timm.is_model(base):
        return
    close = get_close_matches(base, list_models(), 2, cutoff=0.5) or get_close_matches(base, timm.list_models(), 2)
    hint = f"did you mean {' or '.join(close)}?" if close else "`cmtvision models` lists them"
    raise ConfigError(f"unknown model {name!r}; {hint}")


def build_shapes_only(
    name: str, img_size: int | tuple[int, int] | None = None, num_classes: int | None = None, **arguments: Any
) -> tuple[Any, tuple[int, int, int]]:
    """A timm model without values, on the meta device, and the (C, H, W) of its input in pixels.

    Raises:
        ConfigError: an unknown name, or a size the model does not take.
    """
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
            raise _refused(name, arguments, error) from error
    except (ValueError, AssertionError) as error:
        raise _refused(name, arguments, error) from error
    channels, height, width = model.pretrained_cfg.get("input_size") or (3, 224, 224)
    channels = arguments.get("in_chans", channels)
    if img_size is not None:
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    return model, (channels, height, width)


def _refused(name: str, arguments: dict[str, Any], error: Exception) -> ConfigError:
    return ConfigError(f"model {name!r} with {arguments}: {first_line(error)}")
