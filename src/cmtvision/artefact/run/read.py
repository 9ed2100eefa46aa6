"""What a run folder says, read back: recipe, facts, curves, evaluation, split and skipped files.

Only recipe.yaml and run.json must be there; whatever else is missing leaves its part of the report out.
"""

import csv
import io
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from cmtvision.artefact.card import DENSE
from cmtvision.artefact.confusion import Confusion
from cmtvision.artefact.run.names import (
    EVALUATION_FILE,
    METRICS_FILE,
    RECIPE_FILE,
    RUN_FILE,
    SKIPPED_FILE,
    SPLIT_FILE,
)
from cmtvision.data.listing.index import from_spelled
from cmtvision.errors import CheckpointError, DataError

MAX_BYTES = 200_000_000


class SplitRow(NamedTuple):
    """One photo of split.csv: its path from the data's root, its class, its part ('train', 'val' or 'test')."""

    path: str
    label: str
    split: str


@dataclass(frozen=True)
class Scores:
    """What evaluation.json says.

    Attributes:
        classes: class names, the order of the confusion matrix.
        confusion: which class was taken for which.
        top5_correct: images whose class is among the five most probable, None where it was not written.
        loss: mean cross-entropy, None where it was not written.
        split: 'val' (held out), 'train', 'test' or 'all'.
    """

    classes: list[str]
    confusion: Confusion
    top5_correct: int | None
    loss: float | None
    split: str

    @property
    def num_images(self) -> int:
        """Images evaluated."""
        return int(self.confusion.count.sum())

    @property
    def top1_correct(self) -> int:
        """Images whose most probable class is the true one."""
        return int(self.confusion.correct.sum())


class LabelRow(NamedTuple):
    """One class of a multi-label run: its photos, and shares within 0..1, None where undefined."""

    name: str
    images: int
    average_precision: float | None
    recall: float | None
    precision: float | None
    f1: float | None


@dataclass(frozen=True)
class LabelScores:
    """What evaluation.json says of a multi-label run.

    Attributes:
        mean_average_precision: mean over the classes that have photos, 0 to 1.
        micro_f1, macro_f1: F1 at probability 0.5, of all labels together and as a mean over classes.
        exact_match: images whose claimed labels are exactly the true ones.
        num_images: images evaluated.
        loss: mean binary cross-entropy, None where it was not written.
        split: 'val' (held out), 'train', 'test' or 'all'.
        rows: every class, lowest average precision first, classes without photos last.
    """

    mean_average_precision: float
    micro_f1: float
    macro_f1: float
    exact_match: int
    num_images: int
    loss: float | None
    split: str
    rows: list[LabelRow]


@dataclass(frozen=True)
class RunFolder:
    """A finished run as its folder describes it.

    Attributes:
        folder: where it is.
        recipe: recipe.yaml parsed, and ``recipe_text`` as it stands.
        facts: run.json.
        metrics: rows of metrics.csv; a value that was not measured is NaN.
        scores: evaluation.json, None where nothing was held out; LabelScores where photos have several labels.
        split: rows of split.csv.
        skipped: (path, reason) of files that were left out.
        evaluation: evaluation.json of a detector or segmenter as it stands, {} where nothing was held out.
    """

    folder: Path
    recipe: dict[str, Any]
    recipe_text: str
    facts: dict[str, Any]
    metrics: list[dict[str, float]]
    scores: Scores | LabelScores | None
    split: list[SplitRow]
    skipped: list[tuple[str, str]]
    evaluation: dict[str, Any] = field(default_factory=dict)

    @property
    def data(self) -> str:
        """Where the data was when the run was trained, '' where run.json does not say."""
        return str(self.facts.get("data") or self.facts.get("data_root") or "")

    @property
    def data_root(self) -> Path | None:
        """The folder that the split's paths start from: the data's folder, or the one a CSV stands in."""
        named = self.facts.get("data_root") or self.facts.get("root")
        if named:
            return Path(str(named))
        if not self.data:
            return None
        path = Path(self.data)
        return path.parent if path.suffix.lower() == ".csv" else path


