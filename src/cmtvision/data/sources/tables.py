"""Parquet tables of images: the image's bytes in a column (plain, or Hugging Face's {bytes, path}), or its path.

Parquet is compressed, so bytes of single rows cannot be read from it in any order. A table with images in it is
unpacked once into the user's cache folder: one file of all images, one after another, and their offsets.
"""

import json
from collections.abc import Sequence
from hashlib import sha256
from os.path import relpath
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import numpy.typing as npt

from cmtvision.data.listing.class_folders import (
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    Entry,
    Listing,
    class_folders,
    inside,
    pick_column,
    settle_splits,
)
from cmtvision.data.listing.index import Skipped
from cmtvision.data.listing.labels import resolve
from cmtvision.data.listing.splits import parts_of, split_word
from cmtvision.data.photos import PhotoPath, StoredPhoto
from cmtvision.data.shards.shard_reader import Shard
from cmtvision.data.user_cache import cache_folder
from cmtvision.errors import DataError

SUFFIXES = (".parquet", ".pq")
_ROWS = 64


def is_table(path: Path) -> bool:
    """Whether a path is a Parquet file, or a folder with Parquet files in it.

    Raises:
        DataError: a folder with both tables and class folders: images next to a table may well be its own, so neither
            reading is safe.
    """
    if path.suffix.lower() in SUFFIXES:
        return True
    tables = _tables(path) if path.is_dir() else []
    classes = class_folders(path) if tables else []
    if len(classes) > 1:
        raise DataError(f"{path}: holds a table ({tables[0].name}) and class folders ({', '.join(classes[:3])}, ...); "
                        f"give {tables[0]} itself, or move it away")  # fmt: skip
    return bool(tables)


def list_parquet(
    source: Path,
    root: Path,
    allow_outside: bool,
    *,
    image_column: str | None,
    label_column: str | None,
    multi_label: bool,
    fixed: Sequence[str] | None,
) -> Listing:
    """The rows of a Parquet file, or of all in a folder (train-*.parquet, validation-*.parquet, test-*.parquet).

    Raises:
        DataError: not Parquet, a column missing, a row without an image, a label outside the classes.
    """
    listing = Listing()
    raw: list[Any] = []
    names: list[str] | None = None
    files = _tables(source) if source.is_dir() else [source]
    parts = parts_of((file.name for file in files), str(source), of_files=True) if source.is_dir() else {}
    for file in files:
        table = _open(file)
        columns = table.schema_arrow.names
        part = parts.get(file.name)
        if part == "test" and len(files) > 1 and _has_no_labels(table, label_column):
            listing.skipped.append(Skipped(file, "a test part without labels"))
            continue
        image = pick_column(columns, image_column, IMAGE_COLUMNS, str(file), "image")
        label = pick_column(columns, label_column, LABEL_COLUMNS, str(file), "label")
        names = names or _class_names(table.schema_arrow, label)
        split_column = next((name for name in columns if name.lower() == "split"), None)
        words = table.read(columns=[split_column]).column(0).to_pylist() if split_column is not None else None
        photos = _photos(table, file, image, root, allow_outside)
        raw += table.read(columns=[label]).column(0).to_pylist()
        for row, photo in enumerate(photos):
            split = split_word(words[row], f"{file} row {row}") if words is not None else part
            name = photo.name if isinstance(photo, StoredPhoto) else Path(relpath(photo, root)).as_posix()
            listing.entries.append(Entry(photo, name, (), split))
    places = [f"photo {entry.relative}" for entry in listing.entries]
    labels, order = resolve(raw, places, names=names, fixed=fixed, multi_label=multi_label, source=str(source))
    entries: dict[str, Entry] = {}
    for entry, found in zip(listing.entries, labels, strict=True):
        labelled = entry._replace(labels=found)
        if entries.setdefault(entry.relative, labelled) is not labelled:
            listing.skipped.append(Skipped(entry.path, "listed twice"))
    listing.entries = list(entries.values())
    listing.names = order
    settle_splits(listing, str(source))
    return listing


def _tables(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())


def _open(file: Path) -> Any:
    try:
        import pyarrow  # type: ignore[import-untyped]
        from pyarrow import parquet
    except ImportError:
        raise DataError(f"{file}: reading Parquet needs pyarrow; pip install 'cmtvision[data]'") from None
    try:
        return parquet.ParquetFile(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file}: cannot be read as Parquet ({_one_line(error)})") from None


