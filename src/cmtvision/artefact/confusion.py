"""Which class was taken for which, and how often, for any number of classes.

Only pairs that occur are kept, never more than there are photos: a matrix of ImageNet-21k's 21,841 classes has 477
million places. JSON has the matrix as rows up to MATRIX_CLASSES classes, and beyond that three columns of equal length.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

MATRIX_CLASSES = 1000
_COLUMNS = ("true", "predicted", "count")


@dataclass(frozen=True)
class Confusion:
    """Counts of (true, predicted) pairs.

    Attributes:
        num_classes: C.
        true, predicted, count: int64 (M,), of the pairs that occur, sorted by true, then predicted.
    """

    num_classes: int
    true: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.int64]
    count: npt.NDArray[np.int64]

    @classmethod
    def of(cls, true: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64], num_classes: int) -> "Confusion":
        """From the true and the predicted class number of each photo."""
        pairs, count = np.unique(true * num_classes + predicted, return_counts=True)
        return cls(num_classes, pairs // num_classes, pairs % num_classes, count.astype(np.int64))

    @classmethod
    def from_json(cls, content: Any, num_classes: int) -> "Confusion":
        """From what ``to_json`` gives. Raises KeyError, TypeError or ValueError where it makes no sense."""
        if isinstance(content, dict):
            true, predicted, count = (np.asarray(content[key], dtype=np.int64).reshape(-1) for key in _COLUMNS)
            if not len(true) == len(predicted) == len(count):
                raise ValueError("confusion with columns of unequal length")
            places = np.concatenate([true, predicted])
            if places.size and not 0 <= places.min() <= places.max() < num_classes:
                raise ValueError(f"confusion of a class outside 0..{num_classes - 1}")
        else:
            matrix = np.asarray(content, dtype=np.int64)
            if matrix.shape != (num_classes, num_classes):
                raise ValueError(f"confusion of shape {matrix.shape} for {num_classes} classes")
            true, predicted = np.nonzero(matrix)
            count = matrix[true, predicted]
        if (count < 0).any():
            raise ValueError("confusion with counts below 0")
        return cls(num_classes, true, predicted, count)

    def to_json(self) -> list[list[int]] | dict[str, list[int]]:
        """Rows of the matrix, [true][predicted], or for more than MATRIX_CLASSES classes the columns."""
        if self.num_classes <= MATRIX_CLASSES:
            rows: list[list[int]] = self.matrix().tolist()
            return rows
        return {key: getattr(self, key).tolist() for key in _COLUMNS}

    def matrix(self) -> npt.NDArray[np.int64]:
        """All counts, (C, C), [true, predicted]; 3.8 GB for 21,841 classes."""
        matrix = np.zeros((self.num_classes, self.num_classes), dtype=np.int64)
        matrix[self.true, self.predicted] = self.count
        return matrix

    @property
    def images(self) -> npt.NDArray[np.int64]:
        """Photos of each class, (C,)."""
        return self._sums(self.true, self.count)

    @property
    def claimed(self) -> npt.NDArray[np.int64]:
        """Photos taken for each class, (C,)."""
        return self._sums(self.predicted, self.count)

    @property
    def correct(self) -> npt.NDArray[np.int64]:
        """Photos of each class that were recognised, (C,)."""
        right = self.true == self.predicted
        return self._sums(self.true[right], self.count[right])

    def _sums(self, classes: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        sums = np.zeros(self.num_classes, dtype=np.int64)
        np.add.at(sums, classes, counts)
        return sums
