"""What a run folder says about the run, in words and flat lists, for a page and for the model card."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from cmtvision.artefact import Predictor
from cmtvision.artefact.run.read import RunFolder
from cmtvision.report.html import shorten

_MAX_VALUE, _MAX_FACTS = 300, 200


def section(run: RunFolder, name: str) -> dict[str, Any]:
    """A section of the recipe, empty where it has none."""
    found = run.recipe.get(name)
    return found if isinstance(found, dict) else {}


def last(run: RunFolder, column: str) -> float | None:
    """The last value of a column of metrics.csv that was measured."""
    values = [row[column] for row in run.metrics if math.isfinite(row.get(column, math.nan))]
    return values[-1] if values else None


def duration(run: RunFolder) -> str:
    """How long the run trained, in words."""
    seconds = last(run, "seconds")
    if seconds is None:
        return "not recorded"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def other_loss(run: RunFolder, several: bool) -> str:
    """The training loss in words, if it differs from the loss on held-out images; else ''."""
    loss, distill = section(run, "loss"), section(run, "distill")
    own = "bce" if several else "cross_entropy"
    names = {"bce": "binary cross-entropy", "asymmetric": "the asymmetric loss", "cross_entropy": "cross-entropy"}
    said = names.get(str(loss.get("name", own)), "another loss") if loss.get("name", own) != own else ""
    if distill.get("teacher"):
        return f"{said or names[own]} and a teacher's part"
    return said


def augmented(run: RunFolder) -> bool:
    """Whether training saw images or labels so changed that its loss says little."""
    mixed = section(run, "augment")
    return any(mixed.get(key) for key in ("mixup", "cutmix", "label_smoothing", "auto_augment"))


def parameters_of(predictor: Predictor) -> int | None:
    """How many numbers the model has learned; None for an export, whose card does not say."""
    if predictor.card.export is not None:
        return None
    return sum(parameter.numel() for parameter in predictor.artefact.model.parameters())


def provenance(run: RunFolder, predictor: Predictor) -> list[tuple[str, str]]:
    """Everything known about the run's origin, as (name, value), without class lists."""
    card = predictor.card
    known = {
        "run": {key: value for key, value in run.facts.items() if key != "classes"},
        "model": {"architecture": card.architecture, **card.arguments},
        "preprocess": card.preprocess.to_dict(),
        "provenance": {key: value for key, value in card.provenance.items() if key not in ("recipe", "classes")},
    }
    return [(name, shorten(value, _MAX_VALUE)) for name, value in _flat(known)][:_MAX_FACTS]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)