def read_run(run: str | Path) -> RunFolder:
    """Read a run folder.

    Raises:
        CheckpointError: no such folder, or a folder that is not a run.
        DataError: one of its files is damaged or too large.
    """
    folder = Path(run)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; expected a run folder that `cmtvision train` wrote")
    for name in (RECIPE_FILE, RUN_FILE):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder}: not a run folder (no {name}); expected one that `cmtvision train` wrote")
    recipe_text = _text(folder / RECIPE_FILE)
    try:
        recipe = yaml.safe_load(recipe_text)
    except yaml.YAMLError as error:
        raise DataError(f"{folder / RECIPE_FILE}: not valid YAML ({' '.join(str(error).split())})") from None
    return RunFolder(
        folder=folder,
        recipe=recipe if isinstance(recipe, dict) else {},
        recipe_text=recipe_text,
        facts=_json(folder / RUN_FILE),
        metrics=[{key: _number(value) for key, value in row.items() if key} for row in _rows(folder / METRICS_FILE)],
        scores=_scores(folder / EVALUATION_FILE),
        split=[
            SplitRow(from_spelled(row.get("path", "")), from_spelled(row.get("label", "")), row.get("split", ""))
            for row in _rows(folder / SPLIT_FILE)
        ],
        skipped=[(row.get("path", ""), row.get("reason", "")) for row in _rows(folder / SKIPPED_FILE)],
        evaluation=_dense_scores(folder / EVALUATION_FILE),
    )


def _scores(path: Path) -> Scores | LabelScores | None:
    if not path.is_file():
        return None
    content = _json(path)
    if content.get("task") in DENSE:
        return None
    try:
        if content.get("task") == "multi-label":
            return label_scores(content)
        classes = [str(name) for name in content["classes"]]
        confusion = Confusion.from_json(content["confusion"], len(classes))
        top5, loss = content.get("top5_correct"), content.get("loss")
        return Scores(
            classes=classes,
            confusion=confusion,
            top5_correct=None if top5 is None else int(top5),
            loss=None if loss is None else float(loss),
            split=str(content.get("split", "val")),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not an evaluation ({error}); run `cmtvision eval` again") from None


def _dense_scores(path: Path) -> dict[str, Any]:
    content = _json(path) if path.is_file() else {}
    return content if content.get("task") in DENSE else {}


def label_scores(content: dict[str, Any]) -> LabelScores:
    """What a multi-label evaluation's JSON says. Raises KeyError, TypeError or ValueError where it makes no sense."""

    def share(value: Any) -> float | None:
        return None if value is None else float(value)

    rows = [
        LabelRow(str(one["name"]), int(one["images"]), *(share(one[key]) for key in LabelRow._fields[2:]))
        for one in content["per_class"]
    ]
    known = [row.average_precision for row in rows]
    if any(value is not None and not 0 <= value <= 1 for value in known):
        raise ValueError("an average precision outside 0..1")
    return LabelScores(
        mean_average_precision=float(content["map"]),
        micro_f1=float(content["micro"]["f1"]),
        macro_f1=float(content["macro"]["f1"]),
        exact_match=int(content["exact_match"]),
        num_images=int(content["num_images"]),
        loss=share(content.get("loss")),
        split=str(content.get("split", "val")),
        rows=sorted(
            rows, key=lambda row: (math.inf if row.average_precision is None else row.average_precision, row.name)
        ),
    )


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path}: larger than {MAX_BYTES // 1_000_000} MB; not a file of a run")
        return path.read_bytes().decode("utf-8")  # line ends as they are: a file's name may hold one
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_text(path))
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    try:
        # a row cut short gives None for what it lacks
        rows = csv.DictReader(io.StringIO(_text(path), newline=""))
        return [{key: value or "" for key, value in row.items()} for row in rows]
    except csv.Error as error:
        raise DataError(f"{path}: not valid CSV ({error})") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except (TypeError, ValueError):
        return math.nan
