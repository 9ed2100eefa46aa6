"""report.html: one self-contained page about a run, made from its folder alone.

The page loads nothing (its Content-Security-Policy forbids it), every text in it is escaped, and it stays under
3 MB: long tables are cut with a line that says so, and pictures go first.
"""

import math
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from cmtvision.artefact import Predictor, load
from cmtvision.artefact.run.names import REPORT_FILE
from cmtvision.artefact.run.read import LabelScores, RunFolder, Scores, read_run
from cmtvision.errors import DataError
from cmtvision.files import write_text
from cmtvision.report.figures import curves
from cmtvision.report.samples import Samples, sample_predictions
from cmtvision.report.statistics import class_rows, confused_pairs, wilson_interval

MAX_BYTES = 3_000_000
MAX_MATRIX_CLASSES = 30
MAX_CLASS_ROWS = 200
MAX_SKIPPED_ROWS = 200
MAX_NAME = 120
MAX_RECIPE = 50_000
_SMALL_PICTURE = 64  # pixels; smaller ones are shown enlarged, with their pixels visible


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
    html = ""
    for per_group in (12, 4, 0):
        samples = sample_predictions(content, predictor, per_group) if per_group else Samples(note=_NO_ROOM)
        html = _render(content, predictor, samples)
        if len(html.encode(errors="backslashreplace")) < MAX_BYTES:
            break
    else:
        raise DataError(f"{content.folder}: its report would be larger than {MAX_BYTES // 1_000_000} MB")
    path = content.folder / REPORT_FILE
    write_text(path, html)
    return path


_NO_ROOM = "Sample predictions were left out to keep the page small."


def _render(run: RunFolder, predictor: Predictor, samples: Samples) -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(percent=_percent, shorten=_shorten, middle=_shorten_middle)
    template = environment.from_string(
        resources.files("cmtvision.report").joinpath("template.html.j2").read_text(encoding="utf-8")
    )
    artefact = predictor.artefact
    parts = Counter(row.split for row in run.split)
    reasons = Counter(reason for _, reason in run.skipped).most_common()
    mixed = run.recipe.get("augment") if isinstance(run.recipe.get("augment"), dict) else {}
    return template.render(
        run=run,
        data_name=Path(run.data).name or run.data or "unknown data",
        architecture=artefact.architecture,
        preprocess=artefact.preprocess,
        num_classes=len(artefact.classes),
        parameters=sum(parameter.numel() for parameter in artefact.model.parameters()),
        parts=parts,
        duration=_duration(run),
        epochs=len(run.metrics),
        rate=_last(run, "images_per_second"),
        scores=_score_context(run.scores) if not isinstance(run.scores, LabelScores) else None,
        several=_label_context(run.scores) if isinstance(run.scores, LabelScores) else None,
        multi_label=predictor.task == "multi-label",
        charts=curves(run.metrics),
        augmented=any((mixed or {}).get(key) for key in ("mixup", "cutmix", "label_smoothing", "auto_augment")),
        other_loss=_other_loss(run, predictor.task == "multi-label"),
        samples=samples,
        small_picture=_SMALL_PICTURE,
        reasons=reasons[:20],
        skipped=run.skipped[:MAX_SKIPPED_ROWS],
        recipe_text=run.recipe_text[:MAX_RECIPE],
        recipe_cut=len(run.recipe_text) > MAX_RECIPE,
        provenance=_facts(run, predictor),
        python_path=repr(str(run.folder)),
        shell_path=shlex.quote(str(run.folder)),
    )


def _score_context(scores: Scores | None) -> dict[str, Any] | None:
    """What the template shows of an evaluation."""
    if scores is None or not scores.num_images:
        return None
    matrix = None
    if len(scores.classes) <= MAX_MATRIX_CLASSES:
        sums = scores.confusion.images
        matrix = [
            (name, [(int(count), float(count / max(total, 1))) for count in row])
            for name, row, total in zip(scores.classes, scores.confusion.matrix(), sums, strict=True)
        ]
    rows = class_rows(scores.classes, scores.confusion)
    return {
        "split": scores.split,
        "num_images": scores.num_images,
        "top1_correct": scores.top1_correct,
        "interval": wilson_interval(scores.top1_correct, scores.num_images),
        "top5_correct": scores.top5_correct,
        "loss": scores.loss,
        "classes": scores.classes,
        "matrix": matrix,
        "pairs": confused_pairs(scores.classes, scores.confusion, 10 if matrix else 30),
        "rows": rows[:MAX_CLASS_ROWS],
        "rows_left_out": max(0, len(rows) - MAX_CLASS_ROWS),
    }


def _label_context(scores: LabelScores) -> dict[str, Any]:
    """What the template shows of an evaluation of several labels per image."""
    return {
        "scores": scores,
        "rows": scores.rows[:MAX_CLASS_ROWS],
        "rows_left_out": max(0, len(scores.rows) - MAX_CLASS_ROWS),
        "without": sum(row.average_precision is None for row in scores.rows),
    }


def _other_loss(run: RunFolder, several: bool) -> str:
    """The training loss in words, if it differs from the loss on held-out images; else ''."""
    sections = [run.recipe.get(key) for key in ("loss", "distill")]
    loss, distill = (section if isinstance(section, dict) else {} for section in sections)
    own = "bce" if several else "cross_entropy"
    names = {"bce": "binary cross-entropy", "asymmetric": "the asymmetric loss", "cross_entropy": "cross-entropy"}
    said = names.get(str(loss.get("name", own)), "another loss") if loss.get("name", own) != own else ""
    if distill.get("teacher"):
        return f"{said or names[own]} and a teacher's part"
    return said


def _facts(run: RunFolder, predictor: Predictor) -> list[tuple[str, str]]:
    """Everything known about the run's origin, as (name, value), without class lists."""
    artefact = predictor.artefact
    known = {
        "run": {key: value for key, value in run.facts.items() if key != "classes"},
        "model": {"architecture": artefact.architecture, **artefact.arguments},
        "preprocess": artefact.preprocess.to_dict(),
        "provenance": {key: value for key, value in artefact.provenance.items() if key not in ("recipe", "classes")},
    }
    return [(name, _shorten(value, 300)) for name, value in _flat(known)][:200]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)


def _last(run: RunFolder, column: str) -> float | None:
    values = [row[column] for row in run.metrics if math.isfinite(row.get(column, math.nan))]
    return values[-1] if values else None


def _duration(run: RunFolder) -> str:
    seconds = _last(run, "seconds")
    if seconds is None:
        return "not recorded"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _percent(share: float | None, digits: int = 1) -> str:
    return "n/a" if share is None else f"{100 * share:.{digits}f}%"


def _shorten(text: str, length: int = MAX_NAME) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _shorten_middle(text: str, length: int) -> str:
    """Shorten in the middle: names of classes often differ only at the end."""
    head = length * 3 // 5
    return text if len(text) <= length else f"{text[:head]}…{text[head + 1 - length :]}"
