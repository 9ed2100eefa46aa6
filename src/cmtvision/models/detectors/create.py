"""Detectors from plain arguments: RetinaNet, FCOS, Faster R-CNN and Mask R-CNN of torchvision, on any timm backbone.

    kind         paper                             maps used           coarser maps
    retinanet    Lin et al. 2017, arXiv 1708.02002    strides 8, 16, 32   64, 128, from the backbone's last
    fcos         Tian et al. 2019, arXiv 1904.01355   strides 8, 16, 32   64, 128, from the pyramid's last
    fasterrcnn   Ren et al. 2015, arXiv 1506.01497    strides 4 to 32     64, by pooling
    maskrcnn     He et al. 2017, arXiv 1703.06870     strides 4 to 32     64, by pooling

The CMT paper reports RetinaNet and Mask R-CNN on COCO; heads, anchors and matching are those of the papers, by
torchvision's code. Named ones, ``cmt_s_retinanet``, are in names.py.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

from cmtvision.errors import ConfigError
from cmtvision.models.detectors.detector import Detector, Padding
from cmtvision.models.detectors.pyramid import Pyramid
from cmtvision.models.feature_maps import create_feature_maps

KINDS = ("retinanet", "fcos", "fasterrcnn", "maskrcnn")
TWO_STAGES = ("fasterrcnn", "maskrcnn")
ASPECTS = (0.5, 1.0, 2.0)  # height over width of an anchor
ROI_CELLS = 7  # sides of what is cut out of the maps for a box
MASK_CONVOLUTIONS = 4
FCOS_GROUPS = 32  # of its heads' group norms, each of more than one channel: the coarsest map may be 1 x 1
BACKGROUND = 1  # classes that two-stage detectors count besides


def create_detector(
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
    fpn_width: int = 256,
    finest_stride: int | None = None,
    anchor_scale: float = 1.0,
    score_threshold: float = 0.05,
    nms_threshold: float | None = None,
    max_detections: int = 100,
    rois_per_image: int = 512,
    backbone_arguments: Mapping[str, Any] | None = None,
) -> Detector:
    """Make a detector. What it was made of, resolved and without values, is its ``arguments``.

    ``create_detector(**detector.arguments)`` is the same network with other values; nothing is read or fetched for it.

    Args:
        kind: 'retinanet', 'fcos', 'fasterrcnn' or 'maskrcnn'.
        backbone: name of a model, ours or timm's, whose stages have strides 4 (two-stage kinds), 8, 16 and 32.
        num_classes: classes of objects, the background not counted.
        in_chans: channels of the image.
        img_size: of a backbone that is made for one size: for CMT of its tables of position bias, which are resampled
            to whatever image comes. None for its own, which is right for weights from classification.
        pretrained: load the backbone's released weights.
        weights: a file of weights of the backbone (a classifier's).
        frozen_norms: keep the statistics of the backbone's batch norms; None: if it has weights from elsewhere.
        grad_checkpointing: recompute the backbone's maps in the backward pass instead of keeping them.
        fpn_width: channels of the pyramid and of all heads, of FCOS 64, 96, ...; the layers after a box's cells
            have four times as many.
        finest_stride: of the finest map that a one-stage kind uses: 8, or 4 for small objects. None: 8, and 4 for
            two-stage kinds, which have no other.
        anchor_scale: of the sides of anchors, which are 4 times the stride of their map, 8 times for two-stage kinds
            (FCOS has none, only 1 fits).
        score_threshold: below it nothing is a finding.
        nms_threshold: of two findings of a class whose boxes overlap by more (IoU), one stays. None: 0.6 for FCOS, else
            0.5.
        max_detections: findings in an image.
        rois_per_image: regions of an image that the second stage of a two-stage kind learns from, a quarter of them on
            objects. 512 is for photos of 800 px; a small image has few objects, and each region costs as much.
        backbone_arguments: further ones of the backbone's constructor, plain values: ``{"drop_path_rate": 0.1}``.

    Raises:
        ConfigError: arguments that do not fit, or a backbone without such maps.
        CheckpointError: weights that cannot be read or belong to another network.
        FetchError: released weights that do not come.
    """
    _check(kind, num_classes, fpn_width, finest_stride, anchor_scale, rois_per_image)
    if frozen_norms is None:
        frozen_norms = pretrained or weights is not None
    if nms_threshold is None:
        nms_threshold = 0.6 if kind == "fcos" else 0.5
    if finest_stride is None:
        finest_stride = 4 if kind in TWO_STAGES else 8
    arguments = {
        "kind": kind, "backbone": backbone, "num_classes": num_classes, "in_chans": in_chans,
        "img_size": list(img_size) if isinstance(img_size, tuple) else img_size, "frozen_norms": frozen_norms,
        "grad_checkpointing": grad_checkpointing, "fpn_width": fpn_width, "finest_stride": finest_stride,
        "anchor_scale": anchor_scale, "score_threshold": score_threshold, "nms_threshold": nms_threshold,
        "max_detections": max_detections, "rois_per_image": rois_per_image,
        "backbone_arguments": dict(backbone_arguments or {}),
    }  # fmt: skip
    try:
        arguments = json.loads(json.dumps(arguments))
    except TypeError as error:
        raise ConfigError(f"detector {kind!r}: {error}; expected plain values that a card can hold") from error
    body = create_feature_maps(
        backbone, in_chans=in_chans, img_size=img_size, pretrained=pretrained, weights=weights,
        grad_checkpointing=grad_checkpointing, arguments=arguments["backbone_arguments"],
    )  # fmt: skip
    strides = [stride for stride in (4, 8, 16, 32) if stride >= finest_stride]
    coarser = {"retinanet": "maps", "fcos": "pyramid"}.get(kind, "pool")
    pyramid = Pyramid(body, backbone, strides, fpn_width, coarser)
    strides += [64] if kind in TWO_STAGES else [64, 128]
    make = {
        "retinanet": _retinanet, "fcos": _fcos, "fasterrcnn": _fasterrcnn, "maskrcnn": _maskrcnn
    }[kind]  # fmt: skip
    limits = Limits(score_threshold, nms_threshold, max_detections, rois_per_image)
    network = make(pyramid, num_classes, [4 * anchor_scale * stride for stride in strides], limits)
    network.transform = Padding()
    return Detector(network, kind, num_classes, arguments, BACKGROUND if kind in TWO_STAGES else 0)


class Limits(NamedTuple):
    """What of a detector's proposals is kept; see ``create_detector``."""

    score: float
    overlap: float
    findings: int
    rois: int


def _check(
    kind: str, num_classes: int, fpn_width: int, finest_stride: int | None, anchor_scale: float, rois: int
) -> None:
    if kind not in KINDS:
        raise ConfigError(f"detector {kind!r}: expected {', '.join(KINDS[:-1])} or {KINDS[-1]}")
    if num_classes < 1:
        raise ConfigError(f"detector {kind!r}: got {num_classes} classes, expected at least one")
    if fpn_width < 1 or (kind == "fcos" and (fpn_width % FCOS_GROUPS or fpn_width == FCOS_GROUPS)):
        expected = f"a multiple of {FCOS_GROUPS} from {2 * FCOS_GROUPS} on" if kind == "fcos" else "at least 1"
        raise ConfigError(f"detector {kind!r}: fpn_width {fpn_width}, expected {expected}")
    allowed = (4,) if kind in TWO_STAGES else (4, 8)
    if finest_stride is not None and finest_stride not in allowed:
        raise ConfigError(
            f"detector {kind!r}: finest_stride {finest_stride}, expected {' or '.join(map(str, allowed))}"
        )
    if anchor_scale <= 0 or (kind == "fcos" and anchor_scale != 1):
        expected = "1, for FCOS has no anchors" if kind == "fcos" else "a positive number"
        raise ConfigError(f"detector {kind!r}: anchor_scale {anchor_scale}, expected {expected}")
    if rois < 4 or (kind not in TWO_STAGES and rois != 512):
        expected = "at least 4" if kind in TWO_STAGES else "none, it has one stage"
        raise ConfigError(f"detector {kind!r}: rois_per_image {rois}, expected {expected}")


def _retinanet(pyramid: Pyramid, num_classes: int, sides: list[float], limits: Limits) -> nn.Module:
    """Three anchors an octave, in three shapes, for each place."""
    sizes = tuple(tuple(float(int(side * 2 ** (octave / 3))) for octave in range(3)) for side in sides)
    return RetinaNet(
        pyramid, num_classes, anchor_generator=_anchors(sizes), score_thresh=limits.score, nms_thresh=limits.overlap,
        detections_per_img=limits.findings,
    )  # fmt: skip


def _fcos(pyramid: Pyramid, num_classes: int, sides: list[float], limits: Limits) -> nn.Module:
    """No anchors: a point for each place, as wide as the stride, by which torchvision recognises its map."""
    sizes = tuple((side / 4,) for side in sides)
    return FCOS(
        pyramid, num_classes, anchor_generator=AnchorGenerator(sizes, ((1.0,),) * len(sizes)),
        score_thresh=limits.score, nms_thresh=limits.overlap, detections_per_img=limits.findings,
    )  # fmt: skip


def _fasterrcnn(
    pyramid: Pyramid, num_classes: int, sides: list[float], limits: Limits, make: Any = FasterRCNN, **more: Any
) -> nn.Module:
    """One anchor size a map, in three shapes; sides of 8 times the stride, as in the FPN paper."""
    width, hidden = pyramid.out_channels, 4 * pyramid.out_channels
    network: nn.Module = make(
        pyramid, rpn_anchor_generator=_anchors(tuple((2 * side,) for side in sides)),
        box_head=TwoMLPHead(width * ROI_CELLS**2, hidden),
        box_predictor=FastRCNNPredictor(hidden, num_classes + BACKGROUND),
        box_score_thresh=limits.score, box_nms_thresh=limits.overlap, box_detections_per_img=limits.findings,
        box_batch_size_per_image=limits.rois, **more,
    )  # fmt: skip
    return network


def _maskrcnn(pyramid: Pyramid, num_classes: int, sides: list[float], limits: Limits) -> nn.Module:
    width = pyramid.out_channels
    masks = partial(
        MaskRCNN,
        mask_head=MaskRCNNHeads(width, (width,) * MASK_CONVOLUTIONS, 1),
        mask_predictor=MaskRCNNPredictor(width, width, num_classes + BACKGROUND),
    )
    return _fasterrcnn(pyramid, num_classes, sides, limits, masks)


def _anchors(sizes: tuple[tuple[float, ...], ...]) -> AnchorGenerator:
    return AnchorGenerator(sizes, (ASPECTS,) * len(sizes))
