"""Detectors as their products alone, to count what they cost: choices among boxes have none, and no fixed shape."""

from collections import OrderedDict
from typing import Any

import torch
from torch import nn

from cmtvision.models.detectors import Detector

BOXES, MASKS = 1000, 100
"""Regions of an image that the second stage of a detector is counted for."""


class Products(nn.Module):
    """A detector without anchors and choices: image -> the outputs of its heads."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        network: Any = detector.network
        self.places = network.backbone.places
        self.body, self.fpn = network.backbone.body, network.backbone.fpn
        if detector.kind in ("retinanet", "fcos"):
            self.head = network.head
        else:
            self.rpn_head = network.rpn.head
            self.box = nn.Sequential(network.roi_heads.box_head, network.roi_heads.box_predictor)
            self.mask = None
            if detector.has_masks:
                self.mask = nn.Sequential(network.roi_heads.mask_head, network.roi_heads.mask_predictor)

    def forward(self, x: torch.Tensor) -> None:
        """Image (B, C, H, W); nothing is given back."""
        maps = self.body(x)
        features = list(self.fpn(OrderedDict((str(i), maps[place]) for i, place in enumerate(self.places))).values())
        if hasattr(self, "head"):
            self.head(features)
            return
        self.rpn_head(features)
        width = features[0].shape[1]
        self.box(x.new_empty(BOXES, width, 7, 7))
        if self.mask is not None:
            self.mask(x.new_empty(MASKS, width, 14, 14))


def countable(model: nn.Module) -> nn.Module:
    """A network as ``count`` takes it: a detector as its products, any other as it is."""
    return Products(model) if isinstance(model, Detector) else model
