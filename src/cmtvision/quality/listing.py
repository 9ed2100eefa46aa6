"""The images of a data set for checking: as ``read_dataset`` finds and splits them, but its errors become findings.

A class without an image, a single class or a file that cannot be read stop training; a check has to go on and name
them together with everything else.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from cmtvision.data import PhotoPath, Skipped
from cmtvision.data.listing.splits import held_out
from cmtvision.data.readers import undo_split_without_train
from cmtvision.data.sources.words import ReadOptions, list_source, source_text
from cmtvision.errors import DataError

VAL_FRACTION, SPLIT_SEED = 0.2, 0  # of the recipes; what is checked is the split that training would make


@dataclass(frozen=True)
class Photo:
    """One image of a data set.

    Attributes:
        path: where it is.
        name: its path from the data's root, or its name in its store, with forward slashes.
        labels: its classes; one, unless images may have several.
        part: 'train', 'val' or 'test'; of data that is not yet split, what training by default would make of it.
    """

    path: PhotoPath
    name: str
    labels: tuple[str, ...]
    part: str

    @property
    def label(self) -> str:
        """Its class, or its classes joined by '|'."""
        return "|".join(self.labels)


@dataclass(frozen=True)
class Listed:
    """What is in a data set, before any image is opened.

    Attributes:
        photos: sorted by name; of data that is not yet split, all in 'train' until ``with_split``.
        skipped: files that are not images, by name, and so on; never opened.
        classes: class names, also of empty classes.
        split_source: 'folders', 'csv', or 'none' where nothing is held out yet.
        root: the folder that names start from.
        in_store: the images are not files of their own (shards, tables with images, other libraries' sets).
        is_table: images are listed by a table.
    """

    photos: list[Photo]
    skipped: list[Skipped]
    classes: list[str]
    split_source: str
    root: Path
    in_store: bool
    is_table: bool


def list_photos(
    source: str,
    *,
    multi_label: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Listed:
    """List the images of whatever ``read_dataset`` takes.

    Raises:
        DataError: no such path, no images in it, a malformed table, or options that such data does not use.
    """
    text = source_text(source)
    options = ReadOptions(
        image_column=image_column, label_column=label_column, multi_label=multi_label, progress=progress
    )
    listing, base = list_source(text, options)
    if not listing.entries:
        raise DataError(f"{text}: no photos found; expected one folder per class with images inside")
    undo_split_without_train(listing)
    names = listing.names or sorted(
        {name for entry in listing.entries for name in entry.labels}
        | {name for name, _ in listing.class_folders.values()}
    )
    photos = [Photo(entry.path, entry.relative, entry.labels, entry.split or "train") for entry in listing.entries]
    in_store = any(not isinstance(photo.path, Path) for photo in photos)
    return Listed(
        photos=sorted(photos, key=lambda photo: photo.name),
        skipped=listing.skipped,
        classes=list(names),
        split_source=listing.split_source,
        root=base,
        in_store=in_store,
        is_table=not in_store and not base.joinpath(Path(text).resolve()).is_dir(),
    )


def with_split(photos: list[Photo]) -> tuple[list[Photo], bool]:
    """The images with a validation part, made as training makes it where the data has none; and whether it was made."""
    if any(photo.part == "val" for photo in photos):
        return photos, False
    learned = [photo for photo in photos if photo.part == "train"]
    chosen = held_out([one.name for one in learned], [one.labels for one in learned], VAL_FRACTION, SPLIT_SEED)
    moved = {id(one) for one, out in zip(learned, chosen, strict=True) if out}
    return [replace(one, part="val") if id(one) in moved else one for one in photos], bool(moved)
