"""Finding a data set's files and labels, before any image is opened: class folders, or the rows of a CSV."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field
from os import scandir
from os.path import relpath
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

from cmtvision.data.index import Skipped
from cmtvision.data.labels import from_text
from cmtvision.data.photos import PhotoPath
from cmtvision.errors import DataError

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".jp2", ".png", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm"}
)
VAL_NAMES = ("val", "valid", "validation", "test")
_SPLITS = {"train": "train", "training": "train", **dict.fromkeys(VAL_NAMES, "val")}


def images_below(folder: Path) -> list[Path]:
    """All files in a folder and below it that are named as images, in the order of their names."""
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in EXTENSIONS and file.is_file())


class Entry(NamedTuple):
    """A photo as it was found: where, its name, its class (or classes), and 'train', 'val' or None (not yet split)."""

    path: PhotoPath
    relative: str
    labels: tuple[str, ...]
    split: str | None


@dataclass
class Listing:
    """All that was found.

    ``classes`` holds those without a photo too; ``names`` is their order where the data declares one (classes without
    a photo are then allowed). ``trusted`` data was verified when it was written.
    """

    entries: list[Entry] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    classes: set[str] = field(default_factory=set)
    split_source: str = "none"
    names: list[str] | None = None
    trusted: bool = False


def list_folders(root: Path, label: str) -> Listing:
    """The photos of a folder of class folders, or of train/ and val/ (or valid, validation, test) with class folders.

    Folders inside a class folder belong to the class. Symbolic links to folders outside the root are not followed.

    Raises:
        DataError: the folder is empty, has no class folders, or cannot be read. ``label`` is what it is called there.
    """
    listing = Listing()
    folders = {folder.name: folder for folder in _subfolders(root, root, listing)}
    if "train" in folders and any(_subfolders(folders["train"], root, Listing())):
        val = next((folders[name] for name in VAL_NAMES if name in folders), None)
        _list_classes(folders["train"], root, "train" if val else None, listing)
        if val is not None:
            listing.split_source = "folders"
            _list_classes(val, root, "val", listing)
        return listing
    if not folders:
        stray = next((item for item in sorted(root.iterdir()) if item.suffix.lower() in EXTENSIONS), None)
        hint = f"it holds images ({stray.name}, ...) but no class folders" if stray else "it has no class folders"
        raise DataError(f"{label}: {hint}; put the images of each class into a folder with the class's name")
    _list_classes(root, root, None, listing)
    return listing


def list_csv(
    file: Path,
    root: Path,
    allow_outside: bool,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    multi_label: bool = False,
) -> Listing:
    """The rows of a CSV with the columns path, label and optionally split; paths are relative to ``root``.

    Other names for the first two are given as ``image_column`` and ``label_column``. With ``multi_label`` a label is
    any number of class names joined by '|', and may be empty.

    Raises:
        DataError: not a CSV, columns missing, an empty field, a path that leaves the root, a photo with two labels.
    """
    if file.suffix.lower() != ".csv":
        raise DataError(f"{file}: a file that is not a CSV; give a folder of class folders, or a .csv with path,label")
    listing = Listing()
    seen: dict[str, tuple[tuple[str, ...], str | None]] = {}
    names = ((image_column or "path").lower(), (label_column or "label").lower())
    for line, row in _rows(file, names):
        path, label = ((row.get(name) or "").strip() for name in names)
        labels = from_text(label) if multi_label else (label,)
        if not path or not (label or multi_label):
            raise DataError(f"{file} line {line}: {names[1] if path else names[0]} is empty")
        split = split_word(row.get("split"), f"{file} line {line}")
        full = inside(root, path, allow_outside, f"{file} line {line}")
        relative = Path(relpath(full, root)).as_posix()
        if relative in seen:
            if seen[relative] != (labels, split):
                raise DataError(f"{file} line {line}: {path} was listed before with another label or split")
            listing.skipped.append(Skipped(full, "listed twice"))
            continue
        seen[relative] = (labels, split)
        listing.classes.update(labels)
        listing.entries.append(Entry(full, relative, labels, split))
    settle_splits(listing, str(file))
    return listing


def split_word(word: str | None, where: str) -> str | None:
    """What a table's split column says: 'train', 'val', or None where it is empty. DataError for another word."""
    word = (word or "").strip().lower()
    if word and word not in _SPLITS:
        raise DataError(f"{where}: split {word!r}, expected train or val")
    return _SPLITS[word] if word else None


