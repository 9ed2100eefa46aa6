"""Data sets of Hugging Face's library: ``hf:NAME[:config]`` from its hub, or ``hf:FOLDER`` that save_to_disk wrote.

The library keeps images in memory-mapped Arrow files, so any row is read in place. Code in a data set is never run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from inspect import signature
from pathlib import Path
from typing import Any

from cmtvision.data.listing.class_folders import EXTENSIONS, IMAGE_COLUMNS, LABEL_COLUMNS, Entry, Listing, pick_column
from cmtvision.data.listing.index import Skipped
from cmtvision.data.listing.labels import resolve
from cmtvision.data.listing.splits import parts_of
from cmtvision.data.photos import StoredPhoto
from cmtvision.errors import DataError


@dataclass(frozen=True)
class HuggingFaceStore:
    """One split of a data set; opened again in each process that reads from it."""

    name: str
    config: str | None
    split: str
    column: str

    def read(self, place: int, size: int) -> bytes:
        """The file of a row."""
        row = _rows(self.name, self.config, self.split, self.column)[place][self.column]
        content, path = row.get("bytes"), row.get("path")
        if content is None and path and Path(path).suffix.lower() in EXTENSIONS:
            content = Path(path).read_bytes()
        if not isinstance(content, bytes):
            raise DataError(f"{self}: row {place} has no image in it")
        return content

    def __str__(self) -> str:
        return ":".join(["hf", self.name, *([self.config] if self.config else []), self.split])


def list_huggingface(
    source: str,
    *,
    image_column: str | None,
    label_column: str | None,
    multi_label: bool,
    fixed: Sequence[str] | None,
) -> Listing:
    """The rows of a data set's training, validation and test splits; a test split without labels is left out.

    Args:
        source: 'hf:NAME', 'hf:NAME:config' or 'hf:FOLDER'.
        image_column, label_column: by default the column of type Image, and the first with a usual name.
        multi_label: a row's label is a list of classes.
        fixed: a trained model's classes.

    Raises:
        DataError: the library is missing, the data set cannot be loaded, columns missing, labels missing.
    """
    name, config = _name_and_config(source)
    splits = _load(name, config)
    listing = Listing()
    parts = _parts(splits, source, label_column, listing)
    listing.split_source = "folders" if {"val", "test"} & set(parts.values()) else "none"
    raw: list[Any] = []
    names: list[str] | None = None
    for split, part in parts.items():
        rows = splits[split]
        image = _image_column(rows, image_column, source)
        label = pick_column(list(rows.column_names), label_column, LABEL_COLUMNS, source, "label")
        names = names or _class_names(rows.features[label])
        raw += rows.select_columns([label])[:][label]
        store = HuggingFaceStore(name, config, split, image)
        for row, size in enumerate(_sizes(rows, image)):
            photo = StoredPhoto(store, f"{split}/{row:08d}", row, size)
            listing.entries.append(Entry(photo, photo.name, (), part))
    places = [f"photo {entry.relative}" for entry in listing.entries]
    labels, listing.names = resolve(raw, places, names=names, fixed=fixed, multi_label=multi_label, source=source)
    listing.entries = [entry._replace(labels=found) for entry, found in zip(listing.entries, labels, strict=True)]
    return listing


def _parts(splits: dict[str, Any], source: str, label_column: str | None, listing: Listing) -> dict[str, str]:
    """The splits to read, each with its part; the others are named as skipped."""
    parts = parts_of(splits, source)
    others = [name for name in splits if name not in parts]
    if "train" not in parts.values() and others:  # a set with one split calls it as it likes
        parts[others.pop(0)] = "train"
    for name in others:
        listing.skipped.append(Skipped(Path(f"{source}:{name}"), "a split that is neither train, val nor test"))
    for name in [name for name, part in parts.items() if part == "test" and len(parts) > 1]:
        rows = splits[name]
        usual = (label_column,) if label_column else LABEL_COLUMNS
        label = next(
            (column for column in rows.column_names if column.lower() in usual or column == label_column), None
        )
        if label is None or all(value in (None, -1) for value in rows.select_columns([label])[:][label]):
            listing.skipped.append(Skipped(Path(f"{source}:{name}"), "a test part without labels"))
            del parts[name]
    order = ("train", "val", "test")
    return dict(sorted(parts.items(), key=lambda pair: order.index(pair[1])))


def _name_and_config(source: str) -> tuple[str, str | None]:
    text = source.removeprefix("hf:")
    if text and Path(text).exists():
        return str(Path(text).resolve()), None
    name, _, config = text.partition(":")
    if not name:
        raise DataError(f"{source}: expected hf:NAME, hf:NAME:config, or hf:FOLDER")
    return name, config or None


@lru_cache(maxsize=4)
def _load(name: str, config: str | None) -> dict[str, Any]:
    """The splits of a data set by name."""
    source = ":".join(["hf", name, *([config] if config else [])])
    try:
        import datasets  # type: ignore[import-untyped]
    except ImportError:
        raise DataError(f"{source}: needs Hugging Face's datasets; pip install 'cmtvision[data]'") from None
    try:
        if (Path(name) / "state.json").is_file() or (Path(name) / "dataset_dict.json").is_file():
            loaded = datasets.load_from_disk(name)
        else:
            # Releases before 4 would ask the user whether to run a data set's own code; later ones never run any.
            old = "trust_remote_code" in signature(datasets.load_dataset).parameters
            loaded = datasets.load_dataset(name, config, **({"trust_remote_code": False} if old else {}))
    except Exception as error:  # the hub's, the network's, the builders' own
        raise DataError(
            f"{source}: cannot be loaded ({' '.join(str(error).split())[:300]}); check the name and the network"
        ) from None
    return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}


@lru_cache(maxsize=8)
def _rows(name: str, config: str | None, split: str, column: str) -> Any:
    """A split whose images come as the files they were."""
    import datasets

    rows = _load(name, config)[split].select_columns([column])
    if isinstance(rows.features[column], datasets.Image):
        return rows.cast_column(column, datasets.Image(decode=False))
    return rows


def _image_column(rows: Any, wanted: str | None, source: str) -> str:
    import datasets

    if wanted is None:
        typed = [name for name, feature in rows.features.items() if isinstance(feature, datasets.Image)]
        if typed:
            return str(typed[0])
    column = pick_column(list(rows.column_names), wanted, IMAGE_COLUMNS, source, "image")
    if not isinstance(rows.features[column], datasets.Image):
        raise DataError(f"{source}: column {column} is not an Image but {rows.features[column]}; cast it, or name "
                        "another by data.image_column=...")  # fmt: skip
    return column


def _class_names(feature: Any) -> list[str] | None:
    """The names of a ClassLabel, or of a list of them."""
    while isinstance(feature, list):
        feature = feature[0]
    names = getattr(getattr(feature, "feature", feature), "names", None)
    return list(names) if names else None


def _sizes(rows: Any, column: str) -> list[int]:
    """Bytes of each image's file, -1 if it is outside the table; the images themselves are not read."""
    import pyarrow.compute  # type: ignore[import-untyped]

    sizes: list[int] = []
    for batch in rows.select_columns([column]).with_format("arrow").iter(batch_size=1000):
        content = batch.column(column)
        content = content.combine_chunks() if hasattr(content, "combine_chunks") else content
        lengths = pyarrow.compute.binary_length(pyarrow.compute.struct_field(content, "bytes"))
        sizes += [-1 if length is None else length for length in lengths.to_pylist()]
    return sizes
