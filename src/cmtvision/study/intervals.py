"""Intervals over seeds: how precisely the mean of a few trainings, or the difference of two networks, is known.

    mean +- t * s / sqrt(k)    (Student's t, k seeds, 95% unless said otherwise)

The interval describes variation over seeds (initial weights, order, augmentation) on the same images; it
says nothing about other images. Two networks are compared seed by seed, so effects common to both cancel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean


@dataclass(frozen=True)
class Interval:
    """A mean with its 95% interval; low and high are None for a single value."""

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
    from scipy.stats import sem, t  # takes a second to import

    half = float(t.ppf(0.975, len(values) - 1) * sem(values))
    return Interval(centre, centre - half, centre + half)


def paired_difference(values: dict[int, float], reference: dict[int, float]) -> Interval | None:
    """Mean of value - reference over the seeds that both have, with its interval; None where they share none."""
    shared = sorted(values.keys() & reference.keys())
    return mean_interval([values[seed] - reference[seed] for seed in shared]) if shared else None
