"""The plan of a training run: options become recipe settings, and the plan is printed before it starts."""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmtvision.cli import launch
from cmtvision.errors import ConfigError

if TYPE_CHECKING:
    from cmtvision.data import DatasetIndex
    from cmtvision.engine.choosing.choose import Chosen
    from cmtvision.recipe import Recipe

_OPTION = {
    "model.name": "--model",
    "model.weights": "--weights",
    "schedule.epochs": "--epochs",
    "train.batch_size": "--batch-size",
    "train.device": "--device",
    "train.max_minutes": "--minutes",
    "seed": "--seed",
}
_WARMUP_SHARE = 0.1
STOPPED_PLANNING = "stopped by Ctrl-C while the run was planned; nothing was written, start again with the same command"


def merged_overrides(recipe: str | None, settings: Sequence[str], shorthands: Mapping[str, Any]) -> list[str]:
    """The ``a.b=c`` strings of --set and the shorthand options.

    Raises:
        ConfigError: one setting given both ways.
    """
    from cmtvision.recipe import load_recipe

    keys = {setting.partition("=")[0].strip() for setting in settings}
    given = {key: value for key, value in shorthands.items() if value is not None}
    for key in given:
        if key in keys:
            raise ConfigError(f"{_OPTION[key]} and --set {key}: both given; keep one")
    epochs = given.get("schedule.epochs")
    if epochs is not None:  # a short trial of a long recipe: its warm-ups are shortened with it
        planned = load_recipe(recipe)
        if "schedule.warmup_epochs" not in keys and planned.schedule.warmup_epochs >= epochs:
            given["schedule.warmup_epochs"] = epochs * _WARMUP_SHARE
        if "optim.head_warmup_epochs" not in keys and planned.optim.head_warmup_epochs >= epochs:
            given["optim.head_warmup_epochs"] = epochs - 1
    # JSON is YAML, so a path with a colon in it stays a path
    return [*settings, *(f"{key}={json.dumps(value)}" for key, value in given.items())]


def recipe_to_resume(
    out: Path | None,
    recipe: str | None,
    settings: Sequence[str],
    shorthands: Mapping[str, Any],
    overwrite: bool,
    minutes: float | None = None,
) -> "Recipe":
    """The recipe of a run to resume. Only the device may differ.

    Raises:
        ConfigError: no run there, or an option that would make it another run.
    """
    from cmtvision.recipe import load_recipe

    if out is None:
        raise ConfigError("--resume: say which run with --out")
    changed = [_OPTION[key] for key, value in shorthands.items() if value is not None and key != "train.device"]
    changed += ["--recipe"] if recipe is not None else []
    changed += ["--set"] if settings else []
    changed += ["--minutes"] if minutes is not None else []
    if changed:
        raise ConfigError(f"{', '.join(changed)}: a resumed run keeps its recipe; leave out, or start a new run")
    if overwrite:
        raise ConfigError("--resume and --overwrite: one resumes the run, the other deletes it; give one")
    file = out / "recipe.yaml"
    if not file.is_file():
        raise ConfigError(f"{out}: nothing to resume, no recipe.yaml in it; start without --resume")
    device = shorthands.get("train.device")
    return load_recipe(file, [] if device is None else [f"train.device={json.dumps(device)}"])


def default_out(data: str | Path, recipe: "Recipe") -> Path:
    """A new folder under runs/, named after data, model and time."""
    return study_out(data, recipe.model.name.replace("/", "-"))


def study_out(data: str | Path, what: str) -> Path:
    """A new folder under runs/, named after data, activity and time."""
    import re
    from datetime import datetime

    named = Path(str(data).rpartition(":")[2]) if ":" in str(data) else Path(data).resolve()
    stem = re.sub(r"[^\w.-]+", "-", named.stem).strip("-.") or "data"
    return Path("runs") / f"{stem}-{what}-{datetime.now():%Y%m%d-%H%M%S}"


