"""95% intervals: what the number of images allows to say about a share, a mean or a difference.

Percentile bootstrap (Efron 1979): the images are drawn again with replacement, DRAWS times, and the interval reaches
from the 2.5th to the 97.5th percentile of the means. Of 0 and 1, a redrawn sum is binomial, so it is drawn at once.
With fewer than FEW images on either side such an interval is too short (at 100% it has no length), and Wilson's score
interval takes its place (Wilson 1927; Newcombe 1998, Statistics in Medicine 17, 857).

N images.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

DRAWS = 4000
FEW = 10
_CELLS = 4_000_000  # values that are drawn at a time


class Interval(NamedTuple):
    """A figure with its 95% interval, all in the figure's own unit; ``method`` is 'bootstrap' or 'Wilson'."""

    value: float
    low: float
    high: float
    method: str


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """The 95% Wilson score interval of a share, as (low, high) within 0..1.

    Unlike share +- z * standard error it stays within 0..1 and is right for few images and for accuracy near 100%.

    Raises:
        ValueError: no images, or more correct than there are.
    """
    if total < 1 or not 0 <= correct <= total:
        raise ValueError(f"got {correct} of {total}, expected 0 <= correct <= total and total >= 1")
    from scipy.stats import binomtest  # takes a second to import

    interval = binomtest(correct, total).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def wilson_intervals(
    correct: npt.NDArray[Any], total: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """``wilson_interval`` of many shares at once, (low, high) of their shape; NaN where the total is 0."""
    z = 1.959963984540054
    n = np.asarray(total, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.asarray(correct, np.float64) / n
        centre = (share + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)


def share_interval(correct: int, total: int, seed: int = 0) -> Interval:
    """A share with its bootstrap interval, or with Wilson's where fewer than FEW are right or fewer than FEW wrong.

    Raises:
        ValueError: as ``wilson_interval``.
    """
    if min(correct, total - correct) < FEW:
        return Interval(correct / max(total, 1), *wilson_interval(correct, total), "Wilson")
    drawn = np.random.default_rng(seed).binomial(total, correct / total, DRAWS) / total
    return Interval(correct / total, *_percentiles(drawn), "bootstrap")


def mean_interval(values: npt.ArrayLike, seed: int = 0, draws: int = DRAWS) -> Interval:
    """The mean of values (N,) with its bootstrap interval.

    Raises:
        ValueError: no values.
    """
    numbers = np.asarray(values, np.float64)
    if numbers.ndim != 1 or not len(numbers):
        raise ValueError(f"values of shape {numbers.shape}, expected (N,) with N >= 1")
    rng = np.random.default_rng(seed)
    count = len(numbers)
    at_once = max(1, _CELLS // count)
    means = [
        numbers[rng.integers(0, count, (min(at_once, draws - begun), count), dtype=np.int32)].mean(axis=1)
        for begun in range(0, draws, at_once)
    ]
    return Interval(float(numbers.mean()), *_percentiles(np.concatenate(means)), "bootstrap")


def _percentiles(drawn: npt.NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)
