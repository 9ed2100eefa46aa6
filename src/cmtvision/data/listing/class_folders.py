"""Finding a data set's files and labels, before any image is opened: class folders, or the rows of a CSV."""

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from os import scandir
from os.path import normpath, relpath
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

from cmtvision.data.listing.index import Skipped, from_spelled
from cmtvision.data.listing.labels import from_text
from cmtvision.data.listing.own_folders import OWN, has_marks, is_own
from cmtvision.data.listing.splits import part_named, parts_of, split_word
from cmtvision.data.photos import PhotoPath
from cmtvision.errors import DataError

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".jp2", ".png", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm"}
)
IMAGES = frozenset({"images", "jpegimages"})
ANNOTATED = frozenset(
    {"masks", "mask", "labels", "annotations", "imagesets", "segmentationclass", "segmentationobject"}
)
"""Names of folders that data for detection and segmentation is made of, in lower case."""
IMAGE_COLUMNS = ("image", "img", "photo", "picture", "path", "image_path", "file", "file_name", "filename", "bytes")
LABEL_COLUMNS = ("label", "labels", "class", "category", "target", "fine_label", "cls")


def images_below(folder: Path) -> list[Path]:
    """All files in a folder and below it that have an image extension, in the order of their names.

    As in training, hidden files and folders, ``__MACOSX`` and what we wrote ourselves are left out.
    """
    found: list[Path] = []
    for place, folders, files in os.walk(folder):
        here = Path(place)
        folders[:] = [name for name in folders if not _is_hidden(name) and not has_marks(here / name)]
        found += [here / name for name in files if not _is_hidden(name)]
    return sorted(file for file in found if file.suffix.lower() in EXTENSIONS and file.is_file())


def class_folders(folder: Path) -> list[str]:
    """Names of the class folders with images, in a folder itself or in its train/, val/ or test/."""
    found: list[str] = []
    for one in _data_folders(folder, folder.resolve(), Listing()):
        if part_named(one.name):
            found += [f"{one.name}/{name}" for name in class_folders(one)]
        elif _holds_images(one):
            found.append(one.name)
    return found


class Entry(NamedTuple):
    """An image as found: where, its name, its class (or classes), 'train', 'val', 'test' or None (not yet split)."""

    path: PhotoPath
    relative: str
    labels: tuple[str, ...]
    split: str | None


@dataclass
class Listing:
    """All that was found.

    ``class_folders`` lists the class folders with their class and part, including empty ones. ``names``
    is the order of the classes if the data declares one (classes without an image are then allowed). ``trusted``
    data was verified when it was written. ``empty_train`` is a folder for training images that has none.
    """

    entries: list[Entry] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    class_folders: dict[Path, tuple[str, str | None]] = field(default_factory=dict)
    split_source: str = "none"
    names: list[str] | None = None
    trusted: bool = False
    empty_train: Path | None = None

    def learned_classes(self) -> set[str]:
        """The classes that training would learn: those that are not only in a held-out part."""
        found = {name for entry in self.entries if entry.split in (None, "train") for name in entry.labels}
        return found | {name for name, part in self.class_folders.values() if part in (None, "train")}


def list_folders(root: Path, label: str) -> Listing:
    """The images of a folder of class folders, or of train/, val/ and test/ with class folders (see ``splits``).

    Folders inside a class folder belong to the class. Symbolic links to folders outside the root are not followed, and
    what cmtvision itself wrote is left out.

    Raises:
        DataError: the folder is empty, has no class folders, cannot be read, or is ambiguous. ``label`` is its
            name in the message.
    """
    listing = Listing()
    folders = {folder.name: folder for folder in _data_folders(root, root, listing)}
    _refuse_annotated(root, folders, label)
    parts = _parts(root, folders, label)
    others = [folder for name, folder in folders.items() if name not in parts]
    if not folders:
        stray = next((item for item in sorted(root.iterdir()) if item.suffix.lower() in EXTENSIONS), None)
        hint = f"it holds images ({stray.name}, ...) but no class folders" if stray else "it has no class folders"
        raise DataError(f"{label}: {hint}; put the images of each class into a folder with the class's name")
    if not parts:
        _list_classes(root, folders.values(), root, None, listing)
        return listing
    held_out = set(parts.values()) - {"train"}
    _skip_files(root, listing, beside_parts=True)
    for name, part in parts.items():
        inside = list(_data_folders(folders[name], root, listing))
        _list_classes(folders[name], inside, root, part if held_out else None, listing)
    for folder in others:
        known = part_named(folder.name)
        reason = (
            "no class folders in it" if known else f"next to {', '.join(f'{name}/' for name in parts)}, not part of it"
        )
        listing.skipped.append(Skipped(folder, reason))
        listing.empty_train = folder if known == "train" else listing.empty_train
    listing.split_source = "folders" if held_out else "none"
    return listing


