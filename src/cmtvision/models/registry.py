"""Models by name: what this package adds to timm, and how any model is made, with values or as shapes only."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import timm
import torch

from cmtvision.errors import ConfigError, first_line
from cmtvision.models.user_models import expand, registered_names
from cmtvision.models.weight_sources import HOSTED, SOURCE_ARGUMENTS, check_source, explained

FAMILIES = (
    "cmt_*",
    "ceit_*",
    "cvt_*",
    "pvt_v1_*",
    "vit_nano",
    "vit_micro",
    "deit_nano_distilled",
    "deit_micro_distilled",
)


def list_models(pattern: str | None = None) -> list[str]:
    """The names of the models this package adds to timm; with a pattern ('cmt_ladder_*') those that match it."""
    ours: list[str] = timm.list_models([*FAMILIES, *registered_names()])
    if pattern is None:
        return ours
    matching = set(timm.list_models(pattern))
    return [name for name in ours if name in matching]


def create_model(name: str, **kwargs: Any) -> Any:
    """timm.create_model, with a did-you-mean for names that neither timm nor this package knows.

    Args:
        name: of a model, or the file of a recipe (.yaml), meaning the network that it describes.
        kwargs: of timm.create_model.

    Raises:
        ConfigError: an unknown name, or an argument the model does not take.
        FetchError: weights to download that do not come.
    """
    name, kwargs = _expanded(name, kwargs)
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
    own = expand(name)
    if own is not None and own.base != name:
        check_name(own.base)
        return
    if "/" in name or name.startswith(HOSTED) or timm.is_model(base):
        return
    close = get_close_matches(base, list_models(), 2, cutoff=0.5) or get_close_matches(base, timm.list_models(), 2)
    hint = f"did you mean {' or '.join(close)}?" if close else "`cmtvision models` lists them"
    raise ConfigError(f"unknown model {name!r}; {hint}")


def has_fixed_size(name: str) -> bool:
    """Whether a model, given by name or recipe file, is made for images of one size."""
    own = expand(name)
    cfg = timm.get_pretrained_cfg(name if own is None else own.base, allow_unregistered=True)
    return cfg is not None and bool(cfg.fixed_input_size)


def build_shapes_only(
    name: str,
    img_size: int | tuple[int, int] | None = None,
    num_classes: int | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> tuple[Any, tuple[int, int, int]]:
    """A timm model without weight values, on the meta device, and the (C, H, W) of its input in pixels.

    Args:
        name: as ``create_model`` takes it.
        img_size: of the image; a network of one size is made for it.
        num_classes: None for the model's own.
        arguments: more of its constructor, where a CMT's position bias has its own img_size.

    Raises:
        ConfigError: an unknown name, or a size the model does not take.
    """
    arguments = dict(arguments or {})
    if num_classes is not None:
        arguments["num_classes"] = num_classes
    own = expand(name)
    if img_size is None and own is not None:
        img_size = own.input_size
    if img_size is not None and has_fixed_size(name):
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


def _expanded(name: str, arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The model and the arguments in a recipe's file; any other name unchanged."""
    own = None if timm.is_model(name) else expand(name)
    if own is None:
        return name, arguments
    described = {key: tuple(value) if isinstance(value, list) else value for key, value in own.options.items()}
    if own.input_size is not None and has_fixed_size(own.base):
        described["img_size"] = own.input_size
    return own.base, {**described, **arguments}


def _refused(name: str, arguments: dict[str, Any], error: Exception) -> ConfigError:
    return ConfigError(f"model {name!r} with {arguments}: {first_line(error)}")
