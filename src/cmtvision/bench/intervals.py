"""Intervals over seeds: what the mean of a few trainings, and the difference of two networks, is known to.

    mean +- t * s / sqrt(k)    (Student's t, k seeds, 95% unless said otherwise)

The interval says how much would change with other seeds (first weights, order, augmentation) on the same photos; it
says nothing of other photos. Two networks are compared seed by seed, so what a seed does to both cancels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, mean, stdev

# Student's t for 95%, two-sided, by degrees of freedom from 1
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120)
_Z95 = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Interval:
    """A mean with its 95% interval; low and high are None for a single value, which says nothing of others."""

    mean: float
    low: float | None
    high: float | None


def mean_interval(values: Sequence[float]) -> Interval:
    """The mean of values with its 95% interval by Student's t.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("got no values, expected at least one")
    centre = mean(values)
    if len(values) == 1:
        return Interval(centre, None, None)
    half = _t95(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Interval(centre, centre - half, centre + half)


def paired_difference(values: dict[int, float], reference: dict[int, float]) -> Interval | None:
    """Mean of value - reference over the seeds that both have, with its interval; None where they share none."""
    shared = sorted(values.keys() & reference.keys())
    return mean_interval([values[seed] - reference[seed] for seed in shared]) if shared else None


def _t95(freedom: int) -> float:
    if freedom <= len(_T95):
        return _T95[freedom - 1]
    # beyond the table: the first terms of the Cornish-Fisher expansion, right to 0.001 from 16 on
    z = _Z95
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