def settled(
    known: "Recipe | None",
    recipe: str | None,
    settings: Sequence[str],
    data: str | Path,
    out: Path | None,
    *,
    minutes: float | None,
    began: float,
    after: float,
    processes: int,
    overwrite: bool,
    stack: ExitStack,
) -> tuple["Chosen", "DatasetIndex | None"]:
    """The recipe of a run, chosen or fitted to a time if requested, and the list of images if it was read.

    Args:
        known: the recipe of a run that is resumed; then nothing is left to settle.
        recipe, settings, data, out, minutes, overwrite: as the command was given them.
        began: of time.perf_counter, when the command began; after: seconds that it will want after training.
        processes: that will train together. Where a launcher started them, they meet in ``stack``, and the first
            process's choice is everyone's.

    Raises:
        ConfigError: unknown settings or network, or an occupied folder. DataError: no data found.
    """
    from cmtvision.recipe.load import load_asked

    asked = known or load_asked(recipe, settings)  # before anything heavy is imported: a typo is answered at once
    from cmtvision.artefact.predictor import pick_device
    from cmtvision.artefact.run.write import check_free, is_unbegun
    from cmtvision.engine.choosing.choose import Chosen, settle_recipe
    from cmtvision.engine.distributed.processes import join_processes
    from cmtvision.engine.held_out import read_photos

    if known is not None:
        return Chosen(known), None
    if launch.plan_was_said():
        return Chosen(asked), None  # a recipe file by now
    if out is not None:
        check_free(out, False, overwrite or is_unbegun(out))  # said before images and machine are looked at
    joined = stack.enter_context(join_processes(pick_device(asked.train.device)))
    index: DatasetIndex | None = None

    def settle() -> Chosen:
        nonlocal index
        index = read_photos(asked, data, verify=False)
        spent = time.perf_counter() - began
        return settle_recipe(
            recipe, settings, index, minutes=minutes, spent=spent, after=after, processes=processes, joined=joined
        )

    return joined.first(settle), index


def base_recipe(
    data: str | Path, recipe: str | None, settings: Sequence[str], minutes: float | None = None
) -> "Recipe":
    """The recipe that a search or a sweep begins with: the named one, or what ``train`` would choose for these images.

    Args:
        data, recipe, settings: as the command was given them.
        minutes: that one training may take; None for no limit.
    """
    from cmtvision.recipe.load import load_asked

    asked = load_asked(recipe, settings)
    if recipe is not None and minutes is None:
        return asked
    from cmtvision.engine.choosing.choose import settle_recipe
    from cmtvision.engine.held_out import read_photos

    return settle_recipe(recipe, settings, read_photos(asked, data, verify=False), minutes=minutes).recipe


def show_plan(
    chosen: "Chosen",
    data: str | Path,
    out: Path,
    resume: bool,
    processes: int = 1,
    index: "DatasetIndex | None" = None,
) -> None:
    """Print on stderr what will be trained, on what, and for how long, so that mistakes are seen in time.

    Weights are downloaded before the plan is printed, after all checks of it.

    Args:
        chosen: the recipe, with its reasons.
        data, out, resume: what ``fit`` will be given.
        processes: how many will train together, over all machines.
        index: the list of images, where ``data`` has been read already; they need not be verified.

    Raises:
        DataError: no data there. ConfigError: no such model, or fewer images than processes. FetchError: no weights.
    """
    from cmtvision.artefact.run.names import SPLIT_FILE
    from cmtvision.cli import output
    from cmtvision.cli.faults import printable
    from cmtvision.cli.plan_lines import plan_lines
    from cmtvision.data.listing.split_file import keep_split
    from cmtvision.engine.build import fetch_pretrained
    from cmtvision.engine.held_out import read_photos
    from cmtvision.quality.quick import quick_lines

    if index is None:
        index = read_photos(chosen.recipe, data, verify=False)
    split = out / SPLIT_FILE
    if resume and split.is_file():  # in the parts that the run began with
        index, _ = keep_split(index, split)
    lines = plan_lines(chosen, index, data, out, resume, processes)
    fetch_pretrained(chosen.recipe, resume)
    for line in lines:
        output.note(line)
    if not resume:
        for line in quick_lines(index):
            output.note(printable(f"check: {line}"))
