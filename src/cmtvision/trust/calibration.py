"""How well stated probabilities agree with what happens: expected calibration error, and the diagram behind it.

Guo, Pleiss, Sun and Weinberger, On Calibration of Modern Neural Networks, ICML 2017, equation 3, with 15 bins of equal
width (b - 1) / 15 < confidence <= b / 15.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

NUM_BINS = 15


class Bin(NamedTuple):
    """The images whose confidence lies in low < confidence <= high; means are None where there are none."""

    low: float
    high: float
    images: int
    confidence: float | None
    accuracy: float | None


def calibration_bins(confidence: npt.NDArray[Any], correct: npt.NDArray[Any], num_bins: int = NUM_BINS) -> list[Bin]:
    """The bins of a calibration diagram, from low to high.

    Args:
        confidence: (N,) the probability of the class that was named, 0 to 1.
        correct: (N,) whether it was the right one.
        num_bins: bins of equal width.

    Raises:
        ValueError: arrays of different lengths, or a confidence outside 0 to 1.
    """
    confidence, correct = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    if confidence.shape != correct.shape or confidence.ndim != 1:
        raise ValueError(f"confidence {confidence.shape} and correct {correct.shape}, expected two of shape (N,)")
    if not ((confidence >= 0) & (confidence <= 1)).all():
        raise ValueError("a confidence outside 0 to 1")
    edges = np.arange(num_bins + 1) / num_bins
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, num_bins - 1)  # (N,)
    images = np.bincount(place, minlength=num_bins)
    sums = [np.bincount(place, weights=values, minlength=num_bins) for values in (confidence, correct)]
    return [
        Bin(
            float(edges[b]),
            float(edges[b + 1]),
            int(images[b]),
            float(sums[0][b] / images[b]) if images[b] else None,
            float(sums[1][b] / images[b]) if images[b] else None,
        )
        for b in range(num_bins)
    ]


def expected_calibration_error(
    confidence: npt.NDArray[Any], correct: npt.NDArray[Any], num_bins: int = NUM_BINS
) -> float:
    """The mean distance between confidence and accuracy over the bins, weighted by their images, 0 to 1.

    Raises:
        ValueError: as ``calibration_bins``, or no images.
    """
    bins = calibration_bins(confidence, correct, num_bins)
    total = sum(one.images for one in bins)
    if not total:
        raise ValueError("no images")
    return (
        sum(
            one.images * abs(one.accuracy - one.confidence)
            for one in bins
            if one.accuracy is not None and one.confidence is not None
        )
        / total
    )
