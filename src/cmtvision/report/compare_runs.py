"""Two models on the same images: who recognises which, whether the difference is more than chance, and a page of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from cmtvision.artefact import Predictor, load
from cmtvision.artefact.run.data import as_the_run, check_local, data_of, read_for_the_run
from cmtvision.data import DatasetIndex, PhotoPath, Sample
from cmtvision.engine.evaluation.evaluate import choose_samples, evaluate_samples
from cmtvision.errors import ConfigError, DataError
from cmtvision.recipe import DataSection
from cmtvision.report.answers import Answers, answers_of
from cmtvision.report.evaluated import Stage
from cmtvision.report.html import render
from cmtvision.report.paired import Paired
from cmtvision.report.pictures import thumbnail

MAX_PICTURES = 24
_MAX_CLASSES = 200
_LEVEL = 0.05


class ClassDifference(NamedTuple):
    """One class: its images, the share that A and B recognise, and how many only one of them does."""

    name: str
    images: int
    recall_a: float
    recall_b: float
    lost: int
    gained: int
    remark: str


class Changed(NamedTuple):
    """An image that only one model recognises: what both said of it, and its picture."""

    path: PhotoPath
    true: str
    said_a: str
    sure_a: float
    said_b: str
    sure_b: float
    picture: str
    width: int
    height: int


@dataclass(frozen=True)
class RunComparison:
    """Two models on the same images.

    Attributes:
        names: of A and B.
        architectures: of A and B.
        split: which images: 'val', 'test' or 'all'.
        paired: the counts, with their test and interval.
        answers: of A and B, image by image in the same order.
        classes: every class with images, the largest difference first.
        several: an image may have several labels; it counts as recognised where all are right.
    """

    names: tuple[str, str]
    architectures: tuple[str, str]
    split: str
    paired: Paired
    answers: tuple[Answers, Answers]
    classes: list[ClassDifference]
    several: bool

    def verdict(self) -> str:
        """What the test says, in words."""
        p = self.paired.mcnemar()
        if p >= _LEVEL:
            return "these images do not tell which is better"
        return f"{self.names[1] if self.paired.only_b > self.paired.only_a else self.names[0]} is better"

    def to_dict(self) -> dict[str, Any]:
        """Everything but the pictures, ready for JSON."""
        paired, (a, b) = self.paired, self.paired.top1
        difference = paired.difference()
        only_a, only_b = self.places()
        answers = self.answers[0]
        return {
            "a": self.names[0],
            "b": self.names[1],
            "split": self.split,
            "num_images": paired.num_images,
            "top1_a": a,
            "top1_b": b,
            "difference": {"value": difference.value, "low": difference.low, "high": difference.high},
            "both": paired.both,
            "only_a": paired.only_a,
            "only_b": paired.only_b,
            "neither": paired.neither,
            "mcnemar_p": paired.mcnemar(),
            "classes": [one._asdict() for one in self.classes],
            "lost": [answers.names[i] for i in only_a],
            "gained": [answers.names[i] for i in only_b],
        }

    def places(self) -> tuple[list[int], list[int]]:
        """The places of the images that only A, and of those that only B recognises, those it is surest of first."""
        a, b = self.answers
        found = []
        for one, other in ((a, b), (b, a)):
            only = np.flatnonzero(one.right & ~other.right)
            found.append(only[np.argsort(-one.probability[only], kind="stable")].tolist())
        return found[0], found[1]


def compare_runs(
    a: str | Path,
    b: str | Path,
    data: str | Path | None,
    stage: Stage,
    *,
    split: Literal["val", "test"] = "val",
    batch_size: int = 128,
    workers: int | None = None,
    device: str = "auto",
) -> RunComparison:
    """Compare two models on images that neither was trained on.

    Args:
        a, b: run folders, artefacts or exports.
        data: the images; by default those of A's training, of which the held-out ones are taken.
        stage: gives a progress callback for each long piece of work, by its name.
        split: 'val' or 'test', as for ``evaluate``.
        batch_size: images at a time.
        workers: loader processes; None chooses.
        device: 'auto', 'cpu', 'cuda' or 'mps'.

    Raises:
        CheckpointError: a model that cannot be opened.
        ConfigError: models of different classes, or of different tasks.
        DataError: no data, data that cannot be used, or images among them that either was trained on.
    """
    models = load(a, device), load(b, device)
    _check_comparable(a, b, *models)
    where = data if data is not None else data_of(a)
    if where is None:
        raise DataError(f"{a}: does not say where its images are; give them: cmtvision compare-runs A B DATA")
    if data is None:
        check_local(str(where))
    several = models[0].task == "multi-label"
    with stage("reading images") as progress:
        images = read_for_the_run(a, where, classes=models[0].classes, multi_label=several, progress=progress)
    indices = [
        as_the_run(folder, images, model.card.data_fingerprint) for folder, model in zip((a, b), models, strict=True)
    ]
    samples, chosen = _seen_by_neither(a, b, indices, split)
    number = {name: place for place, name in enumerate(models[1].classes)}
    # B may have the classes in another order
    renamed = [number[name] for name in models[0].classes]
    for_b = [
        Sample(one.path, renamed[one.label] if one.label >= 0 else -1, tuple(sorted(renamed[i] for i in one.labels)))
        for one in samples
    ]
    section = DataSection(workers=workers, multi_label=several)
    answers = []
    for which, model, mine in zip("AB", models, (samples, for_b), strict=True):
        with stage(f"predicting with {which}") as progress:
            found = evaluate_samples(model, mine, section, batch_size, chosen, progress=progress)
        answers.append(answers_of(found, indices[0].relative))
    first, second = answers
    return RunComparison(
        _names(a, b),
        (models[0].card.architecture, models[1].card.architecture),
        chosen,
        Paired.of(first.right, second.right),
        (first, second),
        _classes(first, second),
        first.several,
    )


def _check_comparable(a: str | Path, b: str | Path, first: Predictor, second: Predictor) -> None:
    if first.task != second.task:
        raise ConfigError(f"{a} is {first.task} and {b} is {second.task}: there is no comparing them image by image")
    only = [sorted(set(one.classes) - set(other.classes)) for one, other in ((first, second), (second, first))]
    if any(only):
        said = "; ".join(
            f"only {folder} knows {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
            for folder, names in zip((a, b), only, strict=True)
            if names
        )
        raise ConfigError(f"the two models have different classes ({said}); compare models of the same classes")


def _seen_by_neither(
    a: str | Path, b: str | Path, indices: list[DatasetIndex], split: Literal["val", "test"]
) -> tuple[list[Sample], str]:
    """The images to compare on. Raises DataError where there are none, or B was trained on some of A's."""
    samples, chosen = choose_samples(indices[0], split)
    choose_samples(indices[1], split)  # refuses images that B was trained on altogether
    trained = {one.path for one in indices[1].train} if indices[1].split_source == "run" else set()
    known = sum(one.path in trained for one in samples)
    if known:
        raise DataError(
            f"{indices[0].source}: {b} was trained on {known:,} of the {len(samples):,} images that {a} held out; "
            "give images that neither has seen"
        )
    return samples, chosen


