"""report.html: one self-contained page about a run.

Everything that the page says is gathered here, and filled into the templates. ``write_report`` makes the quick page,
which training writes by itself: from the run folder, and sample predictions in a bounded time. ``whole_page`` adds what
only the images can tell (``ImageFindings``). Long tables are cut with a line that says so, and pictures go first where
the page would become too large.
"""

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cmtvision.artefact import Predictor, load
from cmtvision.artefact.run.names import REPORT_FILE
from cmtvision.artefact.run.read import LabelScores, RunFolder, Scores, read_run
from cmtvision.errors import DataError
from cmtvision.files import write_text
from cmtvision.report.figures import curves
from cmtvision.report.folder_facts import augmented, duration, last, other_loss, parameters_of, provenance
from cmtvision.report.html import render
from cmtvision.report.intervals import Interval, wilson_interval
from cmtvision.report.model_card import ModelCard, model_card
from cmtvision.report.samples import Samples, sample_predictions
from cmtvision.report.sections.calibration import Calibration
from cmtvision.report.sections.matrix import MAX_TABLE, matrix
from cmtvision.report.sections.mistakes import Examples, PairPictures
from cmtvision.report.sections.robustness import Robustness
from cmtvision.report.sections.slices import Slices
from cmtvision.report.statistics import class_rows, confused_pairs

MAX_BYTES = 3_000_000
_CLASS_ROWS, _WHOLE_CLASS_ROWS = 200, 1000
_MAX_SKIPPED_ROWS = 200
_MAX_RECIPE = 50_000
_PAIRS, _MANY_PAIRS = 10, 30
_WHICH = {"val": "Held-out", "test": "Test", "train": "Training-image", "all": "All-image"}


@dataclass(frozen=True)
class ImageFindings:
    """What only the images can tell.

    Attributes:
        scores: of the images that were looked at.
        top1, top5: accuracy with intervals; of several labels ``top1`` is the share with all labels right, and there is
            no ``top5``.
        calibration: None where images have several labels.
        slices, examples, pairs, robustness: the sections.
        trained_on: whether the model was trained on some of the images.
    """

    scores: Scores | LabelScores
    top1: Interval
    top5: Interval | None = None
    calibration: Calibration | None = None
    slices: Sequence[Slices] = ()
    examples: Examples | None = None
    pairs: Sequence[PairPictures] = ()
    robustness: Robustness | None = None
    trained_on: bool = False


@dataclass(frozen=True)
class Content:
    """What a page is made from: the folder, its model, and what was found out about the images.

    Attributes:
        run, predictor: the folder and its model.
        card: the model card.
        found: what the images told, None on a page made from the folder alone.
        samples: sample predictions of the quick page.
        notes: what could not be done, and what else to know, a sentence each.
        class_rows: rows of the table of classes, at most.
    """

    run: RunFolder
    predictor: Predictor
    card: ModelCard
    found: ImageFindings | None = None
    samples: Samples | None = None
    notes: Sequence[str] = field(default_factory=list)
    class_rows: int = _WHOLE_CLASS_ROWS


def write_report(run: str | Path) -> Path:
    """Write RUN/report.html from what the run folder holds.

    Sample predictions need the held-out images where they were in training; without them the page says so.

    Args:
        run: the run folder.

    Returns:
        The path of the page.

    Raises:
        CheckpointError: not a run folder, or a model that cannot be loaded, or a file that cannot be written.
        DataError: a damaged file in the run folder.
    """
    content = read_run(run)
    predictor = load(content.folder)
    card = model_card(content, predictor, content.scores)
    html = ""
    for per_group in (12, 4, 0):
        samples = sample_predictions(content, predictor, per_group) if per_group else Samples(note=_NO_ROOM)
        html = page_html(Content(content, predictor, card, samples=samples, class_rows=_CLASS_ROWS))
        if size_of(html) < MAX_BYTES:
            break
    else:
        raise DataError(f"{content.folder}: its report would be larger than {MAX_BYTES // 1_000_000} MB")
    path = content.folder / REPORT_FILE
    write_text(path, html)
    return path


_NO_ROOM = "Sample predictions were left out to keep the page small."


def size_of(html: str) -> int:
    """Bytes of a page in its file."""
    return len(html.encode(errors="backslashreplace"))


