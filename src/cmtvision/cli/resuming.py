"""``--resume auto``: the same command line starts a run or goes on with it, as a queue that restarts jobs needs it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmtvision.errors import ConfigError

if TYPE_CHECKING:
    from cmtvision.recipe import Recipe

# may differ from start to start: how a machine carries the run out, not what is computed
_FREE = ("train.device", "train.loggers", "data.workers", "train.threads")
_SHOWN = 4


def same_recipe(out: Path | None, wanted: "Recipe") -> "Recipe":
    """The recipe of the run in a folder, if there is one, after a check that it is the wanted one.

    Raises:
        ConfigError: no folder was named, or the run there has other settings.
    """
    from cmtvision.recipe import load_recipe

    if out is None:
        raise ConfigError("--resume auto: say which run with --out")
    file = out / "recipe.yaml"
    if not file.is_file():
        return wanted
    stored = load_recipe(file)
    here, there = _flat(wanted.model_dump(mode="json")), _flat(stored.model_dump(mode="json"))
    changed = [key for key in here if key not in _FREE and here[key] != there.get(key)]
    if changed:
        shown = ", ".join(
            f"{key} is {json.dumps(there.get(key))}, not {json.dumps(here[key])}" for key in changed[:_SHOWN]
        )
        more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        raise ConfigError(f"{out}: the run there has other settings ({shown}{more}); give its own, or another --out")
    return wanted


def _flat(tree: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": leaf for inner, leaf in value.items()}
        elif key not in ("name", "description"):
            flat[key] = value
    return flat
