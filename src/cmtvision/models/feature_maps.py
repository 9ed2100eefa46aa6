"""A backbone for dense prediction: any network of timm's that gives its maps (features_only), with weights from a file.

A CMT takes images of any H x W here: its position bias is resampled to each (models/cmt/position.py).
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import group_parameters
from torch import nn

from cmtvision.errors import CheckpointError, ConfigError, first_line
from cmtvision.models.cmt.cmt import FeatureMaps
from cmtvision.models.registry import create_model, has_fixed_size
from cmtvision.models.weight_sources import HOSTED, loader_arguments
from cmtvision.weights import read_state_dict


def create_feature_maps(
    name: str,
    *,
    in_chans: int = 3,
    img_size: int | tuple[int, int] | None = None,
    pretrained: bool = False,
    weights: str | Path | None = None,
    grad_checkpointing: bool = False,
    output_stride: int | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Make a network that gives its maps, finest first: image (B, in_chans, H, W) -> list of (B, C, H/s, W/s).

    Args:
        name: of a model, ours or timm's.
        in_chans: channels of the image.
        img_size: the size that a network of one size is made for; a CMT's tables of position bias have it, and are
            resampled to other images. None for the model's own.
        pretrained: load the released weights.
        weights: a file of weights, the classifier's among them or not: safetensors, a released checkpoint, any layout
            that ``read_state_dict`` knows.
        grad_checkpointing: recompute maps in the backward pass instead of keeping them.
        output_stride: of the coarsest map, by dilation, where the network can (``takes_output_stride``).
        arguments: further ones of its constructor, plain values.

    Raises:
        ConfigError: an unknown name, arguments that it does not take, or a network without maps.
        CheckpointError: weights that cannot be read or belong to another network.
        FetchError: released weights that do not come.
    """
    given = _constructor_arguments(name, img_size, output_stride, arguments or {})
    if weights is not None:
        given["pretrained_cfg_overlay"] = {"state_dict": read_state_dict(weights), "custom_load": False}
    if pretrained and weights is None and not timm.is_model_pretrained(name):
        raise ConfigError(f"model {name!r} has no released weights; name a file of weights, or leave them out")
    try:
        features: nn.Module = create_model(
            name, features_only=True, in_chans=in_chans, pretrained=pretrained or weights is not None, **given
        )
    except CheckpointError as error:
        raise CheckpointError(str(error).replace("the state dict", str(weights), 1)) from error
    except (RuntimeError, ValueError, KeyError, AssertionError, AttributeError) as error:
        if weights is not None:
            raise CheckpointError(f"{weights}: not weights of {name!r} ({first_line(error)})") from error
        raise ConfigError(f"backbone {name!r}: gives no maps ({first_line(error)})") from error
    if weights is not None and not isinstance(features, FeatureMaps):  # CMT's own reader has compared every tensor
        _check_loaded(features, given["pretrained_cfg_overlay"]["state_dict"], f"{weights}: not weights of {name!r}")
    if grad_checkpointing:
        switch = getattr(getattr(features, "model", features), "set_grad_checkpointing", None)
        if switch is None:
            raise ConfigError(f"backbone {name!r}: cannot recompute its maps; leave grad_checkpointing out")
        switch(True)
    return features


def _constructor_arguments(
    name: str, img_size: int | tuple[int, int] | None, output_stride: int | None, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Arguments out of JSON, where tuples are lists, with what has a place of its own."""
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}
    refused = sorted({*loader_arguments(given), *({"in_chans", "img_size", "output_stride"} & given.keys())})
    if refused:
        raise ConfigError(f"backbone {name!r}: {', '.join(refused)} cannot be among the arguments of its constructor")
    if name.startswith(HOSTED):
        raise ConfigError(f"backbone {name!r}: expected the name of a model; give its weights by a file")
    if img_size is not None:
        if not has_fixed_size(name):
            raise ConfigError(f"backbone {name!r}: takes images of any size and has no img_size; leave it out")
        given["img_size"] = tuple(img_size) if isinstance(img_size, list) else img_size
    if output_stride is not None:
        given["output_stride"] = output_stride
    return given


HEAD = float("inf")
"""The layer of what is no backbone: above all of its layers."""


def layers_of(name: str, arguments: Mapping[str, Any], prefix: str) -> Callable[[str], float]:
    """For layer-wise learning rates: the layer of a parameter of a network on this backbone, ``HEAD`` outside of it.

    Args:
        name, arguments: of the backbone, as for ``create_feature_maps``; its ``group_matcher`` says what a layer is.
        prefix: of the names of the backbone's parameters.

    Raises:
        ConfigError: a backbone that does not say so.
    """
    with torch.device("meta"):
        model: Any = create_model(name, **_constructor_arguments(name, None, None, arguments))
    if not hasattr(model, "group_matcher"):
        raise ConfigError(f"backbone {name!r}: does not say what its layers are; set optim.layer_decay=null")
    numbers = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    layer = {_plain(parameter): number for parameter, number in numbers.items()}

    def of(parameter: str) -> float:
        if not parameter.startswith(prefix):
            return HEAD
        return layer.get(_plain(parameter.removeprefix(prefix)), HEAD)

    return of


def takes_output_stride(name: str) -> bool:
    """Whether a network's last stages can be dilated instead of halving the map (timm's ``output_stride``)."""
    try:
        with torch.device("meta"):
            create_model(name, features_only=True, output_stride=16)
    except (ConfigError, NotImplementedError, RuntimeError, ValueError, AssertionError):
        return False
    return True


def _check_loaded(features: nn.Module, state: Mapping[str, Any], fault: str) -> None:
    """Refuse a file of which less than half fits: timm only logs what is missing where the classifier is left out."""
    own = {_plain(key): value.shape for key, value in features.state_dict().items()}
    theirs = {_plain(key): value.shape for key, value in state.items()}
    fitting = sum(theirs.get(key) == shape for key, shape in own.items())
    if 2 * fitting < len(own):
        raise CheckpointError(f"{fault}, {fitting} of its {len(own)} tensors are there")


def _plain(key: str) -> str:
    """A tensor's name, whether stages are nested ('stages.0') or flattened ('stages_0'), wrapped or not."""
    return key.removeprefix("model.").removeprefix("body.").replace(".", "_")
