"""Interpreting a data argument: a folder, a CSV, a table, shards, or another library's data set."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from cmtvision.data.listing.class_folders import Listing, list_csv, list_folders
from cmtvision.data.shards.shard_index import is_shards, list_shards
from cmtvision.data.shards.shard_reader import is_url
from cmtvision.data.sources.tables import is_table, list_parquet
from cmtvision.errors import DataError

KINDS = "a folder of class folders, a .csv or .parquet with image and label, .tar shards, torchvision:NAME, or hf:NAME"


@dataclass(frozen=True)
class ReadOptions:
    """How a source is read; see ``cmtvision.data.read_dataset``."""

    root: str | PathLike[str] | None = None
    allow_outside: bool = False
    image_column: str | None = None
    label_column: str | None = None
    multi_label: bool = False
    classes: Sequence[str] | None = None
    progress: Callable[[int, int], None] | None = None


def source_text(path: str | PathLike[str]) -> str:
    """A source as text: a URL that passed through ``Path`` gets its slashes back, a file URL becomes a path."""
    text = fspath(path)
    text = re.sub(r"^([a-z][a-z0-9+.-]+):/(?!/)", r"\1://", text)
    if text.startswith("file://"):
        text = "/" + unquote(text.removeprefix("file://")).lstrip("/")
    return text


def is_remote(text: str) -> bool:
    """Whether reading a source may ask the network: a URL, or another library's set that is no folder here."""
    text = source_text(text)
    kind, _, name = text.partition(":")
    return is_url(text) or kind == "torchvision" or (kind == "hf" and not Path(name).exists())


def absolute(text: str) -> str:
    """The same source, independent of the current folder."""
    if is_url(text):
        return text
    if text.startswith("torchvision:"):
        kind, name, *folder = text.split(":", 2)
        return ":".join([kind, name, *(str(Path(one).resolve()) for one in folder if one)])
    if text.startswith("hf:"):
        name = text.removeprefix("hf:")
        return f"hf:{Path(name).resolve()}" if Path(name).exists() else text
    return str(Path(text).resolve())


def list_source(text: str, options: ReadOptions) -> tuple[Listing, Path]:
    """The images of a source, and the folder that relative paths start from.

    Raises:
        DataError: nothing found, or not usable; or options that such a source does not use.
    """
    columns: dict[str, Any] = {"image_column": options.image_column, "label_column": options.label_column}
    several: dict[str, Any] = {"multi_label": options.multi_label, "fixed": options.classes}
    if text.startswith("torchvision:"):
        _refuse(text, "a set of torchvision has no columns", **columns)
        _refuse(text, "its photos have one class each", multi_label=options.multi_label or None)
        from cmtvision.data.sources.torchvision_sets import list_torchvision

        return list_torchvision(text, fixed=options.classes), Path(text)
    saved = [Path(text) / name for name in ("state.json", "dataset_dict.json")]  # what save_to_disk leaves
    if text.startswith("hf:") or any(file.is_file() for file in saved):
        text = text if text.startswith("hf:") else f"hf:{text}"
        from cmtvision.data.sources.huggingface import list_huggingface

        return list_huggingface(text, **columns, **several), Path(text)
    source = Path(text)
    if is_url(text) or is_shards(source):
        _refuse(text, "shards have no image column", image_column=options.image_column)
        if not is_url(text):
            text = str(source.resolve())
        more = {**several, "label_column": options.label_column, "progress": options.progress}
        return list_shards(text, **more), Path(text)
    if not source.exists():
        raise DataError(f"{source}: no such folder or file; give {KINDS}")
    base = Path(options.root).resolve() if options.root is not None else _base(source)
    if is_table(source):
        listing = list_parquet(source, base, options.allow_outside, **columns, **several)
        return listing, base
    if source.is_dir():
        _refuse(text, "a folder of class folders has no columns", **columns)
        base = source.resolve()
        return list_folders(base, str(source)), base
    return list_csv(source, base, options.allow_outside, **columns, multi_label=options.multi_label), base


def _base(source: Path) -> Path:
    return source.resolve() if source.is_dir() else source.resolve().parent


def _refuse(text: str, reason: str, **options: Any) -> None:
    for name, value in options.items():
        if value is not None:
            raise DataError(f"{text}: data.{name} cannot be used, {reason}; leave it out")
