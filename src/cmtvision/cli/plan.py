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
    if epochs is not None and "schedule.warmup_epochs" not in keys:
        planned = load_recipe(recipe).schedule.warmup_epochs
        if planned >= epochs:  # a short trial of a long recipe: the warm-up is shortened with it
            given["schedule.warmup_epochs"] = epochs * _WARMUP_SHARE
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


def default_out(data: Path, recipe: "Recipe") -> Path:
    """A new folder under runs/, named after data, model and time."""
    from datetime import datetime

    name = data.resolve().stem or "data"
    return Path("runs") / f"{name}-{recipe.model.name.replace('/', '-')}-{datetime.now():%Y%m%d-%H%M%S}"


def show_plan(recipe: "Recipe", data: Path, out: Path, resume: bool) -> None:
    """Say on stderr what will be trained, on what, and for how many steps; a mistake shows before hours are spent.

    Raises:
        DataError: no data there. ConfigError: no such model.
    """
    from cmtvision.cli import output
    from cmtvision.cli.subject import build_shapes_only
    from cmtvision.data import read_dataset

    section = recipe.data
    index = read_dataset(data, val_fraction=section.val_fraction, split_seed=section.split_seed, verify=False)
    more: dict[str, Any] = {"in_chans": recipe.model.in_chans}
    if recipe.model.rel_pos is not None:
        more["rel_pos"] = recipe.model.rel_pos
    model, input_size = build_shapes_only(recipe.model.name, recipe.model.img_size, len(index.classes), **more)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    start = recipe.model.weights or "random weights"
    source = {"seeded": "split by seed", "none": "nothing held out"}.get(index.split_source, "split as the data says")
    output.note(f"model    {recipe.model.name}, {parameters:,} parameters, {_size(input_size)}, from {start}")
    output.note(f"data     {data}: {len(index.train):,} to train on, {len(index.val):,} held out ({source}), "
                f"{len(index.classes)} classes")  # fmt: skip
    output.note(f"recipe   {recipe.name}: {_steps(recipe, len(index.train))}, seed {recipe.seed}")
    output.note(f"out      {out}{' (resumed)' if resume else ''}")


def _size(input_size: tuple[int, int, int]) -> str:
    channels, height, width = input_size
    return f"{height} x {width} px" + ("" if channels == 3 else f" of {channels} channels")


def _steps(recipe: "Recipe", num_train: int) -> str:
    schedule, optim, train = recipe.schedule, recipe.optim, recipe.train
    epochs = schedule.epochs + schedule.cooldown_epochs
    said = f"{epochs} epoch{'' if epochs == 1 else 's'}"
    warmup = f"warm-up {schedule.warmup_epochs:g}"
    if train.batch_size == "auto":
        return f"{said} ({warmup}), batch size chosen at the start, {optim.name} lr {optim.lr:g}"
    batch = min(train.batch_size, num_train)
    effective = batch * train.accumulate
    lr = optim.lr * (effective / optim.lr_base_batch if optim.lr_base_batch else 1)
    steps = -(-(num_train // batch) // train.accumulate) * epochs
    return f"{said} ({warmup}), {steps:,} steps of {effective}, {optim.name} lr up to {lr:.3g}"
