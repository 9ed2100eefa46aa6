"""Evaluation where a photo may have several labels, or none: average precision, and counts at probability 0.5.

Average precision of a class, s the logits of its photos:

    AP = mean over photos i of the class of  |{j of the class: s_j >= s_i}| / |{all j: s_j >= s_i}|

that is, precision at the rank of each of its photos; photos of equal logits share the last of their ranks. So it
depends on no order of photos, and the quotients of whole numbers are added exactly (math.fsum): the result is the same
number however the photos were spread over batches and processes. mAP is the mean over classes that have photos.

Precision, recall and F1 at 0.5 come from integer counts: 'micro' from the sums over all classes, 'macro' as the mean
over the classes that have photos, where a class that was never claimed counts with precision 0.

N photos, C classes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from cmtvision.artefact.predictor import THRESHOLD
from cmtvision.data import Skipped
from cmtvision.data.photos import PhotoPath
from cmtvision.errors import CheckpointError, DataError


@dataclass(frozen=True)
class LabelScore:
    """One class: its photos, how many were claimed and how many of these rightly; shares are None where undefined."""

    name: str
    images: int
    claimed: int
    correct: int
    average_precision: float | None
    recall: float | None
    precision: float | None
    f1: float | None


@dataclass(frozen=True)
class PhotoLabels:
    """One photo: its file, its true and its claimed class numbers, and the probability of every class, (C,)."""

    path: PhotoPath
    labels: tuple[int, ...]
    predicted: tuple[int, ...]
    probabilities: npt.NDArray[np.float32]


@dataclass(frozen=True)
class MultiLabelEvaluation:
    """What an evaluation of several labels a photo counted.

    Attributes:
        classes: class names.
        split: which photos: 'val', 'train', 'test' or 'all'.
        num_images: photos evaluated, N.
        loss: mean binary cross-entropy over photos and classes, in nats.
        exact_match: photos whose claimed labels are exactly the true ones.
        images: photos of each class.
        claimed: photos given each class at probability 0.5.
        correct: those of them that belong to it.
        average_precision: of each class, None for one without photos.
        predictions: one result for each photo, in the order they were given.
        skipped: files left out, with reasons.
        notes: what a person should know of which photos these are, a sentence each.
    """

    classes: list[str]
    split: str
    num_images: int
    loss: float
    exact_match: int
    images: list[int]
    claimed: list[int]
    correct: list[int]
    average_precision: list[float | None]
    predictions: list[PhotoLabels] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def mean_average_precision(self) -> float:
        """mAP, 0 to 1: the mean over the classes that have photos."""
        return _mean_known(self.average_precision)

    @property
    def classes_without_photos(self) -> int:
        """Classes that mAP and the macro figures leave out."""
        return self.images.count(0)

    def per_class(self) -> list[LabelScore]:
        """Every class's scores."""
        scores = []
        rows = zip(self.classes, self.images, self.claimed, self.correct, self.average_precision, strict=True)
        for name, images, claimed, correct, average in rows:
            precision, recall, f1 = _shares(images, claimed, correct)
            scores.append(LabelScore(name, images, claimed, correct, average, recall, precision, f1))
        return scores

    def micro(self) -> dict[str, float]:
        """Precision, recall and F1 of all labels together; 0 where nothing was claimed."""
        values = _shares(sum(self.images), sum(self.claimed), sum(self.correct))
        return dict(zip(("precision", "recall", "f1"), (value or 0.0 for value in values), strict=True))

    def macro(self) -> dict[str, float]:
        """Precision, recall and F1 as means over the classes that have photos."""
        scores = [score for score in self.per_class() if score.images]
        keys = ("precision", "recall", "f1")
        return {key: math.fsum(getattr(score, key) or 0.0 for score in scores) / len(scores) for key in keys}

    def headline(self) -> str:
        """The figure to look at first, in words."""
        return (
            f"mAP: {self.mean_average_precision:.2%}, F1 {self.micro()['f1']:.2%}, "
            f"all labels right: {self.exact_match}/{self.num_images}"
        )

    def summary(self) -> dict[str, Any]:
        """The figures that an artefact carries."""
        return {
            "num_images": self.num_images,
            "map": self.mean_average_precision,
            "micro_f1": self.micro()["f1"],
            "macro_f1": self.macro()["f1"],
            "exact_match": self.exact_match,
            "loss": self.loss,
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything but the single predictions, ready for JSON."""
        return {
            "task": "multi-label",
            "split": self.split,
            "num_images": self.num_images,
            "map": self.mean_average_precision,
            "classes_without_photos": self.classes_without_photos,
            "threshold": THRESHOLD,
            "micro": self.micro(),
            "macro": self.macro(),
            "exact_match": self.exact_match,
            "loss": self.loss,
            "classes": self.classes,
            "per_class": [vars(score) for score in self.per_class()],
            "skipped": [{"path": str(item.path), "reason": item.reason} for item in self.skipped],
            "notes": self.notes,
        }


def multilabel_evaluation(
    classes: Sequence[str],
    logits: torch.Tensor,
    targets: torch.Tensor,
    split: str,
    paths: Sequence[PhotoPath],
    skipped: Sequence[Skipped] = (),
) -> MultiLabelEvaluation:
    """Evaluate a model's answers.

    Args:
        classes: class names, C of them.
        logits: (N, C).
        targets: multi-hot, (N, C), of any type; 0.5 and more is a label.
        split: which photos these are.
        paths: N of them, in the order of the rows.
        skipped: files left out.

    Raises:
        DataError: no photos, or no photo with any label: there is nothing to measure.
        CheckpointError: logits that are not numbers.
    """
    truth = targets >= THRESHOLD
    average = average_precisions(logits, targets)
    _mean_known(average)  # refuses photos without any label
    probabilities = logits.float().sigmoid()
    claims = probabilities >= THRESHOLD
    each = F.binary_cross_entropy_with_logits(logits.double(), truth.double(), reduction="none").mean(dim=1)
    rows = zip(paths, truth.numpy(), claims.numpy(), probabilities.numpy(), strict=True)
    return MultiLabelEvaluation(
        classes=list(classes),
        split=split,
        num_images=len(truth),
        loss=math.fsum(each.tolist()) / len(truth),
        exact_match=int((truth == claims).all(dim=1).sum()),
        images=truth.sum(dim=0).tolist(),
        claimed=claims.sum(dim=0).tolist(),
        correct=(truth & claims).sum(dim=0).tolist(),
        average_precision=average,
        predictions=[PhotoLabels(path, _numbers(true), _numbers(said), row) for path, true, said, row in rows],
        skipped=list(skipped),
    )


def mean_average_precision(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """mAP, 0 to 1, of logits (N, C) and multi-hot targets (N, C); raises what ``multilabel_evaluation`` raises."""
    return _mean_known(average_precisions(logits, targets))


def average_precisions(logits: torch.Tensor, targets: torch.Tensor) -> list[float | None]:
    """Average precision of each of the C classes, None for those without photos; the module's docstring defines it.

    Raises:
        CheckpointError: logits that are not numbers.
    """
    scores, truth = logits.numpy(), targets.numpy() >= THRESHOLD
    if np.isnan(scores).any():
        raise CheckpointError("the model's answers are not numbers (NaN): its weights are damaged or training diverged")
    return [_average_precision(scores[:, c], truth[:, c]) for c in range(scores.shape[1])]


def _average_precision(scores: npt.NDArray[Any], truth: npt.NDArray[np.bool_]) -> float | None:
    order = np.argsort(scores)[::-1]
    scores, found = scores[order], np.cumsum(truth[order])
    if not len(found) or not found[-1]:
        return None
    # the last rank of each run of equal scores, and how many of the class lie within the run
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))
    within = np.diff(found[last], prepend=0)
    precision = found[last] / (last + 1)
    return math.fsum((precision * within).tolist()) / int(found[-1])


def _shares(images: int, claimed: int, correct: int) -> tuple[float | None, float | None, float | None]:
    """Precision, recall and F1 from counts."""
    precision = correct / claimed if claimed else None
    recall = correct / images if images else None
    return precision, recall, 2 * correct / (images + claimed) if images + claimed else None


def _mean_known(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    if not known:
        raise DataError("no photo to evaluate has any label, so there is nothing to measure; label some")
    return math.fsum(known) / len(known)


def _numbers(row: npt.NDArray[np.bool_]) -> tuple[int, ...]:
    return tuple(np.flatnonzero(row).tolist())
