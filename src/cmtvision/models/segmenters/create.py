"""Segmenters from plain arguments: decoders of segmentation_models_pytorch on any timm backbone.

    kind             paper                                   decoder
    unet             Ronneberger et al. 2015, arXiv 1505.04597  joins maps from coarse to fine by convolutions
    fpn              Kirillov et al. 2019, arXiv 1901.02446     feature pyramid, summed at stride 4
    upernet          Xiao et al. 2018, arXiv 1807.10221         pyramid pooling and feature pyramid
    deeplabv3plus    Chen et al. 2018, arXiv 1802.02611         atrous pyramid at stride 16, refined at stride 4

A CMT's finest map has stride 4, where a ResNet has one of stride 2 as well: the library puts a map of no channels in
its place, so U-Net's last two steps see nothing but what they enlarge, and the other three decoders do not use it.
DeepLabV3+ wants its last map at stride 16. A network that can be dilated is; where timm has no ``output_stride`` for
it, as for a pyramid of attention, whose keys are reduced, the last map is enlarged twofold instead.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from cmtvision.errors import ConfigError, first_line
from cmtvision.models.dense_names import list_names, split_name
from cmtvision.models.feature_maps import create_feature_maps, takes_output_stride
from cmtvision.models.segmenters.segmenter import STRIDE, LastEnlarged, Segmenter

KINDS = ("unet", "fpn", "upernet", "deeplabv3plus")
NEEDS_LIBRARY = "needs segmentation_models_pytorch: pip install 'cmtvision[segmentation]'"
DEPTH = 5  # maps of an encoder besides the image, as the library counts
ATROUS_STRIDE = 16  # of the map that DeepLabV3+ dilates
ATROUS = {"out_channels": 256, "atrous_rates": (12, 24, 36), "aspp_separable": True, "aspp_dropout": 0.5}
DEEPLAB_NAMES = {
    "decoder_channels": "out_channels", "decoder_atrous_rates": "atrous_rates",
    "decoder_aspp_separable": "aspp_separable", "decoder_aspp_dropout": "aspp_dropout",
}  # fmt: skip
"""The library's names of DeepLabV3+'s arguments, and those of its decoder."""


def list_segmenters() -> list[str]:
    """The names of the CMTs with each kind of decoder; any timm backbone makes another one."""
    return list_names(KINDS)


def segmenter_by_name(name: str, num_classes: int, **arguments: Any) -> Segmenter:
    """``create_segmenter`` of what a name says: ``segmenter_by_name('cmt_s_upernet', 20)``.

    Raises:
        ConfigError: an unknown name, or an argument that does not exist.
    """
    kind, backbone = split_name(name, KINDS, "segmenter")
    try:
        return create_segmenter(kind, backbone, num_classes, **arguments)
    except TypeError as error:
        raise ConfigError(f"segmenter {name!r}: {error}") from error


def create_segmenter(
    kind: str,
    backbone: str,
    num_classes: int,
    *,
    in_chans: int = 3,
    img_size: int | tuple[int, int] | None = None,
    pretrained: bool = False,
    weights: str | Path | None = None,
    frozen_norms: bool | None = None,
    grad_checkpointing: bool = False,
    decoder_arguments: Mapping[str, Any] | None = None,
    backbone_arguments: Mapping[str, Any] | None = None,
) -> Segmenter:
    """Make a segmenter. What it was made of, resolved and without values, is its ``arguments``.

    ``create_segmenter(**segmenter.arguments)`` is the same network with other values; nothing is read or fetched for
    it.

    Args:
        kind: 'unet', 'fpn', 'upernet' or 'deeplabv3plus'.
        backbone: name of a model, ours or timm's, whose stages halve the map down to stride 32.
        num_classes: of a pixel, the background counted if it is one of them.
        in_chans: channels of the image.
        img_size: of a backbone that is made for one size: for CMT of its tables of position bias, which are resampled
            to whatever image comes. None for its own, which is right for weights from classification.
        pretrained: load the backbone's released weights.
        weights: a file of weights of the backbone (a classifier's).
        frozen_norms: keep the statistics of the backbone's batch norms; None: if it has weights from elsewhere. The
            decoder's are not held: of batches of one, UPerNet and DeepLabV3+, which pool the whole map, cannot learn.
        grad_checkpointing: recompute the backbone's maps in the backward pass instead of keeping them.
        decoder_arguments: the library's arguments of that kind that begin with ``decoder_``:
            ``{"decoder_channels": 128}``.
        backbone_arguments: further ones of the backbone's constructor, plain values: ``{"drop_path_rate": 0.1}``.

    Raises:
        ConfigError: arguments that do not fit, a backbone without such maps, or the library is not installed.
        CheckpointError: weights that cannot be read or belong to another network.
        FetchError: released weights that do not come.
    """
    if kind not in KINDS:
        raise ConfigError(f"segmenter {kind!r}: expected {', '.join(KINDS[:-1])} or {KINDS[-1]}")
    if num_classes < 1:
        raise ConfigError(f"segmenter {kind!r}: got {num_classes} classes, expected at least one")
    wrong = [key for key in decoder_arguments or {} if not key.startswith("decoder_")]
    if wrong:
        raise ConfigError(f"segmenter {kind!r}: decoder_arguments {', '.join(wrong)}, expected names with 'decoder_'")
    if frozen_norms is None:
        frozen_norms = pretrained or weights is not None
    arguments = {
        "kind": kind, "backbone": backbone, "num_classes": num_classes, "in_chans": in_chans,
        "img_size": list(img_size) if isinstance(img_size, tuple) else img_size, "frozen_norms": frozen_norms,
        "grad_checkpointing": grad_checkpointing, "decoder_arguments": dict(decoder_arguments or {}),
        "backbone_arguments": dict(backbone_arguments or {}),
    }  # fmt: skip
    try:
        arguments = json.loads(json.dumps(arguments))
    except TypeError as error:
        raise ConfigError(f"segmenter {kind!r}: {error}; expected plain values that a card can hold") from error
    values = {"in_chans": in_chans, "img_size": img_size, "pretrained": pretrained, "weights": weights,
              "grad_checkpointing": grad_checkpointing}  # fmt: skip
    try:
        make = _atrous if kind == "deeplabv3plus" else _of_the_library
        parts = make(
            kind, backbone, num_classes, values, arguments["backbone_arguments"], arguments["decoder_arguments"]
        )
    except ImportError as error:
        raise ConfigError(f"segmenter {kind!r}: {NEEDS_LIBRARY} ({first_line(error)})") from error
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"segmenter {kind!r} on {backbone!r}: {first_line(error)}") from error
    return Segmenter(*parts, kind, num_classes, arguments)


Parts = tuple[nn.Module, nn.Module, nn.Module]  # encoder, decoder, head


def _of_the_library(
    kind: str, backbone: str, num_classes: int, values: dict[str, Any], structure: dict[str, Any],
    decoder: dict[str, Any],
) -> Parts:  # fmt: skip
    """Its own network, with the backbone's place taken by ours, whose weights are read by us."""
    from segmentation_models_pytorch import create_model

    maps = create_feature_maps(backbone, arguments=structure, **values)
    network = create_model(
        kind, f"tu-{backbone}", encoder_weights=None, in_channels=values["in_chans"], classes=num_classes,
        **_plain(structure), **decoder,
    )  # fmt: skip
    return _with(network.encoder, maps, backbone), network.decoder, network.segmentation_head


def _atrous(
    kind: str, backbone: str, num_classes: int, values: dict[str, Any], structure: dict[str, Any],
    decoder: dict[str, Any],
) -> Parts:  # fmt: skip
    """DeepLabV3+: the library's class insists on a backbone that can be dilated."""
    from segmentation_models_pytorch.base import SegmentationHead
    from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3PlusDecoder
    from segmentation_models_pytorch.encoders import get_encoder

    unknown = sorted(set(decoder) - set(DEEPLAB_NAMES))
    if unknown:
        raise ConfigError(f"segmenter {kind!r}: unknown {', '.join(unknown)}; it has {', '.join(DEEPLAB_NAMES)}")
    options = {**ATROUS, **{DEEPLAB_NAMES[key]: value for key, value in decoder.items()}}
    dilates = takes_output_stride(backbone)
    if dilates:
        values = {**values, "output_stride": ATROUS_STRIDE}
    maps = create_feature_maps(backbone, arguments=structure, **values)
    encoder = get_encoder(
        f"tu-{backbone}", in_channels=values["in_chans"], output_stride=ATROUS_STRIDE if dilates else STRIDE,
        **_plain(structure),
    )  # fmt: skip
    channels = encoder.out_channels
    encoder = _with(encoder, maps, backbone)
    module = DeepLabV3PlusDecoder(channels, DEPTH, output_stride=ATROUS_STRIDE, **options)
    head = SegmentationHead(options["out_channels"], num_classes, kernel_size=1, upsampling=4)
    return encoder if dilates else LastEnlarged(encoder), module, head


def _with(encoder: Any, maps: nn.Module, backbone: str) -> nn.Module:
    """The library's encoder, which arranges the maps, around a backbone of ours."""
    ours: Any = maps
    if ours.feature_info.channels() != encoder.model.feature_info.channels():
        raise ConfigError(f"backbone {backbone!r}: its maps are not those of strides 2 or 4 to 32")
    encoder.model = maps
    return encoder


def _plain(structure: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments out of JSON as constructors take them: lists are tuples there."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in structure.items()}