def _refuse_annotated(root: Path, folders: dict[str, Path], label: str) -> None:
    """Raise DataError for images with boxes or masks, whose folders would pass for classes called images and masks."""
    for inside in (root, *(folder for name, folder in folders.items() if part_named(name))):
        names = {one.name.lower() for one in inside.iterdir() if one.is_dir() and not one.name.startswith(".")}
        beside = sorted(names & ANNOTATED)
        whole = names <= ANNOTATED | IMAGES and names & IMAGES
        listed = inside == root and beside and any((root / one).glob("*.json") for one in beside)
        if beside and (whole or listed):
            raise DataError(
                f"{label}: images with {beside[0]}/ beside them, not class folders; cmtvision detect train learns from "
                "boxes, cmtvision segment train from masks"
            )


def _parts(root: Path, folders: dict[str, Path], label: str) -> dict[str, str]:
    """The folders of a data set that are its parts: with a part's name, and class folders inside.

    Raises:
        DataError: two folders for one part; folders named as parts with images but no class folders; a held-out part
            next to class folders.
    """
    named = [name for name in folders if part_named(name)]
    inside = {name: {one.name for one in _data_folders(folders[name], root, Listing())} for name in named}
    parts = parts_of((name for name, classes in inside.items() if classes), label)
    if "train" in parts.values():
        return parts
    others = sorted(name for name in folders if name not in inside and _holds_images(folders[name]))
    if not others and not parts and len(set(parts_of(inside, label).values())) > 1:
        raise DataError(f"{label}: no class folders in {', '.join(f'{name}/' for name in inside)}; put the images of "
                        "each class into a folder with the class's name there")  # fmt: skip
    for name in parts:
        same = sorted(inside[name] & set(others))
        if same:
            raise DataError(f"{label}: {name}/ holds class folders ({same[0]}, ...), and so does {label} itself; put "
                            "those to train on into train/")  # fmt: skip
    flat = sorted(
        name  # valid/ beside invalid/ is a class, and train/ beside bus/
        for name, classes in inside.items()
        if not classes and part_named(name) == "test" and _holds_images(folders[name])
    )
    if others and flat and not parts:
        raise DataError(
            f"{label}: {flat[0]}/ is next to class folders ({others[0]}, ...) and may be a part or a class; move "
            "the others into train/, or give the class another name"
        )
    return {} if others else parts


def list_csv(
    file: Path,
    root: Path,
    allow_outside: bool,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    multi_label: bool = False,
) -> Listing:
    """The rows of a CSV with the columns path, label and optionally split; paths are in ``root`` or relative to it.

    The first two may have another usual name, or one given as ``image_column`` and ``label_column``. With
    ``multi_label`` a label is any number of class names joined by '|', and may be empty.

    Raises:
        DataError: not a CSV, columns missing, an empty field, a path that leaves the root, an image with two labels.
    """
    if file.suffix.lower() != ".csv":
        raise DataError(f"{file}: a file that is not a CSV; give a folder of class folders, or a .csv with path,label")
    listing = Listing()
    seen: dict[str, tuple[tuple[str, ...], str | None]] = {}
    for line, names, row in _rows(file, image_column, label_column):
        path, label = _path_as_meant(row.get(names[0]) or "", root), from_spelled((row.get(names[1]) or "").strip())
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
        listing.entries.append(Entry(full, relative, labels, split))
    settle_splits(listing, str(file))
    return listing


def _path_as_meant(text: str, root: Path) -> str:
    """The path in a cell: unchanged if such a file exists, else without spaces, or as ``as_text`` spells it."""
    stripped = text.strip()
    choices = dict.fromkeys((text, stripped, from_spelled(text), from_spelled(stripped)))
    return next((one for one in choices if (root / one).is_file()), stripped) if len(choices) > 1 else text


def plain_name(name: str) -> str:
    """A relative name with forward slashes and no redundant parts: './a//b.png' is 'a/b.png'."""
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def settle_splits(listing: Listing, where: str, source: str = "csv") -> None:
    """Check a table's splits, and say in ``split_source`` whether it holds anything out.

    Raises:
        DataError: some rows have a split and some have none.
    """
    splits = {entry.split for entry in listing.entries}
    if None in splits and len(splits) > 1:
        raise DataError(f"{where}: some rows have a split and some have none; fill the column or leave it out")
    if splits & {"val", "test"}:
        listing.split_source = source


def pick_column(columns: Sequence[str], wanted: str | None, usual: Sequence[str], where: str, kind: str) -> str:
    """The column of the image or label: the one asked for, else the first with a usual name.

    Raises:
        DataError: there is none.
    """
    if wanted is not None:
        if wanted in columns:
            return wanted
        raise DataError(f"{where}: no column {wanted!r} (data.{kind}_column); it has {', '.join(columns) or 'none'}")
    lower = {name.lower(): name for name in reversed(columns)}
    found = next((lower[name] for name in usual if name in lower), None)
    if found is None:
        raise DataError(f"{where}: no column {kind}; name it by data.{kind}_column=... (it has {', '.join(columns)})")
    return found


