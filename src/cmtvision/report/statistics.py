"""The figures a report shows of its classes, computed from counts: shares with intervals, and confused pairs."""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cmtvision.artefact.confusion import Confusion
from cmtvision.report.intervals import wilson_intervals


class Share(NamedTuple):
    """A share within 0..1 and its 95% interval; all None where nothing was counted."""

    value: float | None
    low: float | None
    high: float | None


class ClassRow(NamedTuple):
    """One class: images of it, how many were found, and its shares; None where nothing was counted."""

    name: str
    images: int
    correct: int
    recall: float | None
    precision: float | None
    f1: float | None
    intervals: tuple[Share, Share, Share]
    """Of recall, precision and F1."""


class ConfusedPair(NamedTuple):
    """``photos`` of the ``images`` of class ``true`` were predicted as ``predicted``."""

    true: str
    predicted: str
    photos: int
    images: int


def class_rows(classes: list[str], confusion: Confusion) -> list[ClassRow]:
    """Recall, precision and F1 of each class, lowest recall first."""
    images, claimed, correct = confusion.images, confusion.claimed, confusion.correct
    shares = class_shares(images, claimed, correct)
    rows = [
        ClassRow(
            name, int(images[i]), int(correct[i]), recall.value, precision.value, f1.value, (recall, precision, f1)
        )
        for i, (name, (recall, precision, f1)) in enumerate(zip(classes, shares, strict=True))
    ]
    return sorted(rows, key=lambda row: (math.inf if row.recall is None else row.recall, row.name))


def class_shares(
    images: npt.NDArray[np.int64], claimed: npt.NDArray[np.int64], correct: npt.NDArray[np.int64]
) -> list[tuple[Share, Share, Share]]:
    """Recall, precision and F1 of each of C classes, with Wilson intervals.

    F1 has one too: of the m = images + claimed - correct images that are of the class or were taken for it, a share
    J = correct / m is both, and F1 = 2J / (1 + J) rises with J. So the interval of J, put through this, is that of F1.

    Args:
        images, claimed, correct: (C,) images of the class, images taken for it, and how many are both.
    """
    both = images + claimed - correct
    kinds = []
    for total in (images, claimed, both):
        low, high = wilson_intervals(correct, total)
        value = correct / np.maximum(total, 1)
        if total is both:
            low, high, value = (2 * part / (1 + part) for part in (low, high, value))
        kinds.append(
            [
                Share(float(v), float(a), float(b)) if count else Share(None, None, None)
                for v, a, b, count in zip(value, low, high, total.tolist(), strict=True)
            ]
        )
    return list(zip(*kinds, strict=True))


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
