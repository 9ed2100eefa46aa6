"""Search for good recipe settings: many short trainings, each proposed from the ones before (optuna's TPE).

A trial is one ``fit`` with some settings changed. Trials are compared on images held out of the training images. If
the data has a held-out part of its own, that part is not used, so it can measure the chosen recipe afterwards.
The folder holds study.db (optuna's), recipe.yaml (the recipe that is varied), tune.json (what is searched, on which
images), trials/NNN (run folders; only the best keeps its weights), trials.csv and best.yaml.
"""

import csv
import io
import json
import os
import shlex
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import timm
from rich.console import Console

from cmtvision.artefact.files import CARD_FILE, MODEL_FILE
from cmtvision.artefact.run.names import RECIPE_FILE
from cmtvision.artefact.run.write import alone_in
from cmtvision.data import DatasetIndex
from cmtvision.engine.build import fetch_pretrained
from cmtvision.engine.fit import TrainingInterrupted, fit
from cmtvision.engine.held_out import held_out_of_training, read_photos
from cmtvision.errors import CheckpointError, CmtvisionError, ConfigError, DataError
from cmtvision.files import write_text
from cmtvision.models import create_model
from cmtvision.recipe import Recipe, dump_recipe, load_recipe
from cmtvision.recipe.space import Dimension, check_space, parse_space
from cmtvision.study import optuna_study as studies
from cmtvision.study.optuna_study import Pruner, Trial

if TYPE_CHECKING:
    from optuna import Study

PLAN_FILE = "tune.json"
BEST_FILE = "best.yaml"
TRIALS_FILE = "trials.csv"
TRIALS_FOLDER = "trials"
STUDY_FILE = "study.db"

OnTrial = Callable[[Trial, int], None]


@dataclass(frozen=True)
class TuneResult:
    """What a search found.

    Attributes:
        out: its folder.
        trials: complete, pruned and failed ones, best first.
        measure: what a score is, 'val_top1' or 'val_map'.
        num_selected_on: images that trials were compared on, all of them held out of the training images.
        importances: share of each key in the variation of the scores; empty if there are too few trials.
    """

    out: Path
    trials: list[Trial]
    measure: str
    num_selected_on: int
    importances: dict[str, float] = field(default_factory=dict)

    @property
    def best(self) -> Trial:
        """The trial that best.yaml comes from."""
        return self.trials[0]


@dataclass(frozen=True)
class _Search:
    """What stays the same from trial to trial."""

    study: "Study"
    space: list[Dimension]
    recipe: Recipe
    index: DatasetIndex
    data: str | Path
    out: Path
    console: Console | None

    @property
    def measure(self) -> str:
        return "val_map" if self.recipe.data.multi_label else "val_top1"


def tune(
    recipe: Recipe,
    space: Sequence[Dimension],
    data: str | Path,
    out: str | Path,
    *,
    trials: int | None = None,
    seconds: float | None = None,
    storage: str | None = None,
    pruner: Pruner = "median",
    resume: bool = False,
    console: Console | None = None,
    on_trial: OnTrial | None = None,
) -> TuneResult:
    """Search a space of recipe settings for the best held-out accuracy.

    Args:
        recipe: what is varied; its seed seeds the search too. A resumed search keeps its own.
        space: the keys to search (see ``cmtvision.recipe.space``). A resumed search keeps its own.
        data: the images, as for ``fit``.
        out: the folder to write.
        trials: how many in all, including those of earlier parts of a resumed search; None for as many as fit.
        seconds: start no trial that would probably end later than this from now; None for no limit. The first always
            starts.
        storage: an SQLAlchemy URL; None is study.db in the folder.
        pruner: stops hopeless trials: 'median' of the others at the same epoch, 'hyperband', or 'none'.
        resume: resume the search in ``out``.
        console: where the bar of the running trial is shown; None for silence.
        on_trial: called with each trial that has ended, and the number of ended trials.

    Returns:
        All trials. best.yaml, trials.csv and the best trial's run folder are on disk.

    Raises:
        ConfigError: neither trials nor seconds, a space that does not fit the recipe, a folder in the way, optuna not
            installed, or every trial failed.
        DataError: images that cannot be used, or that changed since the search began.
        TrainingInterrupted: stopped by Ctrl-C or SIGTERM; the trial that ran is tried again on resume.
    """
    out = Path(out)
    if trials is None and seconds is None:
        raise ConfigError("tune: say how many trainings, or how long, with --trials N or --minutes N")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("tune runs in one process; start it without torchrun")
    if resume:
        recipe, space, pruner = _read_plan(out, storage)
    else:
        _check(space, recipe, out)
    index = held_out_of_training(read_photos(recipe, data), recipe)
    if not {"model.name", "model.weights"} & {dimension.key for dimension in space}:
        fetch_pretrained(recipe)  # or every trial would fail of the same
    out.mkdir(parents=True, exist_ok=True)
    with alone_in(out), studies.quiet_optuna():
        if resume:
            _check_same_photos(out, index)
        else:
            write_text(out / RECIPE_FILE, dump_recipe(recipe))
        study = studies.open_study(storage or _default_storage(out), _study_name(out, storage), pruner, resume)
        search = _Search(study, list(space), recipe, index, data, out, console)
        if resume:
            studies.reclaim(study, _identities(out, storage))
        else:
            _write_plan(out, space, pruner, data, index, storage is not None)
        try:
            begun = time.monotonic()
            while _another(studies.over(study), trials, seconds, time.monotonic() - begun):
                ended = _run_trial(search)
                _write_tables(search)
                if on_trial is not None:
                    on_trial(ended, len(studies.over(study)))
        except (KeyboardInterrupt, TrainingInterrupted):
            bound = f"--trials {trials}" if trials is not None else f"--minutes {(seconds or 0) / 60:g}"
            again = f"cmtvision tune {shlex.quote(str(data))} {bound} --out {shlex.quote(str(out))} --resume"
            again += " --storage URL" if storage else ""
            done = len(studies.over(study))
            raise TrainingInterrupted(
                f"stopped with {done}{f' of {trials}' if trials else ''} trials over; go on with: {again}"
            ) from None
        _write_tables(search)
        return _result(search)


