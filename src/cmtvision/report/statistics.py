"""The figures a report shows, computed from counts: an interval for accuracy, scores per class, confused pairs."""

import math
from typing import NamedTuple

import numpy as np

from cmtvision.artefact.confusion import Confusion


class ClassRow(NamedTuple):
    """One class: images of it, how many were found, and the shares; None where nothing was counted."""

    name: str
    images: int
    correct: int
    recall: float | None
    precision: float | None


class ConfusedPair(NamedTuple):
    """``photos`` of the ``images`` of class ``true`` were predicted as ``predicted``."""

    true: str
    predicted: str
    photos: int
    images: int


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


def class_rows(classes: list[str], confusion: Confusion) -> list[ClassRow]:
    """Recall and precision of each class, lowest recall first."""
    images, predicted, correct = confusion.images, confusion.claimed, confusion.correct
    rows = [
        ClassRow(
            name,
            int(images[i]),
            int(correct[i]),
            float(correct[i] / images[i]) if images[i] else None,
            float(correct[i] / predicted[i]) if predicted[i] else None,
        )
        for i, name in enumerate(classes)
    ]
    return sorted(rows, key=lambda row: (math.inf if row.recall is None else row.recall, row.name))


def confused_pairs(classes: list[str], confusion: Confusion, most: int) -> list[ConfusedPair]:
    """The pairs of classes with most mistakes, at most ``most`` of them, none with zero."""
    wrong = (confusion.true != confusion.predicted) & (confusion.count > 0)
    true, predicted, count = confusion.true[wrong], confusion.predicted[wrong], confusion.count[wrong]
    images = confusion.images
    order = np.argsort(-count, kind="stable")[:most].tolist()
    return [
        ConfusedPair(classes[true[one]], classes[predicted[one]], int(count[one]), int(images[true[one]]))
        for one in order
    ]
