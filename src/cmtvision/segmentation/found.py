"""From images to the class of each pixel of the original image, whole or in overlapping windows.

C channels, H W height and width in pixels, K classes.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from cmtvision.errors import ConfigError
from cmtvision.models.segmenters import Segmenter

OVERLAP = 0.5
"""Share of a window that it has in common with the next."""


def class_map(
    segmenter: Segmenter, image: torch.Tensor, original: tuple[int, int], window: int | None = None
) -> npt.NDArray[np.int64]:
    """The class of each pixel, (height, width) of the original image.

    Args:
        segmenter: the network, in eval mode.
        image: (C, H, W), prepared, on its device.
        original: (height, width) of the original image.
        window: pixels on a side of the windows that an image is looked at in, whose probabilities are averaged where
            they overlap; None for the whole image at once.
    """
    with torch.inference_mode():
        scores = _scores(segmenter, image) if window is None else _in_windows(segmenter, image, window)
        found = np.empty(original, dtype=np.int64)
        # rows of the original in turn: K maps of a large photo in floats would fill the memory
        rows = max(1, 4_000_000 // (original[1] * scores.shape[0]))
        for start in range(0, original[0], rows):
            found[start : start + rows] = _resized(scores, original, start, min(rows, original[0] - start))
    return found


def _scores(segmenter: Segmenter, image: torch.Tensor) -> torch.Tensor:
    """Probabilities (K, H, W)."""
    probabilities: torch.Tensor = segmenter(image[None])[0].float().softmax(dim=0)
    return probabilities


def _in_windows(segmenter: Segmenter, image: torch.Tensor, window: int) -> torch.Tensor:
    if window < 32:
        raise ConfigError(f"window: got {window}, expected at least 32 pixels")
    height, width = image.shape[1:]
    total = torch.zeros(segmenter.num_classes, height, width, device=image.device)
    times = torch.zeros(height, width, device=image.device)
    for top in _starts(height, window):
        for left in _starts(width, window):
            part = image[:, top : top + window, left : left + window]
            total[:, top : top + window, left : left + window] += _scores(segmenter, part)
            times[top : top + window, left : left + window] += 1
    return total / times


def _starts(length: int, window: int) -> list[int]:
    """Where windows begin: evenly, the first at one end, the last at the other."""
    if length <= window:
        return [0]
    count = -(-(length - window) // max(1, round(window * (1 - OVERLAP)))) + 1
    return [round(place * (length - window) / (count - 1)) for place in range(count)]


def _resized(scores: torch.Tensor, original: tuple[int, int], start: int, rows: int) -> npt.NDArray[np.int64]:
    """The classes of some rows of the original, its scores interpolated between the input's pixel centres."""
    height, width = scores.shape[1:]
    if (height, width) == original:
        best: npt.NDArray[np.int64] = scores[:, start : start + rows].argmax(dim=0).cpu().numpy()
        return best
    y = (torch.arange(start, start + rows, device=scores.device) + 0.5) * 2 / original[0] - 1
    x = (torch.arange(original[1], device=scores.device) + 0.5) * 2 / original[1] - 1
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)  # (rows, columns, 2)
    sampled = F.grid_sample(scores[None], grid[None], padding_mode="border", align_corners=False)[0]
    resized: npt.NDArray[np.int64] = sampled.argmax(dim=0).cpu().numpy()
    return resized
