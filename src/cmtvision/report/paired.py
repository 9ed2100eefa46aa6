"""Two models on the same images: McNemar's exact test, and the difference of their accuracies with an interval.

Of n images, ``both`` are recognised by both models, ``only_a`` and ``only_b`` by one of them, ``neither`` by none. If
the models were equally good, each image that they disagree on would be as likely to be A's as B's: the p-value is that
of a fair coin (McNemar 1947; exact, two-sided). The interval is Newcombe's for paired shares (1998, Statistics in
Medicine 17, 2635, method 10), from the Wilson intervals of both and their correlation.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cmtvision.report.intervals import Interval, wilson_intervals


@dataclass(frozen=True)
class Paired:
    """How two models did on the same images: counts of those that both, one or none recognised."""

    both: int
    only_a: int
    only_b: int
    neither: int

    @classmethod
    def of(cls, right_a: npt.NDArray[Any], right_b: npt.NDArray[Any]) -> "Paired":
        """From whether each image was recognised by A and by B, (N,) each. Raises ValueError for other shapes."""
        a, b = np.asarray(right_a, bool), np.asarray(right_b, bool)
        if a.shape != b.shape or a.ndim != 1:
            raise ValueError(f"answers {a.shape} and {b.shape}, expected two of shape (N,)")
        return cls(*(int(part.sum()) for part in (a & b, a & ~b, ~a & b, ~a & ~b)))

    @property
    def num_images(self) -> int:
        """n, of all four kinds."""
        return self.both + self.only_a + self.only_b + self.neither

    @property
    def top1(self) -> tuple[float, float]:
        """The accuracy of A and of B, 0 to 1."""
        return (self.both + self.only_a) / self.num_images, (self.both + self.only_b) / self.num_images

    def mcnemar(self) -> float:
        """The probability of a disagreement at least as one-sided, were both models equally good; 1 without any."""
        if not self.only_a + self.only_b:
            return 1.0
        from scipy.stats import binomtest

        return float(binomtest(self.only_b, self.only_a + self.only_b, 0.5).pvalue)

    def difference(self) -> Interval:
        """Accuracy of B minus that of A with its 95% interval, each within -1..1."""
        n = self.num_images
        right_b, right_a = self.both + self.only_b, self.both + self.only_a
        b, a = right_b / n, right_a / n
        low, high = wilson_intervals(np.array([right_b, right_a]), np.array([n, n]))
        (low_b, low_a), (high_b, high_a) = low.tolist(), high.tolist()
        phi = self._correlation()
        below = _root((b - low_b) ** 2 - 2 * phi * (b - low_b) * (high_a - a) + (high_a - a) ** 2)
        above = _root((high_b - b) ** 2 - 2 * phi * (high_b - b) * (a - low_a) + (a - low_a) ** 2)
        return Interval(b - a, b - a - below, b - a + above, "Newcombe")

    def _correlation(self) -> float:
        """The phi coefficient of the two models' answers, continuity-corrected where it is positive."""
        right_a, right_b, n = self.both + self.only_a, self.both + self.only_b, self.num_images
        product = right_a * (n - right_a) * right_b * (n - right_b)
        if not product:
            return 0.0
        cross = self.both * self.neither - self.only_a * self.only_b
        return (max(cross - n / 2, 0.0) if cross > 0 else float(cross)) / math.sqrt(product)


def _root(value: float) -> float:
    return math.sqrt(max(0.0, value))