def page_html(content: Content) -> str:
    """The page."""
    run, predictor, found = content.run, content.predictor, content.found
    scores = found.scores if found is not None else run.scores
    one_label = scores if isinstance(scores, Scores) and scores.num_images else None
    several = label_context(scores, content.class_rows) if isinstance(scores, LabelScores) else None
    reasons = Counter(reason for _, reason in run.skipped).most_common()
    values: dict[str, Any] = {
        "run": run,
        "data_name": Path(run.data).name or run.data or "unknown data",
        "architecture": predictor.card.architecture,
        "preprocess": predictor.preprocess,
        "num_classes": len(predictor.classes),
        "parameters": parameters_of(predictor),
        "parts": Counter(row.split for row in run.split),
        "duration": duration(run),
        "epochs": len(run.metrics),
        "rate": last(run, "images_per_second"),
        "several": several,
        "multi_label": predictor.task == "multi-label",
        "calibrated": predictor.trust is not None,
        "which": _WHICH.get(scores.split, "All-image") if scores is not None else "",
        "seen_in_training": found.trained_on if found is not None else scores is not None and scores.split != "val",
        "charts": curves(run.metrics),
        "augmented": augmented(run),
        "other_loss": other_loss(run, predictor.task == "multi-label"),
        "samples": content.samples,
        "notes": content.notes,
        "card": content.card,
        "reasons": reasons[:20],
        "skipped": run.skipped[:_MAX_SKIPPED_ROWS],
        "recipe_text": run.recipe_text[:_MAX_RECIPE],
        "recipe_cut": len(run.recipe_text) > _MAX_RECIPE,
        "provenance": provenance(run, predictor),
        "python_path": repr(str(run.folder)),
        "shell_path": shlex.quote(str(run.folder)),
        **score_context(one_label, content.class_rows),
        **_found_context(found, one_label),
    }
    return render("report.html.j2", **values, contents=_contents(values))


def score_context(scores: Scores | None, most_rows: int) -> dict[str, Any]:
    """What the templates show of an evaluation with one label per image."""
    if scores is None:
        return {"scores": None}
    rows = class_rows(scores.classes, scores.confusion)
    many = len(scores.classes) > MAX_TABLE
    return {
        "scores": scores,
        "matrix": matrix(scores.classes, scores.confusion),
        "pairs": confused_pairs(scores.classes, scores.confusion, _MANY_PAIRS if many else _PAIRS),
        "rows": rows[:most_rows],
        "rows_left_out": max(0, len(rows) - most_rows),
    }


def label_context(scores: LabelScores, most_rows: int) -> dict[str, Any]:
    """What the templates show of an evaluation of several labels per image."""
    return {
        "scores": scores,
        "rows": scores.rows[:most_rows],
        "rows_left_out": max(0, len(scores.rows) - most_rows),
        "without": sum(row.average_precision is None for row in scores.rows),
    }


def _found_context(found: ImageFindings | None, scores: Scores | None) -> dict[str, Any]:
    if found is not None:
        return {
            "top1": found.top1,
            "top5": found.top5,
            "calibration": found.calibration,
            "slices": found.slices,
            "examples": found.examples,
            "pair_pictures": found.pairs,
            "robustness": found.robustness,
        }
    top1 = top5 = None
    if scores is not None:
        top1 = _wilson(scores.top1_correct, scores.num_images)
        if scores.top5_correct is not None and len(scores.classes) > 5:
            top5 = _wilson(scores.top5_correct, scores.num_images)
    nothing = dict.fromkeys(("calibration", "slices", "examples", "robustness"))
    return {"top1": top1, "top5": top5, "pair_pictures": (), **nothing}


def _wilson(correct: int, total: int) -> Interval:
    return Interval(correct / total, *wilson_interval(correct, total), "Wilson")


def _contents(values: dict[str, Any]) -> list[tuple[str, str]]:
    """The sections of the page, as (anchor, name)."""
    named = [
        ("curves", "Training", True),
        ("h-confusion", "Confusion", values["scores"]),
        ("h-classes", "Classes", values["scores"] or values["several"]),
        ("h-examples", "Mistakes", values["examples"]),
        ("h-calibration", "Calibration", values["calibration"]),
        ("h-slices", "Slices", values["slices"]),
        ("h-robustness", "Robustness", values["robustness"]),
        ("h-samples", "Samples", values["samples"]),
        ("h-card", "Model card", True),
        ("h-use", "Use", True),
        ("h-provenance", "Provenance", True),
    ]
    return [(anchor, name) for anchor, name, there in named if there]
