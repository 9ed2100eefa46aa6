"""A distribution known from n numbers: sorted, and of a long list only so many that a card stays small.

With scores s_(1) <= ... <= s_(n) of images that are exchangeable with the next one, split conformal prediction needs

    quantile(level)  = s_(k),  k = ceil((n + 1) level), infinite where k > n
    share_at_least(x) = (1 + #{i : s_i >= x}) / (n + 1)

Of more than MOST numbers every (n / MOST)-th is kept, the largest among them. Both then err to the safe side: the
quantile is that of the next higher rank that was kept, at most 1 / MOST of the images further up, and a share is
rounded up likewise.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

MOST = 2_000
_DIGITS = 10  # after the point; thresholds are compared with a larger slack
_SLACK = 1e-9  # 10 * 0.9 is 9.000000000000002 in some spellings, and would be rounded up to 10


@dataclass(frozen=True)
class OrderStatistics:
    """Sorted numbers of n images.

    Attributes:
        values: in ascending order, all n of them, or of more than MOST the ranks ceil(j n / m), j = 1 ... m.
        num_images: n.
    """

    values: tuple[float, ...]
    num_images: int

    def __post_init__(self) -> None:
        if not 1 <= len(self.values) <= min(MOST, self.num_images):
            raise ValueError(f"{len(self.values)} scores of {self.num_images} images, expected 1 to {MOST}")
        if len(self.values) < min(MOST, self.num_images):
            raise ValueError(f"{len(self.values)} scores of {self.num_images} images; some are missing")
        if not np.isfinite(self.array).all() or (np.diff(self.array) < 0).any():
            raise ValueError("scores that are no ascending numbers")

    @classmethod
    def of(cls, numbers: npt.NDArray[Any], most: int = MOST) -> "OrderStatistics":
        """From the numbers (n,) in any order. Raises ValueError for none, or one that is not finite."""
        ordered = np.sort(np.asarray(numbers, np.float64).ravel())
        total = len(ordered)
        if total > most:
            ordered = ordered[-(-np.arange(1, most + 1) * total // most) - 1]
        return cls(tuple(round(value, _DIGITS) for value in ordered.tolist()), total)

    @classmethod
    def from_list(cls, values: Iterable[Any], num_images: Any) -> "OrderStatistics":
        """From what JSON holds. Raises ValueError where it makes no sense."""
        if not isinstance(values, list) or len(values) > MOST or not all(is_number(value) for value in values):
            raise ValueError(f"expected a list of at most {MOST} numbers")
        if not isinstance(num_images, int) or isinstance(num_images, bool):
            raise ValueError(f"num_images {num_images!r}, expected a whole number")
        return cls(tuple(float(value) for value in values), num_images)

    @cached_property
    def array(self) -> npt.NDArray[np.float64]:
        """The values as an array (m,)."""
        return np.array(self.values, np.float64)

    def quantile(self, level: float) -> float:
        """The smallest bound that holds for a share ``level`` of new images; infinite where n is too small for it."""
        wanted = math.ceil((self.num_images + 1) * level - _SLACK)
        if wanted > self.num_images:
            return math.inf
        kept = math.ceil(wanted * len(self.values) / self.num_images - _SLACK)
        return self.values[max(kept, 1) - 1]

    def share_at_least(self, numbers: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """For each of the numbers (B,) the share of images, itself among them, whose number is as large; above 0."""
        smaller = np.searchsorted(self.array, np.asarray(numbers, np.float64) - 10.0**-_DIGITS, side="left")  # (B,)
        rank = -(-smaller * self.num_images // len(self.values))
        return np.asarray((1 + self.num_images - rank) / (self.num_images + 1))


def least_images(level: float) -> int:
    """The least n for which a quantile of this level is finite."""
    return math.ceil(level / (1 - level) - _SLACK)


def is_number(value: object) -> bool:
    """Whether a value of JSON is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