def settle_splits(listing: Listing, where: str) -> None:
    """Decide what a table's splits mean: a table of held-out photos alone is not yet split.

    Raises:
        DataError: some rows have a split and some have none.
    """
    splits = {entry.split for entry in listing.entries}
    if None in splits and len(splits) > 1:
        raise DataError(f"{where}: some rows have a split and some have none; fill the column or leave it out")
    if "val" in splits:
        if "train" not in splits:
            listing.entries = [entry._replace(split=None) for entry in listing.entries]
        else:
            listing.split_source = "csv"


def _list_classes(folder: Path, root: Path, split: str | None, listing: Listing) -> None:
    for item in sorted(folder.iterdir()):
        if item.is_file():
            listing.skipped.append(Skipped(item, "not inside a class folder"))
    for class_folder in _subfolders(folder, root, listing if folder != root else Listing()):
        listing.classes.add(class_folder.name)
        for file in _files(class_folder, root, {class_folder.resolve()}, listing):
            if file.name.startswith("."):
                listing.skipped.append(Skipped(file, "hidden file"))
            elif file.suffix.lower() not in EXTENSIONS:
                listing.skipped.append(Skipped(file, "not an image, by its extension"))
            else:
                listing.entries.append(Entry(file, file.relative_to(root).as_posix(), (class_folder.name,), split))


def _subfolders(folder: Path, root: Path, listing: Listing) -> Iterator[Path]:
    """The folders in a folder by name, without hidden ones and links that lead out of the root."""
    try:
        with scandir(folder) as found:
            names = sorted((item.name, item.is_symlink()) for item in found if item.is_dir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror or error})") from None
    for name, is_link in names:
        path = folder / name
        if name.startswith(".") or name == "__MACOSX":
            continue
        if is_link and not path.resolve().is_relative_to(root):
            listing.skipped.append(Skipped(path, "a link to a folder outside the data folder"))
            continue
        yield path


def _files(folder: Path, root: Path, visited: set[Path], listing: Listing) -> Iterator[Path]:
    """The files of a class folder and the folders in it; ``visited`` keeps a link from leading round in circles."""
    with scandir(folder) as found:
        names = sorted(item.name for item in found if not item.is_dir())
    yield from (folder / name for name in names)
    for inner in _subfolders(folder, root, listing):
        real = inner.resolve()
        if real not in visited:
            visited.add(real)
            yield from _files(inner, root, visited, listing)


def _rows(file: Path, names: tuple[str, str]) -> Iterator[tuple[int, dict[str, str | None]]]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as text:
            reader = csv.DictReader(text, skipinitialspace=True)
            columns = [(name or "").strip().lower() for name in reader.fieldnames or []]
            missing = [name for name in names if name not in columns]
            if missing:
                raise DataError(
                    f"{file}: no column {' and '.join(missing)}; the first line must name {','.join(names)}"
                    + (f" (it names {', '.join(columns)})" if columns else " (the file is empty)")
                )
            reader.fieldnames = columns
            for row in reader:
                if None in row:
                    raise DataError(
                        f"{file} line {reader.line_num}: more fields than columns; quote a path with a comma"
                    )
                yield reader.line_num, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: cannot be read as a CSV ({error})") from None


def inside(root: Path, path: str, allow_outside: bool, where: str) -> Path:
    """A path that a table names, from the root. DataError where it leads out of it and that is not allowed."""
    # A CSV written on Windows is judged by Windows' rules too, so that nothing slips out by a backslash.
    absolute = PurePosixPath(path).is_absolute() or bool(PureWindowsPath(path).drive)
    climbs = ".." in PurePosixPath(path).parts or ".." in PureWindowsPath(path).parts
    if (absolute or climbs) and not allow_outside:
        raise DataError(f"{where}: path {path!r} leads out of {root}; use paths relative to it, or allow_outside")
    return root / path