def _names(a: str | Path, b: str | Path) -> tuple[str, str]:
    """The folders' names, or their paths where they are called the same."""
    names = Path(a).resolve().name, Path(b).resolve().name
    return names if names[0] != names[1] else (str(a), str(b))


def _classes(a: Answers, b: Answers) -> list[ClassDifference]:
    """Every class with images, the largest difference first; with several labels, every set of labels."""
    names, number = np.unique(np.array(a.true, dtype=object).astype(str), return_inverse=True)
    sums = [np.bincount(number, weights=part, minlength=len(names)).astype(int) for part in (
        np.ones(len(a)), a.right, b.right, a.right & ~b.right, ~a.right & b.right)]  # fmt: skip
    rows = []
    for name, images, right_a, right_b, lost, gained in zip(
        names.tolist(), *(part.tolist() for part in sums), strict=True
    ):
        told = Paired(right_a - lost, lost, gained, images - right_a - gained).mcnemar() < _LEVEL / len(names)
        remark = "" if not told else "better" if gained > lost else "worse"
        rows.append(ClassDifference(name, images, right_a / images, right_b / images, lost, gained, remark))
    return sorted(rows, key=lambda row: (-abs(row.recall_b - row.recall_a), row.name))


def comparison_page(comparison: RunComparison) -> str:
    """The page of a comparison: the figures, the classes, and pictures of images gained and lost."""
    lost, gained = (places[:MAX_PICTURES] for places in comparison.places())
    paired = comparison.paired
    return render(
        "compare_runs.html.j2",
        one=comparison,
        paired=paired,
        top1=paired.top1,
        difference=paired.difference(),
        p=paired.mcnemar(),
        verdict=comparison.verdict(),
        rows=comparison.classes[:_MAX_CLASSES],
        rows_left_out=max(0, len(comparison.classes) - _MAX_CLASSES),
        groups=[
            ("gained", f"Recognised by {comparison.names[1]} only", _changed(comparison, gained), paired.only_b),
            ("lost", f"Recognised by {comparison.names[0]} only", _changed(comparison, lost), paired.only_a),
        ],
    )


def _changed(comparison: RunComparison, places: list[int]) -> list[Changed]:
    a, b = comparison.answers
    return [
        Changed(
            a.paths[i], a.true[i], a.said[i], float(a.probability[i]), b.said[i], float(b.probability[i]),
            *thumbnail(a.paths[i]),
        )
        for i in places
    ]  # fmt: skip