def _has_no_labels(table: Any, label_column: str | None) -> bool:
    """Whether a table's labels are not published: no such column, or nothing in it but nulls and -1."""
    columns = table.schema_arrow.names
    try:
        label = pick_column(columns, label_column, LABEL_COLUMNS, "", "label")
    except DataError:
        return True
    return all(value is None or value == -1 for value in table.read(columns=[label]).column(0).to_pylist())


def _class_names(schema: Any, label: str) -> list[str] | None:
    """The names that Hugging Face's writer left in the schema for the numbers of the label column."""
    try:
        feature = json.loads(schema.metadata[b"huggingface"])["info"]["features"][label]
        feature = feature.get("feature", feature) if isinstance(feature, dict) else feature[0]
        names = feature["names"]
    except (KeyError, TypeError, ValueError, IndexError):
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def _photos(table: Any, file: Path, column: str, root: Path, allow_outside: bool) -> list[PhotoPath]:
    import pyarrow

    kind = table.schema_arrow.field(column).type
    if pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind):
        paths = table.read(columns=[column]).column(0).to_pylist()
        for row, path in enumerate(paths):
            if not path:
                raise DataError(f"{file} row {row}: {column} is empty")
        return [inside(root, path, allow_outside, f"{file} row {row}") for row, path in enumerate(paths)]
    in_struct = pyarrow.types.is_struct(kind) and "bytes" in [field.name for field in kind]
    if not in_struct and not pyarrow.types.is_binary(kind) and not pyarrow.types.is_large_binary(kind):
        raise DataError(f"{file}: column {column} holds {kind}, expected an image's bytes, or its path")
    blob, offsets = _unpacked(table, file, column, in_struct)
    shard = Shard(str(blob), int(offsets[-1]), label=str(file), sequential=False)
    pairs = zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
    return [StoredPhoto(shard, f"{file.stem}/{row:08d}", a, b - a) for row, (a, b) in enumerate(pairs)]


def _unpacked(table: Any, file: Path, column: str, in_struct: bool) -> tuple[Path, npt.NDArray[np.int64]]:
    """All images of a column as one file, and where each begins and the last ends, (rows + 1,)."""
    status = file.stat()
    key = json.dumps([str(file.resolve()), status.st_size, status.st_mtime_ns, column])
    target = cache_folder("tables") / sha256(key.encode()).hexdigest()
    blob, places = target / "photos", target / "offsets.npy"
    if not target.is_dir():
        partial = Path(mkdtemp(dir=target.parent, prefix=".partial-"))
        try:
            np.save(partial / places.name, _unpack(table, file, column, in_struct, partial / blob.name))
            if not target.is_dir():  # another process may have been quicker
                partial.replace(target)
        except OSError as error:
            raise DataError(f"{target}: the photos of {file} cannot be unpacked ({error.strerror or error})") from None
        finally:
            _remove(partial)
    try:
        offsets: npt.NDArray[np.int64] = np.load(places, allow_pickle=False)
        whole = offsets.shape == (table.metadata.num_rows + 1,) and blob.stat().st_size == offsets[-1]
    except (OSError, ValueError):
        whole = False
    if not whole:
        raise DataError(f"{target}: not what was unpacked from {file}; remove this folder and start again")
    return blob, offsets


def _unpack(table: Any, file: Path, column: str, in_struct: bool, blob: Path) -> npt.NDArray[np.int64]:
    import pyarrow

    ends = [0]
    try:
        with blob.open("wb") as out:
            for batch in table.iter_batches(_ROWS, columns=[column]):
                for content in batch.column(0).to_pylist():
                    photo = content["bytes"] if in_struct and content is not None else content
                    if not isinstance(photo, bytes):
                        raise DataError(f"{file} row {len(ends) - 1}: {column} has no image in it")
                    ends.append(ends[-1] + out.write(photo))
    except pyarrow.ArrowException as error:
        raise DataError(f"{file}: cannot be read as Parquet ({_one_line(error)})") from None
    return np.array(ends, dtype=np.int64)


def _remove(folder: Path) -> None:
    from shutil import rmtree

    rmtree(folder, ignore_errors=True)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
