"""Many networks trained under one recipe with the same seeds: what `cmtvision ablate` and `compare --train` share.

Every training is an ordinary run folder, OUT/runs/<key>/seed-<n>. A finished one is not trained again, an
interrupted one is resumed, so a long study survives any interruption. All networks see the same images; a seed fixes
their order, their augmentation and the initial weights.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from cmtvision.artefact.files import CARD_FILE
from cmtvision.artefact.run.names import EVALUATION_FILE, RECIPE_FILE
from cmtvision.artefact.run.write import alone_in
from cmtvision.data import DatasetIndex
from cmtvision.engine.build import portable
from cmtvision.engine.fit import TrainingInterrupted, fit
from cmtvision.engine.held_out import read_photos
from cmtvision.errors import CheckpointError, ConfigError, DataError, one_line
from cmtvision.files import write_text
from cmtvision.recipe import ModelSection, Recipe, dump_recipe, load_recipe

STUDY_FILE = "study.json"
RUNS_FOLDER = "runs"
_CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Entry:
    """A network of a study.

    Attributes:
        key: its name in the study, and that of its folder.
        model: the registered name.
        options: further arguments of its constructor.
    """

    key: str
    model: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SeedRun:
    """One training: ``correct`` of ``num_images`` images recognised after ``seconds``; ``kept`` from before."""

    seed: int
    correct: int
    num_images: int
    seconds: float
    kept: bool = False

    @property
    def top1(self) -> float:
        """Share of images recognised, 0 to 1."""
        return self.correct / self.num_images


@dataclass(frozen=True)
class EntryResult:
    """The result of a network's trainings: its runs by seed, or the reason why one failed."""

    entry: Entry
    runs: list[SeedRun]
    failure: str | None = None


OnRun = Callable[[Entry, int, "SeedRun | str", int, int], None]


def train_all(
    entries: Sequence[Entry],
    data: str | Path,
    recipe: Recipe,
    seeds: Sequence[int],
    out: Path,
    *,
    console: Console | None = None,
    on_run: OnRun | None = None,
    again: str = "",
    photos: DatasetIndex | None = None,
) -> list[EntryResult]:
    """Train every network with every seed, seed by seed, so that the finished part can always be compared.

    Args:
        entries: the networks, with different keys.
        data: the images, with a held-out part.
        recipe: settings of every run; model.name, model.options, seed and name are replaced.
        seeds: each network is trained once with each.
        out: the study's folder; what is finished in it is kept.
        console: where the progress of each run is shown.
        on_run: called after each run with (entry, seed, its result or the reason it failed, runs done, runs in all).
        again: the command that resumes the study, printed if it is stopped.
        photos: what ``read_comparable`` gave, where the data has been read already.

    Returns:
        One result for each entry, in their order. A network that cannot be trained has a reason; the others continue.

    Raises:
        ConfigError: a study of something else in ``out``, or a recipe or networks that would make the study unfair.
        DataError: images that cannot be used or compared on.
        CheckpointError: a run's files cannot be written.
        TrainingInterrupted: stopped, with everything so far kept.
    """
    check_recipe(recipe)
    _check_keys(entries)
    photos = photos or read_comparable(recipe, data)
    out.mkdir(parents=True, exist_ok=True)
    with alone_in(out):
        _begin(out, recipe, photos)
        return _train(entries, data, recipe, seeds, out, photos, console, on_run, again)


def check_recipe(recipe: Recipe) -> None:
    """Refuse settings that would make trainings incomparable. Raises ConfigError."""
    if recipe.train.max_minutes is not None:
        raise ConfigError(
            "train.max_minutes: it would train slow networks for fewer steps; add --set train.max_minutes=null, "
            "or --recipe ladder"
        )
    if recipe.train.early_stop_patience is not None:
        raise ConfigError(
            "train.early_stop_patience: it chooses by the photos that are compared on; set it to null for a comparison"
        )
    if recipe.model.weights is not None:
        raise ConfigError("model.weights: networks are compared from random weights; leave it out")


def read_comparable(recipe: Recipe, data: str | Path) -> DatasetIndex:
    """The images of a study.

    Raises:
        DataError: none are held out, or they have several labels and so no top-1.
    """
    photos = read_photos(recipe, data)
    if not photos.val:
        raise DataError(f"{data}: nothing is held out to compare on; set data.val_fraction above 0")
    if photos.multi_label:
        raise DataError(f"{data}: photos with several labels have no top-1; a study needs one label a photo")
    return photos


