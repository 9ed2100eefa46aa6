"""``--resume auto``: the same command line starts a run or resumes it, as job queues with restarts require."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmtvision.errors import ConfigError

if TYPE_CHECKING:
    from cmtvision.recipe import Recipe

# may differ from start to start: how a machine carries the run out, not what is computed
_FREE = ("train.device", "train.loggers", "data.workers", "train.threads")
_SHOWN = 4


def recipe_there(
    out: Path | None, name: str | None, settings: Sequence[str], minutes: float | None, base: str | None = None
) -> "Recipe | None":
    """The recipe of the run in a folder, None if there is none, after checking it against the given settings.

    What was chosen for that run, or fitted to its time, is not chosen again: only the given settings must be equal.

    Args:
        out: the run folder.
        name: of the recipe that the user named; None for none, so that it was chosen.
        settings, minutes: that the user gave.
        base: what a recipe that nobody named is made of.

    Raises:
        ConfigError: no folder was named, or its run has other settings.
    """
    from cmtvision.engine.build import portable
    from cmtvision.engine.choosing.choose import FITTED
    from cmtvision.recipe import load_recipe
    from cmtvision.recipe.load import given_settings, load_asked, with_settings

    asked = load_asked(name or base, settings)
    if out is None:
        raise ConfigError("--resume auto: say which run with --out")
    file = out / "recipe.yaml"
    if not file.is_file():
        return None
    named, wanted = _flat(asked.model_dump(mode="json")), _flat(portable(asked).model_dump(mode="json"))
    explicit = given_settings(name or base, settings).keys()
    given = set(explicit)
    if name is not None:
        given |= wanted.keys() - (set() if minutes is None else FITTED)
    else:  # beside the settings, what the name of a model of the user's own stands for
        given |= {key for key in wanted if wanted[key] != named.get(key)} - {"model.img_size"}
    wanted = {key: value for key, value in wanted.items() if key in given}
    if minutes is not None and "train.max_minutes" not in explicit:
        wanted["train.max_minutes"] = minutes
    stored = load_recipe(file)
    whole = any(setting.partition("=")[0].strip() == "model.options" for setting in settings)
    if name is None and "model.options" in wanted and not whole:  # some options: others were chosen beside them
        wanted["model.options"] = stored.model_dump(mode="json")["model"]["options"] | wanted["model.options"]
    _refuse_others(out, wanted, stored)
    return with_settings(stored, [f"{key}={json.dumps(wanted[key])}" for key in _FREE if key in wanted])


def _refuse_others(out: Path, wanted: dict[str, Any], stored: "Recipe") -> None:
    there = _flat(stored.model_dump(mode="json"))
    changed = [key for key, value in wanted.items() if key not in _FREE and value != there.get(key)]
    if changed:
        shown = ", ".join(
            f"{key} is {json.dumps(there.get(key))}, not {json.dumps(wanted[key])}" for key in changed[:_SHOWN]
        )
        more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        raise ConfigError(f"{out}: the run there has other settings ({shown}{more}); give its own, or another --out")


def _flat(tree: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": leaf for inner, leaf in value.items()}
        elif key not in ("name", "description"):
            flat[key] = value
    return flat
