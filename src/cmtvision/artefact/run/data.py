"""The data record that a run keeps with its model for later evaluation: recipe.yaml, run.json and split.csv.

They tell how the run read its data and which photos it held out, so that a figure measured later is on the same ones.
Exports carry copies.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from cmtvision.artefact.card import Card, model_folder
from cmtvision.artefact.run.names import RECIPE_FILE, RUN_FILE, SPLIT_FILE
from cmtvision.data import DatasetIndex, read_dataset
from cmtvision.data.annotations import AnnotationIndex, read_detection, read_segmentation
from cmtvision.data.annotations.splits import take_annotated_split
from cmtvision.data.listing.split_file import take_split
from cmtvision.data.sources.tables import is_table
from cmtvision.data.sources.words import absolute, is_remote, source_text
from cmtvision.errors import ConfigError, DataError
from cmtvision.recipe import DataSection, load_recipe


def name_of(data: str | Path) -> str:
    """What run.json calls a data set: a full path, or the address of one that is no path (``hf:...``, ``s3://...``)."""
    return absolute(source_text(data))


def read_as_the_run(folder: str | Path, data: str | Path, fingerprint: str = "", **options: Any) -> DatasetIndex:
    """Read a data set as a run did: its own photos, wherever they are now, are in the parts that the run had them in.

    Args:
        folder: a run folder or an export of one, or a file in it.
        data: the data set.
        fingerprint: of the data that the model was trained on, as its card says, where the folder has no run.json.
        options: of ``read_dataset``.

    Returns:
        The photos; ``split_source`` is 'run' where they are the run's own, and 'none' where nothing is held out. Where
        the run's split is not on record, photos that the model was trained on are all in ``train``.

    Raises:
        DataError: the data cannot be read, or the run's split.
    """
    return as_the_run(folder, read_for_the_run(folder, data, **options), fingerprint)


def read_for_the_run(folder: str | Path, data: str | Path, **options: Any) -> DatasetIndex:
    """Read a data set from the columns that a run took, its photos in the parts that the data itself gives them.

    Raises:
        DataError: the data cannot be read.
    """
    return read_dataset(data, val_fraction=0, **_columns(model_folder(folder), data), **options)


def as_the_run(folder: str | Path, index: DatasetIndex, fingerprint: str = "") -> DatasetIndex:
    """A data set that was read, with a run's own photos in the parts that the run had them in; see ``read_as_the_run``.

    Raises:
        DataError: the run's split cannot be read.
    """
    run = model_folder(folder)
    facts = _facts(run)
    fingerprint = str(facts.get("data_fingerprint") or fingerprint)
    if (run / SPLIT_FILE).is_file():
        return take_split(index, run / SPLIT_FILE, fingerprint)
    if index.fingerprint == fingerprint and not index.val:
        note = f"which of these photos the model was not trained on is not on record in {run} (no {SPLIT_FILE})"
        return replace(index, split_source="run", notes=[*index.notes, note])
    return index


def data_of(folder: str | Path) -> str | None:
    """The data set that a run was trained on, as run.json names it; None where there is no such record."""
    data = _facts(model_folder(folder)).get("data")
    return data if isinstance(data, str) and data else None


def read_run_data(folder: str | Path, *, multi_label: bool = False, verify: bool = True) -> DatasetIndex | None:
    """The photos of a run, its held-out ones in ``val``; None where the folder has no record of its data.

    Args:
        folder: a run folder or an export of one, or a file in it.
        multi_label: the run's photos may have several labels.
        verify: decode every photo, so that damaged ones are left out.

    Raises:
        DataError: the data is not where it was, or is elsewhere: what a run folder names is not fetched, since whoever
            wrote it decides what that would be.
    """
    data = data_of(folder)
    if data is None:
        return None
    check_local(data)
    return read_as_the_run(folder, data, multi_label=multi_label, verify=verify)


class Limits(NamedTuple):
    """Of an image that is read, see ``open_image``."""

    max_pixels: int
    max_bytes: int


def limits_of(folder: str | Path) -> Limits:
    """With which a run read its images; the usual ones where that is not on record.

    Args:
        folder: a run folder or an export of one, or a file in it.
    """
    try:
        section = load_recipe(model_folder(folder) / RECIPE_FILE).data
    except (OSError, ConfigError):
        section = DataSection()
    return Limits(section.max_pixels, section.max_bytes)


def read_annotated_as_the_run(
    folder: str | Path, data: str | Path, card: Card, *, verify: bool = True
) -> AnnotationIndex[Any]:
    """Annotated images with the classes of a detector or segmenter, a run's own ones in the parts that it had them in.

    Images are left out that are too large for the run.

    Args:
        folder: a run folder or an export of one, or a file in it.
        data: the images, see ``cmtvision.data.annotations``.
        card: the model's.
        verify: decode every image.

    Raises:
        DataError: the data cannot be used, or the run's split cannot be read.
    """
    read: Any = read_detection if card.task == "detection" else read_segmentation
    limits = limits_of(folder)._asdict()
    index: AnnotationIndex[Any] = read(data, val_fraction=0, classes=card.classes, verify=verify, **limits)
    split = model_folder(folder) / SPLIT_FILE
    return take_annotated_split(index, split, card.data_fingerprint) if split.is_file() else index


def check_local(data: str) -> None:
    """Raises DataError for data that a record names and that is no path on this machine."""
    if is_remote(data):
        raise DataError(f"the run's record names {data[:200]!r}, which is fetched only when you give it yourself")


def _facts(run: Path) -> dict[str, Any]:
    """run.json; empty where there is none, or a torn one."""
    try:
        facts = json.loads((run / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _columns(run: Path, data: str | Path) -> dict[str, Any]:
    """The columns that the run's data has its photos and labels in, for data that is of the same kind."""
    try:
        section = load_recipe(run / RECIPE_FILE).data
    except (OSError, ConfigError):
        return {}
    mine = data_of(run)
    if mine is not None and _kind(mine) != _kind(data):
        return {}
    return {"image_column": section.image_column, "label_column": section.label_column}


def _kind(data: str | Path) -> str:
    """What tells whether two sources can have the same columns: a library's name, 'folder', or a file's suffix."""
    text = source_text(data)
    if text.startswith(("hf:", "torchvision:")) or "://" in text:
        return text.partition(":")[0]
    path = Path(text)
    if path.is_dir() or path.suffix.lower() != ".csv":
        return ".parquet" if is_table(path) else "folder"
    return ".csv"
