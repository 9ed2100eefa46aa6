"""A detector as it is traced: one image of one size in, boxes, scores, labels and small masks out.

It is torchvision's network with three parts of it in a form that can be traced. Choosing among overlapping boxes of one
class (torchvision picks one of two equivalent ways by the number of boxes), cutting regions of masks out of the maps
(of every map, and the right one is taken), and the end: boxes stay in the pixels of the input, and masks stay small,
28 x 28 for a box, because drawing them into the image is a loop over what was found.

C channels, S T the input's height and width, N findings.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torchvision.ops import boxes as box_ops
from torchvision.ops import nms, roi_align

from cmtvision.models.detectors import Detector

_CANONICAL, _CANONICAL_LEVEL, _EPSILON = 224, 4, 1e-6  # of the FPN paper, equation 1, as torchvision computes it


class DetectorForm(nn.Module):
    """A detector to trace, independent of the given one.

    Args:
        detector: in eval mode.
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        network: Any = copy.deepcopy(detector.network)
        self.first_label = detector.first_label
        self.has_masks = detector.has_masks
        network.transform.postprocess = lambda found, *_: found
        if self.has_masks:
            pool = network.roi_heads.mask_roi_pool
            network.roi_heads.mask_roi_pool = _RegionsOfAllMaps(pool.output_size, pool.sampling_ratio)
        self.network = network

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Image (1, C, S, T) -> boxes (N, 4), scores (N,), labels (N,) [, masks (N, 1, 28, 28)]."""
        found = self.network([images[0]])[0]
        answer = (found["boxes"], found["scores"], found["labels"] - self.first_label)
        return (*answer, found["masks"]) if self.has_masks else answer


class _RegionsOfAllMaps(nn.Module):
    """Regions cut out of a pyramid: torchvision's MultiScaleRoIAlign for one image and any number of boxes."""

    def __init__(self, output_size: tuple[int, int], sampling_ratio: int) -> None:
        super().__init__()
        self.output_size, self.sampling_ratio = output_size, sampling_ratio

    def forward(
        self, maps: dict[str, torch.Tensor], boxes: list[torch.Tensor], image_shapes: list[tuple[int, int]]
    ) -> torch.Tensor:
        """Maps by name, "0" the finest, and boxes [(N, 4)] -> regions (N, C, h, w)."""
        names = [name for name in maps if name.isdigit()]
        found = boxes[0]
        regions = torch.cat([torch.zeros_like(found[:, :1]), found], dim=1)  # (N, 5): the image's number, and the box
        strides = [round(image_shapes[0][0] / maps[name].shape[2]) for name in names]
        finest, coarsest = (round(torch.tensor(stride).log2().item()) for stride in (strides[0], strides[-1]))
        sides = torch.sqrt((found[:, 2] - found[:, 0]) * (found[:, 3] - found[:, 1]))
        level = torch.floor(_CANONICAL_LEVEL + torch.log2(sides / _CANONICAL) + _EPSILON)
        level = level.clamp(finest, coarsest) - finest  # (N,)
        chosen: torch.Tensor | None = None
        for place, (name, stride) in enumerate(zip(names, strides, strict=True)):
            cut = roi_align(maps[name], regions, self.output_size, 1 / stride, self.sampling_ratio)
            chosen = cut if chosen is None else torch.where((level == place)[:, None, None, None], cut, chosen)
        assert chosen is not None
        return chosen


@contextmanager
def traceable_choice(size: tuple[int, int]) -> Iterator[None]:
    """While it lasts, torchvision chooses among boxes by class in the one way that can be traced.

    Args:
        size: (S, T) of the image, within which all boxes are.
    """
    apart = float(max(size) + 1)

    def by_class(
        boxes: torch.Tensor, scores: torch.Tensor, classes: torch.Tensor, iou_threshold: float
    ) -> torch.Tensor:
        moved = boxes + (classes.to(boxes) * apart)[:, None]  # boxes of different classes never overlap
        kept: torch.Tensor = nms(moved, scores, iou_threshold)
        return kept

    original = box_ops.batched_nms
    box_ops.batched_nms = by_class
    try:
        yield
    finally:
        box_ops.batched_nms = original
