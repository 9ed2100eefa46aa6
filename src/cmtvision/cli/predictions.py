"""Predicting a stream of images in batches and printing text, CSV or JSON, each line as soon as it is known."""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cmtvision.cli.faults import printable
from cmtvision.cli.output import json_text, result
from cmtvision.cli.sources import Source
from cmtvision.errors import DataError

if TYPE_CHECKING:
    from cmtvision.artefact import Prediction, Predictor
    from cmtvision.data import Preprocess
    from cmtvision.trust.answers import Ask

Top = list[tuple[str, float]]
CARD_FILE = "model.json"  # of cmtvision.artefact.card, which imports PyTorch
_SHOWN = 10  # classes of a set; --json and --csv have all
_MORE = ("set", "unsure", "energy", "distance", "familiarity")


class BadImageError(DataError):
    """An image that could not be read; ``image`` is its name."""

    def __init__(self, image: str, reason: str) -> None:
        super().__init__(reason)
        self.image = image


@dataclass(frozen=True)
class Outcome:
    """One image, its most probable classes, best first, and the classes decided for, with probabilities.

    ``more`` is what a calibrated model adds, by the names of ``Prediction``.
    """

    image: str
    top: Top
    labels: Top
    more: dict[str, Any] = field(default_factory=dict)


class View(Protocol):
    """Something that shows outcomes."""

    def add(self, outcome: Outcome | BadImageError) -> None:
        """Show one."""

    def close(self) -> None:
        """Show what is left."""


Prepared = tuple[str, Any]
"""An image's name, and its pixels (H, W, C) or its BadImageError."""


def opened(sources: Iterable[Source], preprocess: "Preprocess", batch_size: int) -> Iterator[Prepared]:
    """Images in their order, each opened and prepared before its turn; see ``cmtvision.data.ahead``."""
    from cmtvision.data.ahead import ahead

    def prepare(source: Source) -> Prepared:
        try:
            if isinstance(source.content, DataError):
                raise source.content
            return source.name, preprocess.prepare(source.content)
        except DataError as error:
            return source.name, BadImageError(source.name, str(error))

    return ahead(prepare, sources, preprocess, batch_size)


def opened_early(run: Path, sources: Iterable[Source], batch_size: int) -> Iterator[Prepared] | None:
    """``opened`` for a model that is still to be loaded, which takes seconds, PyTorch's import most of them.

    None where it cannot be begun: the images do not all come from files, or the card cannot be read, which whoever
    loads the model will say.
    """
    import json

    from cmtvision.data import Preprocess

    if not isinstance(sources, list):
        return None
    try:
        text = ((run if run.is_dir() else run.parent) / CARD_FILE).read_text("utf-8")
        return opened(sources, Preprocess.from_dict(json.loads(text)["preprocess"]), batch_size)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, DataError):
        return None


def predict_each(
    predictor: "Predictor", images: Iterable[Prepared], top: int, batch_size: int, ask: "Ask | None" = None
) -> Iterator[Outcome | BadImageError]:
    """Predict images in their order, one batch at a time; an unreadable one is returned as an error."""
    waiting: list[Prepared] = []
    for one in images:
        waiting.append(one)
        if len(waiting) == batch_size:
            yield from _batch(predictor, waiting, top, ask)
            waiting = []
    yield from _batch(predictor, waiting, top, ask)


def _batch(
    predictor: "Predictor", waiting: list[Prepared], top: int, ask: "Ask | None"
) -> Iterator[Outcome | BadImageError]:
    from cmtvision.trust.answers import Ask

    inputs = [pixels for _, pixels in waiting if not isinstance(pixels, BadImageError)]
    several = predictor.task == "multi-label"
    named = len(predictor.classes) if several else top  # it may decide for more than --top
    said: Iterator[Prediction] = iter(())
    if inputs:
        logits, features = predictor.examine(predictor.batch_of(inputs))
        said = iter(predictor.decide(logits, named, features, ask or Ask()))
    for name, pixels in waiting:
        if isinstance(pixels, BadImageError):
            yield pixels
            continue
        found = next(said)
        more = {key: getattr(found, key) for key in _MORE if getattr(found, key) is not None}
        yield Outcome(name, found.top[:top], found.top[: len(found.labels)], more)


