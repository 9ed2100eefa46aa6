"""From images to what a detector finds in them, in pixels of the original images.

B batch, C channels, H W height and width in pixels, N findings.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from cmtvision.data.whole_image import original_boxes
from cmtvision.detection.metrics import Detections, detections, merged
from cmtvision.engine.distributed.processes import SINGLE, Processes
from cmtvision.engine.evaluation.outputs import eval_mode
from cmtvision.models.detectors import Detector

MASK_LEVEL = 0.5  # probability from which on a pixel belongs to an object


def found_in(
    detector: Detector, loader: Iterable[Any], device: torch.device, processes: Processes = SINGLE
) -> dict[int, Detections]:
    """What a detector finds in the images of a loader, by their places; every process must call it, all get the same.

    Each image is looked at alone, so that nothing depends on which others are beside it.
    """
    own: dict[int, Detections] = {}
    with eval_mode(detector):
        for batch in loader:
            for image, target, place in batch:
                own[int(place)] = find(detector, image.to(device), target["scale"], target["original_size"])
    return merged(processes.gather(own))


def find(detector: Detector, image: torch.Tensor, scale: tuple[float, float], original: tuple[int, int]) -> Detections:
    """What a detector in eval mode finds in one image.

    Args:
        detector: the network.
        image: (C, H, W), prepared, on its device.
        scale: (x, y) pixels of it for each of the original's.
        original: (height, width) of the original image.
    """
    with torch.inference_mode():
        answer = detector([image])[0]
    boxes = original_boxes(answer["boxes"].float().cpu().numpy(), scale, original)
    scores, labels = answer["scores"].float().cpu().numpy(), answer["labels"].cpu().numpy()
    masks = None if "masks" not in answer else _masks(answer["masks"].float().cpu(), original)
    return detections(boxes, scores, labels, masks)


def _masks(masks: torch.Tensor, original: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Probabilities (N, 1, H, W) of the input's pixels as masks (N, height, width) of the original's."""
    found = np.zeros((len(masks), *original), dtype=np.bool_)
    for place, mask in enumerate(masks):  # one by one: a hundred of a large image in floats would fill the memory
        whole = F.interpolate(mask[None], size=original, mode="bilinear", align_corners=False)[0, 0]
        found[place] = (whole >= MASK_LEVEL).numpy()
    return found
