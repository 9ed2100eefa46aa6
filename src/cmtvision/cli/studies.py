"""Shared by the commands that train many networks: the study's folder, whether it is resumed, and one line per run."""

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cmtvision.recipe import Recipe

_STUDY_FILE = "study.json"


def is_study(folder: Path) -> bool:
    """Whether a folder contains a study."""
    return (folder / _STUDY_FILE).is_file()


def begin_study(
    folder: Path, named: bool, resume: str, recipe: str | None, settings: Sequence[str]
) -> tuple[Path, "Recipe"]:
    """The study's folder and recipe.

    Args:
        folder: the folder of the study, existing or new.
        named: whether the user named it.
        resume: 'no', 'yes' or 'auto'.
        recipe, settings: what --recipe and --set gave.

    Raises:
        ConfigError: a study in the way, none to resume, or another recipe for it.
    """
    from cmtvision.errors import ConfigError
    from cmtvision.recipe import load_recipe

    there = is_study(folder)
    if resume != "no" and not named:
        raise ConfigError("--resume: say which study with --out")
    if resume == "no":
        if folder.exists() and any(folder.iterdir() if folder.is_dir() else [folder]):
            hint = "resume it with --resume, or " if there else ""
            raise ConfigError(f"{folder}: is not empty; {hint}choose another --out")
        return folder, load_recipe(recipe, settings)
    if resume == "yes" and not there:
        raise ConfigError(f"{folder}: nothing to resume, no study in it; start without --resume")
    if not there:
        return folder, load_recipe(recipe, settings)
    kept = load_recipe(folder / "recipe.yaml")
    if (recipe or settings) and load_recipe(recipe, settings) != kept:
        raise ConfigError(f"{folder}: the study there trains by another recipe; leave out --recipe and --set, or "
                          "choose another --out")  # fmt: skip
    return folder, kept


def run_lines() -> Callable[..., None]:
    """A callback that prints a line on stderr after each run, with the time left if it was trained just now."""
    from cmtvision.cli import output

    trained: list[float] = []
    last = time.monotonic()

    def say(entry: Any, seed: int, outcome: Any, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        took, last = now - last, now
        if isinstance(outcome, str):
            output.note(f"{done}/{total}  {entry.key}  failed: {outcome}")
            return
        counted = f"{outcome.top1:.2%}  ({outcome.correct:,} of {outcome.num_images:,})"
        line = f"{done}/{total}  {entry.key}  seed {seed}  {counted}"
        if outcome.kept:
            output.note(f"{line}  kept")
            return
        trained.append(took)
        left = (total - done) * sum(trained) / len(trained)
        more = f", about {output.duration(left)} left" if done < total else ""
        output.note(f"{line}  {output.duration(took)}{more}")

    return say


def resume_command(command: str, words: Sequence[str], options: Mapping[str, Any]) -> str:
    """The command line that resumes a study; options without a value are left out."""
    given = [str(part) for name, value in options.items() if value is not None for part in (name, value)]
    return shlex.join(["cmtvision", command, *words, *given, "--resume"])
