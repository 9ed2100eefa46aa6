"""What a run leaves beside its model for whoever evaluates it: recipe.yaml, run.json and split.csv.

They tell how the run read its data and which photos it held out, so that a figure measured later is on the same ones.
Exports carry copies.
"""

import json
import re
from pathlib import Path
from typing import Any

from cmtvision.artefact.card import model_folder
from cmtvision.data import DatasetIndex, read_dataset
from cmtvision.errors import ConfigError
from cmtvision.recipe import load_recipe

RECIPE_FILE = "recipe.yaml"
RUN_FILE = "run.json"
SPLIT_FILE = "split.csv"


def name_of(data: str | Path) -> str:
    """What run.json calls a data set: a full path, or the address of one that is no path (``hf:...``, ``s3://...``)."""
    return str(data) if re.match(r"[A-Za-z][A-Za-z0-9+]+:", str(data)) else str(Path(data).resolve())


def as_the_run_read(folder: str | Path, data: str | Path) -> dict[str, Any]:
    """How to read a data set as a run did, as arguments of ``read_dataset``.

    Args:
        folder: a run folder or an export of one, or a file in it; nothing is known of an artefact by itself, and the
            result is empty.
        data: the data set. On the run's own data the result holds the split that the run chose.
    """
    run = model_folder(folder)
    try:
        section = load_recipe(run / RECIPE_FILE).data
        info = json.loads((run / RUN_FILE).read_text(encoding="utf-8"))
        own = info["split_source"] == "seeded" and info["data"] == name_of(data)
    except (OSError, ValueError, KeyError, ConfigError):  # an artefact by itself
        return {}
    columns = {"image_column": section.image_column, "label_column": section.label_column}
    return {"split_file": run / SPLIT_FILE, **columns} if own else columns


def data_of(folder: str | Path) -> str | None:
    """The data set that a run was trained on, as run.json names it; None where there is no such record."""
    try:
        data = json.loads((model_folder(folder) / RUN_FILE).read_text(encoding="utf-8"))["data"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return data if isinstance(data, str) else None


def read_run_data(folder: str | Path, *, multi_label: bool = False, verify: bool = True) -> DatasetIndex | None:
    """The photos of a run, its held-out ones in ``val``; None where the folder has no record of its data.

    Args:
        folder: a run folder or an export of one, or a file in it.
        multi_label: the run's photos may have several labels.
        verify: decode every photo, so that damaged ones are left out.

    Raises:
        DataError: the data is not where it was.
    """
    data = data_of(folder)
    if data is None:
        return None
    how = as_the_run_read(folder, data)
    return read_dataset(data, val_fraction=0, multi_label=multi_label, verify=verify, **how)