def _another(over: Sequence[Trial], trials: int | None, seconds: float | None, spent: float) -> bool:
    """Whether to start another trial."""
    if trials is not None and len(over) >= trials:
        return False
    if seconds is None or not over:
        return True
    return spent + median(trial.seconds for trial in over) < seconds


def _check(space: Sequence[Dimension], recipe: Recipe, out: Path) -> None:
    """Refuse an occupied folder, a space that does not fit the recipe, and unknown models."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        hint = "resume it with --resume, or " if (out / PLAN_FILE).is_file() else ""
        raise ConfigError(f"{out}: is not empty; {hint}choose another --out")
    check_space(space, recipe)
    choices = [text for dimension in space if dimension.key == "model.name" for text in dimension.choices]
    for name in map(json.loads, choices):
        if not timm.is_model(str(name).partition(".")[0]):
            create_model(str(name))  # its error has the did-you-mean; a name with a hub in front is tried there


def _run_trial(search: _Search) -> Trial:
    """One training, from its proposal to its place in the study."""
    import optuna

    study, out = search.study, search.out
    trial, settings = studies.propose(study, search.space, search.recipe.seed, _identity(out))
    folder = out / TRIALS_FOLDER / f"{trial.number:03}"
    began = time.monotonic()

    def report(row: dict[str, Any]) -> None:
        value = row.get(search.measure)
        if value is None:
            return
        trial.report(float(value), int(row["epoch"]))
        last = int(row["epoch"]) + 1 >= chosen.schedule.total_epochs
        if not last and trial.should_prune():
            raise optuna.TrialPruned

    late = ""
    try:
        chosen = load_recipe(out / RECIPE_FILE, settings)
        finished = fit(
            chosen, search.data, folder, overwrite=True, console=search.console, on_epoch=report, index=search.index
        )
        studies.close(study, trial, "complete", time.monotonic() - began, _score(finished.evaluation, search))
        late = finished.late_signal
    except optuna.TrialPruned:
        studies.close(study, trial, "pruned", time.monotonic() - began)
    except (KeyboardInterrupt, TrainingInterrupted):
        studies.close(study, trial, "interrupted", time.monotonic() - began)
        raise
    except CmtvisionError as error:
        if isinstance(error, DataError) or isinstance(error.__cause__, OSError):  # no other settings would cure it
            studies.close(study, trial, "interrupted", time.monotonic() - began)
            raise
        studies.close(study, trial, "failed", time.monotonic() - began, reason=" ".join(str(error).split()))
    _sweep(search)
    if late:
        raise TrainingInterrupted(f"stopped by {late}")
    return next(ended for ended in studies.all_trials(study) if ended.number == trial.number)


def _score(evaluation: Any, search: _Search) -> float:
    return float(evaluation.mean_average_precision if search.recipe.data.multi_label else evaluation.top1)


def _sweep(search: _Search) -> None:
    """Delete the weights of every trial but the best; the rest of their folders is small and stays."""
    ranked = studies.best_first(studies.all_trials(search.study))
    best = ranked[0].number if ranked and ranked[0].state == "complete" else None
    for trial in ranked:
        folder = search.out / TRIALS_FOLDER / f"{trial.number:03}"
        if trial.number != best and folder.is_dir():
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
            for name in (MODEL_FILE, CARD_FILE):
                (folder / name).unlink(missing_ok=True)


def _write_tables(search: _Search) -> None:
    """trials.csv, and best.yaml where a trial was completed."""
    trials = studies.all_trials(search.study)
    keys = [dimension.key for dimension in search.space]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", search.measure, "epochs", "seconds", *keys, "reason"])
    for trial in trials:
        score = "" if trial.score is None else trial.score
        values = [_cell(trial.settings[key]) if key in trial.settings else "" for key in keys]
        writer.writerow([trial.number, trial.state, score, trial.epochs, f"{trial.seconds:.1f}", *values, trial.reason])
    write_text(search.out / TRIALS_FILE, text.getvalue())
    ranked = studies.best_first(trials)
    if ranked and ranked[0].state == "complete":
        best = ranked[0]
        settings = [f"{key}={json.dumps(value)}" for key, value in best.settings.items()]
        name = f"{search.recipe.name}-tuned"
        described = (
            f"{search.recipe.name} with the settings of trial {best.number} of {len(studies.over(search.study))}."
        )
        chosen = load_recipe(search.out / RECIPE_FILE, settings)
        chosen = chosen.model_copy(update={"name": name, "description": described})
        write_text(search.out / BEST_FILE, dump_recipe(chosen))


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _result(search: _Search) -> TuneResult:
    ranked = studies.best_first(studies.over(search.study))
    if ranked[0].state != "complete":
        reasons = [trial.reason for trial in ranked if trial.reason] or ["all were stopped early"]
        raise ConfigError(f"{search.out}: none of {len(ranked)} trials finished; the first: {reasons[0]}")
    return TuneResult(search.out, ranked, search.measure, len(search.index.val), studies.importances(search.study))


def _identity(out: Path) -> str:
    return str(out.resolve())


def _identities(out: Path, storage: str | None) -> set[str] | None:
    """The folders whose running trials are this search's own: the one it had before it was moved too; None for all.

    Only this folder's processes write to its own study.db, and ``alone_in`` has just found that there is no other.
    """
    if storage is None:
        return None
    before = json.loads((out / PLAN_FILE).read_text(encoding="utf-8")).get("folder")
    return {_identity(out), *([before] if before and not Path(before).exists() else [])}


def _study_name(out: Path, storage: str | None) -> str:
    """What optuna calls the search: as its folder was called when it began, which may have been renamed since."""
    if (out / PLAN_FILE).is_file():
        plan = json.loads((out / PLAN_FILE).read_text(encoding="utf-8"))
        if "study" in plan:
            return str(plan["study"])
        if storage is None:  # of an earlier version, and the only one in its study.db
            return studies.only_study(_default_storage(out)) or out.resolve().name
    return out.resolve().name


def _default_storage(out: Path) -> str:
    return f"sqlite:///{out.resolve() / STUDY_FILE}"


def _write_plan(
    out: Path, space: Sequence[Dimension], pruner: Pruner, data: str | Path, index: DatasetIndex, own: bool
) -> None:
    plan = {
        "data": str(data),
        "data_fingerprint": index.fingerprint,
        "space": [dimension.text for dimension in space],
        "pruner": pruner,
        "study": out.resolve().name,
        "folder": _identity(out),
        "own_storage": own,  # its URL may hold a password, so it is not written down
    }
    write_text(out / PLAN_FILE, json.dumps(plan, indent=2) + "\n")


def _read_plan(out: Path, storage: str | None) -> tuple[Recipe, list[Dimension], Pruner]:
    """What a search to resume began with."""
    if not (out / PLAN_FILE).is_file():
        raise ConfigError(f"{out}: nothing to resume, no {PLAN_FILE} in it; start without --resume")
    try:
        plan = json.loads((out / PLAN_FILE).read_text(encoding="utf-8"))
        space, pruner, own = parse_space(plan["space"]), plan["pruner"], plan["own_storage"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{out / PLAN_FILE}: cannot be read; start anew in another --out") from error
    if own != (storage is not None):
        wanted = "give the --storage it began with" if own else f"it keeps {STUDY_FILE}, leave out --storage"
        raise ConfigError(f"{out}: {wanted}")
    if not own and not (out / STUDY_FILE).is_file():
        raise CheckpointError(f"{out / STUDY_FILE}: is missing; start anew in another --out")
    return load_recipe(out / RECIPE_FILE), space, pruner


def _check_same_photos(out: Path, index: DatasetIndex) -> None:
    plan = json.loads((out / PLAN_FILE).read_text(encoding="utf-8"))
    if plan.get("data_fingerprint") != index.fingerprint:
        raise DataError(f"{index.root}: the photos changed since this search began; start anew in another --out")
