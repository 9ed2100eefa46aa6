"""What a model said of every image of an evaluation, as columns that the sections of a report are made from.

Where an image has several labels, how sure the model is of it is read from single statements ("there is a dog", "there
is no cat"): of a right answer the least sure one, of a wrong answer the surest of those that are wrong.

N images.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cmtvision.artefact.predictor import THRESHOLD
from cmtvision.data.photos import PhotoPath
from cmtvision.engine import Evaluation, MultiLabelEvaluation
from cmtvision.report.pictures import Answer

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
NO_LABEL = "none of the classes"


@dataclass(frozen=True)
class Answers:
    """What was said of N images, in the order of their files.

    Attributes:
        paths: the images.
        names: their paths from the data's root.
        true, said: their class, and the one that the model named; joined by ', ' where there may be several.
        right: (N,) whether both are the same.
        probability: (N,) of what was said; with several labels that of the deciding statement (see above).
        true_probability: (N,) of the image's own class; NaN with several labels.
        margin: (N,) by how much the answer leads the next one, 0 to 1.
        in_five: (N,) whether the image's class is among the first five; ``right`` with several labels.
        several: whether an image may have several labels.
    """

    paths: list[PhotoPath]
    names: list[str]
    true: list[str]
    said: list[str]
    right: Flags
    probability: Floats
    true_probability: Floats
    margin: Floats
    in_five: Flags
    several: bool

    def __len__(self) -> int:
        return len(self.paths)

    def at(self, places: Iterable[int]) -> list[Answer]:
        """Some of the images, for cards."""
        return [
            Answer(
                self.paths[i],
                self.true[i],
                self.said[i],
                float(self.probability[i]),
                None if self.several else float(self.true_probability[i]),
            )
            for i in places
        ]


def answers_of(evaluation: Evaluation | MultiLabelEvaluation, relative: Callable[[PhotoPath], str] = str) -> Answers:
    """The columns of an evaluation.

    Args:
        evaluation: with its predictions.
        relative: gives an image's name, its path from the data's root.
    """
    if isinstance(evaluation, MultiLabelEvaluation):
        return _several(evaluation, relative)
    ones, classes = evaluation.predictions, evaluation.classes
    label, predicted = (np.array([getattr(one, key) for one in ones], np.int64) for key in ("label", "predicted"))
    return Answers(
        [one.path for one in ones],
        [relative(one.path) for one in ones],
        [classes[i] for i in label.tolist()],
        [classes[i] for i in predicted.tolist()],
        label == predicted,
        np.array([one.probability for one in ones], np.float64),
        np.array([one.true_probability for one in ones], np.float64),
        np.array([one.margin for one in ones], np.float64),
        np.array([one.in_five for one in ones], bool),
        False,
    )


def _several(evaluation: MultiLabelEvaluation, relative: Callable[[PhotoPath], str]) -> Answers:
    ones, classes = evaluation.predictions, evaluation.classes
    right = np.array([one.labels == one.predicted for one in ones], bool)
    sure = np.array([deciding(one.labels, one.probabilities) for one in ones], np.float64)
    return Answers(
        [one.path for one in ones],
        [relative(one.path) for one in ones],
        [joined(classes[i] for i in one.labels) for one in ones],
        [joined(classes[i] for i in one.predicted) for one in ones],
        right,
        sure,
        np.full(len(ones), np.nan),
        2 * sure - 1,
        right,
        True,
    )


def deciding(labels: tuple[int, ...], probabilities: npt.NDArray[np.float32]) -> float:
    """How sure the deciding statement on an image is, of the probabilities (C,) of its labels, 0.5 to 1."""
    truth = np.zeros(len(probabilities), bool)
    truth[list(labels)] = True
    claims = probabilities >= THRESHOLD
    sure = np.where(claims, probabilities, 1 - probabilities)
    wrong = truth != claims
    return float(sure[wrong].max() if wrong.any() else sure.min())


def joined(names: Iterable[str]) -> str:
    """Several classes as one text."""
    return ", ".join(names) or NO_LABEL