def _list_classes(folder: Path, classes: Iterable[Path], root: Path, split: str | None, listing: Listing) -> None:
    _skip_files(folder, listing)
    for class_folder in classes:
        listing.class_folders[class_folder] = (class_folder.name, split)
        for file in _files(class_folder, root, {class_folder.resolve()}, listing):
            if file.name.startswith("."):
                listing.skipped.append(Skipped(file, "hidden file"))
            elif file.suffix.lower() not in EXTENSIONS:
                listing.skipped.append(Skipped(file, "not an image, by its extension"))
            else:
                listing.entries.append(Entry(file, file.relative_to(root).as_posix(), (class_folder.name,), split))


def _skip_files(folder: Path, listing: Listing, beside_parts: bool = False) -> None:
    """Name the files in a folder; next to train/ and val/ only those that may be data (not a licence)."""
    for item in sorted(folder.iterdir()):
        shard = item.suffix.lower() == ".tar"
        if item.is_file() and (not beside_parts or shard or item.suffix.lower() in EXTENSIONS):
            listing.skipped.append(
                Skipped(item, "a tar next to class folders" if shard else "not inside a class folder")
            )


def _data_folders(folder: Path, root: Path, listing: Listing) -> Iterator[Path]:
    """The folders in a folder that may be parts or classes; those that we wrote are named as skipped."""
    for one in _subfolders(folder, root, listing):
        if is_own(one, EXTENSIONS):
            listing.skipped.append(Skipped(one, OWN))
        else:
            yield one


def _holds_images(folder: Path) -> bool:
    listing = Listing()
    files = _files(folder, folder.resolve(), {folder.resolve()}, listing)
    return any(file.suffix.lower() in EXTENSIONS and not file.name.startswith(".") for file in files)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _subfolders(folder: Path, root: Path, listing: Listing) -> Iterator[Path]:
    """The folders in a folder by name, without hidden ones and links that lead out of the root."""
    try:
        with scandir(folder) as found:
            names = sorted((item.name, item.is_symlink()) for item in found if item.is_dir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror or error})") from None
    for name, is_link in names:
        path = folder / name
        if _is_hidden(name):
            continue
        if is_link and not path.resolve().is_relative_to(root):
            listing.skipped.append(Skipped(path, "a link to a folder outside the data folder"))
            continue
        yield path


def _files(folder: Path, root: Path, visited: set[Path], listing: Listing) -> Iterator[Path]:
    """The files of a class folder and the folders in it; ``visited`` prevents cycles through links."""
    try:
        with scandir(folder) as found:
            names = sorted(item.name for item in found if not item.is_dir())
    except OSError as error:
        listing.skipped.append(Skipped(folder, f"cannot be read ({error.strerror or error})"))
        return
    yield from (folder / name for name in names)
    for inner in _subfolders(folder, root, listing):
        if has_marks(inner):
            listing.skipped.append(Skipped(inner, OWN))
            continue
        real = inner.resolve()
        if real not in visited:
            visited.add(real)
            yield from _files(inner, root, visited, listing)


def _rows(
    file: Path, image_column: str | None, label_column: str | None
) -> Iterator[tuple[int, tuple[str, str], dict[str, str | None]]]:
    """Each row with its line number, and the names of its image and label columns."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as text:
            reader = csv.DictReader(text, skipinitialspace=True)
            columns = [(name or "").strip().lower() for name in reader.fieldnames or []]
            if not columns:
                raise DataError(f"{file}: the file is empty; the first line must name path,label")
            # Our own tables say path and label, whatever other columns there are.
            image = pick_column(
                columns, image_column and image_column.lower(), ("path", *IMAGE_COLUMNS), str(file), "image"
            )
            label = pick_column(columns, label_column and label_column.lower(), LABEL_COLUMNS, str(file), "label")
            reader.fieldnames = columns
            for row in reader:
                if None in row:
                    raise DataError(
                        f"{file} line {reader.line_num}: more fields than columns; quote a path with a comma"
                    )
                yield reader.line_num, (image, label), row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: cannot be read as a CSV ({error})") from None


def inside(root: Path, path: str, allow_outside: bool, where: str) -> Path:
    """A path in a list of images, relative to the root; a full path inside the root is as good as a relative one.

    Raises:
        DataError: it leads out of the root, and that is not allowed.
    """
    # A CSV written on Windows is judged by Windows' rules too, so that nothing slips out by a backslash.
    absolute = PurePosixPath(path).is_absolute() or bool(PureWindowsPath(path).drive)
    climbs = ".." in PurePosixPath(path).parts or ".." in PureWindowsPath(path).parts
    if Path(path).is_absolute() and not climbs:
        # The root's own links are followed, a link that is the image is not: it is as good as a relative one.
        for full in (Path(normpath(path)), Path(path).parent.resolve() / Path(path).name):
            if full.is_relative_to(root):
                return full
    if (absolute or climbs) and not allow_outside:
        raise DataError(f"{where}: path {path!r} leads out of {root}; keep all its images below that folder, and write "
                        "paths relative to it")  # fmt: skip
    return root / path
