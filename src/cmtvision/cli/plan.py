"""What a training run is going to do: options become recipe settings, and the plan is said before it starts."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmtvision.errors import ConfigError

if TYPE_CHECKING:
    from cmtvision.recipe import Recipe

_OPTION = {
    "model.name": "--model",
    "model.weights": "--weights",
    "schedule.epochs": "--epochs",
    "train.batch_size": "--batch-size",
    "train.device": "--device",
    "seed": "--seed",
}
_WARMUP_SHARE = 0.1


def merged_overrides(recipe: str | None, settings: Sequence[str], shorthands: Mapping[str, Any]) -> list[str]:
    """The ``a.b=c`` strings that --set and the shorthand options stand for.

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


def check_resume(
    out: Path | None, recipe: str | None, settings: Sequence[str], shorthands: Mapping[str, Any], overwrite: bool
) -> tuple[Path, list[str]]:
    """The recipe file and overrides of a run to go on with. Only the device may be another.

    Raises:
        ConfigError: no run there, or an option that would make it another run.
    """
    if out is None:
        raise ConfigError("--resume: say which run with --out")
    changed = [_OPTION[key] for key, value in shorthands.items() if value is not None and key != "train.device"]
    changed += ["--recipe"] if recipe is not None else []
    changed += ["--set"] if settings else []
    if changed:
        raise ConfigError(f"{', '.join(changed)}: a resumed run keeps its recipe; leave out, or start a new run")
    if overwrite:
        raise ConfigError("--resume and --overwrite: one goes on with the run, the other deletes it; give one")
    file = out / "recipe.yaml"
    if not file.is_file():
        raise ConfigError(f"{out}: nothing to resume, no recipe.yaml in it; start without --resume")
    device = shorthands.get("train.device")
    return file, [] if device is None else [f"train.device={json.dumps(device)}"]


def default_out(data: str | Path, recipe: "Recipe") -> Path:
    """A new folder under runs/, named after data, model and time."""
    return study_out(data, recipe.model.name.replace("/", "-"))


def study_out(data: str | Path, what: str) -> Path:
    """A new folder under runs/, named after data, what is done with it, and time."""
    import re
    from datetime import datetime

    named = Path(str(data).rpartition(":")[2]) if ":" in str(data) else Path(data).resolve()
    stem = re.sub(r"[^\w.-]+", "-", named.stem).strip("-.") or "data"
    return Path("runs") / f"{stem}-{what}-{datetime.now():%Y%m%d-%H%M%S}"


def show_plan(recipe: "Recipe", data: str | Path, out: Path, resume: bool, processes: int = 1) -> None:
    """Say on stderr what will be trained, on what, and for how many steps; a mistake shows before hours are spent.

    Weights to download are fetched before the plan is said, behind all that can be wrong with it.

    Args:
        recipe, data, out, resume: what ``fit`` will be given.
        processes: how many will train together, over all machines.

    Raises:
        DataError: no data there. ConfigError: no such model, or fewer photos than processes. FetchError: no weights.
    """
    from cmtvision.artefact.run_files import SPLIT_FILE
    from cmtvision.cli import output
    from cmtvision.cli.plan_lines import plan_lines
    from cmtvision.data.split_file import keep_split
    from cmtvision.engine.build import fetch_pretrained
    from cmtvision.engine.held_out import read_photos

    index = read_photos(recipe, data, verify=False)
    split = out / SPLIT_FILE
    if resume and split.is_file():  # in the parts that the run began with
        index, _ = keep_split(index, split)
    lines = plan_lines(recipe, index, data, out, resume, processes)
    fetch_pretrained(recipe, resume)
    for line in lines:
        output.note(line)