def read_study(out: Path) -> dict[str, Any]:
    """What a study is about: fingerprint, number and classes of its images. Raises CheckpointError."""
    try:
        study: dict[str, Any] = json.loads((out / STUDY_FILE).read_text(encoding="utf-8"))
        return {key: study[key] for key in ("data_fingerprint", "num_train", "num_val", "classes")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{out / STUDY_FILE}: cannot be read; choose another --out") from error


def _check_keys(entries: Sequence[Entry]) -> None:
    keys = [entry.key for entry in entries]
    for key in keys:
        if not key or keys.count(key) > 1:
            raise ConfigError(f"{key or 'a model'}: two models would share a folder of that name; leave one out, or "
                              "rename a run's folder")  # fmt: skip


def _train(
    entries: Sequence[Entry],
    data: str | Path,
    recipe: Recipe,
    seeds: Sequence[int],
    out: Path,
    photos: DatasetIndex,
    console: Console | None,
    on_run: OnRun | None,
    again: str,
) -> list[EntryResult]:
    runs: dict[str, list[SeedRun]] = {entry.key: [] for entry in entries}
    failures: dict[str, str] = {}
    done, total = 0, len(entries) * len(seeds)
    for seed in seeds:
        for entry in entries:
            done += 1
            if entry.key in failures:
                continue
            try:
                outcome = _one(entry, seed, data, recipe, photos, out, console)
            except (KeyboardInterrupt, TrainingInterrupted):
                hint = f"; go on with: {again}" if again else ""
                raise TrainingInterrupted(f"stopped with {done - 1} of {total} trainings over{hint}") from None
            if isinstance(outcome, str):
                failures[entry.key] = outcome
            else:
                runs[entry.key].append(outcome)
            if on_run is not None:
                on_run(entry, seed, outcome, done, total)
    return [EntryResult(entry, runs[entry.key], failures.get(entry.key)) for entry in entries]


def run_recipe(recipe: Recipe, entry: Entry, seed: int) -> Recipe:
    """The recipe of one run of a study; an option that has a setting of its own (rel_pos) becomes that setting."""
    settings = {key: value for key, value in entry.options.items() if key in ModelSection.model_fields}
    options = recipe.model.options | {key: value for key, value in entry.options.items() if key not in settings}
    whole = recipe.model_dump()
    whole["model"] |= {"name": entry.model, "options": options, **settings}
    return portable(Recipe.model_validate({**whole, "seed": seed, "name": f"{recipe.name}: {entry.key}"}))


def _one(
    entry: Entry, seed: int, data: str | Path, recipe: Recipe, photos: DatasetIndex, out: Path, console: Console | None
) -> SeedRun | str:
    """Train one network with one seed, unless that is done; the reason where it cannot be."""
    folder = out / RUNS_FOLDER / entry.key / f"seed-{seed}"
    wanted = run_recipe(recipe, entry, seed)
    file = folder / RECIPE_FILE
    if file.is_file() and load_recipe(file) != wanted:
        raise ConfigError(f"{folder}: holds a run of another recipe; choose another --out")
    kept = _is_finished(folder)
    if not kept:
        try:
            finished = fit(wanted, data, folder, resume="auto", console=console, index=photos)
        except (DataError, CheckpointError, TrainingInterrupted):
            raise
        except Exception as error:  # whatever a network of anyone does, the others continue
            return one_line(error)
        if finished.late_signal:
            raise TrainingInterrupted(f"stopped by {finished.late_signal}")
        shutil.rmtree(folder / _CHECKPOINTS, ignore_errors=True)  # nobody continues with a finished run of a study
    return _read(folder, seed, kept)


def _is_finished(folder: Path) -> bool:
    return (folder / CARD_FILE).is_file() and (folder / EVALUATION_FILE).is_file()


def _read(folder: Path, seed: int, kept: bool) -> SeedRun:
    counted = json.loads((folder / EVALUATION_FILE).read_text(encoding="utf-8"))
    card = json.loads((folder / CARD_FILE).read_text(encoding="utf-8"))
    seconds = float(card["provenance"]["train_seconds"])
    return SeedRun(seed, int(counted["top1_correct"]), int(counted["num_images"]), seconds, kept)


def _begin(out: Path, recipe: Recipe, photos: DatasetIndex) -> None:
    """Record the study's data and recipe, or compare them with the existing record."""
    facts = {
        "data_fingerprint": photos.fingerprint,
        "num_train": len(photos.train),
        "num_val": len(photos.val),
        "classes": photos.classes,
    }
    file = out / STUDY_FILE
    if not file.is_file():
        write_text(out / RECIPE_FILE, dump_recipe(recipe))
        write_text(file, json.dumps(facts, indent=1) + "\n")
        return
    before = read_study(out)
    if before["data_fingerprint"] != facts["data_fingerprint"]:
        raise DataError(f"{out}: the study there is of other photos, or they changed since; choose another --out")
    if load_recipe(out / RECIPE_FILE) != recipe:
        raise ConfigError(f"{out}: the study there trains by another recipe; choose another --out")