class TextRows:
    """One line per image: its name, then classes with their probabilities, best first.

    Of a multi-label model: every class it decides for, or 'none', then after 'below 50%' as many others as --top
    allows. With --conformal the set follows, with --abstain 'unsure' and why stand in front where no class is named.
    """

    def __init__(self, several: bool = False, ask: "Ask | None" = None) -> None:
        self._several = several
        self._level = "" if ask is None or ask.conformal is None else f"{100 * ask.conformal:g}%"

    def add(self, outcome: Outcome | BadImageError) -> None:
        """Print one line."""
        if not isinstance(outcome, Outcome):
            return
        if not self._several:
            first, *others = _in_words(outcome.top)
            unsure = outcome.more.get("unsure")
            words = [f"{_bold('unsure')} ({unsure}): {first}" if unsure else _bold(first), *others]
            within = f"; {self._level} set: {_listed(outcome.more['set'])}" if "set" in outcome.more else ""
            result(f"{printable(outcome.image)}: {', '.join(words)}{within}")
            return
        said = _bold(", ".join(_in_words(outcome.labels)) or "none")
        others = _in_words(outcome.top[len(outcome.labels) :])
        result(f"{printable(outcome.image)}: {said}" + (f"; below 50%: {', '.join(others)}" if others else ""))

    def close(self) -> None:
        """Nothing is left."""


def _in_words(top: Top) -> list[str]:
    return [f"{printable(label)} {probability:.1%}" for label, probability in top]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(printable(name) for name in names[:_SHOWN]) + more


def _bold(text: str) -> str:
    return f"\033[1m{text}\033[0m" if sys.stdout.isatty() else text


class CsvRows:
    """CSV with a header: image,label,probability and, for more classes, label_2,probability_2 and so on.

    Of a multi-label model a column 'labels' follows the image: all it decides for, joined by '|' as in data tables.
    Of a calibrated model the last columns are 'energy', 'familiarity' and, as asked for, 'set' (joined likewise) and
    'unsure' (why no class should be taken; empty where one may be).
    """

    def __init__(self, top: int, several: bool = False, trusted: bool = False, ask: "Ask | None" = None) -> None:
        import csv

        self._top, self._several = top, several
        self._last = ["energy", "familiarity"] if trusted else []
        self._last += ["set"] if ask is not None and ask.conformal is not None else []
        self._last += ["unsure"] if ask is not None and ask.abstain is not None else []
        self._writer = csv.writer(sys.stdout, lineterminator="\n")
        more = [f"{name}_{rank}" for rank in range(2, top + 1) for name in ("label", "probability")]
        self._writer.writerow(["image", *(["labels"] if several else []), "label", "probability", *more, *self._last])

    def add(self, outcome: Outcome | BadImageError) -> None:
        """Print one row; where a model has fewer classes than were asked for, the last cells are empty."""
        if isinstance(outcome, Outcome):
            cells = [cell for label, probability in outcome.top for cell in (label, f"{probability:.6f}")]
            labels = ["|".join(label for label, _ in outcome.labels)] if self._several else []
            empty = [""] * (2 * self._top - len(cells))
            trusted = [_cell(outcome.more.get(name)) for name in self._last]
            self._writer.writerow([outcome.image, *labels, *cells, *empty, *trusted])

    def close(self) -> None:
        """Nothing is left."""


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6f}"
    return "|".join(value) if isinstance(value, list) else str(value or "")


class JsonDocument:
    """One document, {"predictions": [...], "failed": [...]}, written as it becomes known.

    Args:
        trust: what is said at its end of a calibrated model; None for nothing.
    """

    def __init__(self, trust: dict[str, Any] | None = None) -> None:
        self._trust = trust
        self._failed: list[dict[str, str]] = []
        self._separator = ""
        sys.stdout.write('{"predictions": [')

    def add(self, outcome: Outcome | BadImageError) -> None:
        """Write a prediction, or keep a failure for the end."""
        if not isinstance(outcome, Outcome):
            self._failed.append({"image": outcome.image, "error": str(outcome)})
            return
        label, probability = outcome.top[0]
        top = [{"label": name, "probability": value} for name, value in outcome.top]
        labels = [name for name, _ in outcome.labels]
        record = {"image": outcome.image, "label": label, "probability": probability, "labels": labels, "top": top}
        record |= outcome.more
        sys.stdout.write(f"{self._separator}\n  {json_text(record)}")
        self._separator = ","

    def close(self) -> None:
        """Write the failures and close the document."""
        trust = "" if self._trust is None else f', "trust": {json_text(self._trust)}'
        sys.stdout.write(f'\n], "failed": {json_text(self._failed)}{trust}}}\n')
