"""YOLO: one text file an image, one object a line: ``class x y width height`` in shares of the image's edges.

x and y are the box's middle. A line may instead give an outline, ``class x y x y x y ...`` with three points or more;
its box is the smallest around it. Images are in folders called ``images``, labels of the same names in ``labels``
(``images/train`` and ``labels/train``, or ``train/images`` and ``train/labels``), or beside the images. ``data.yaml``
may name the classes and the folders of the parts; without it, ``classes.txt`` (one name a line) or ``obj.names`` does,
and classes without names are called by their number. An image without a text file, or with an empty one, has no object.

Paths in data.yaml are read from the folder that holds it, whatever its ``path`` says: a downloaded file names folders
of another machine, and none may lead out of the data.
"""

from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from cmtvision.data.annotations.limits import MAX_POINTS, exists, name_below, number, read_text, shown
from cmtvision.data.annotations.outlines import polygon_points
from cmtvision.data.annotations.raw import RawImage, RawListing, RawObject
from cmtvision.data.listing.class_folders import EXTENSIONS, images_below
from cmtvision.data.listing.index import Skipped
from cmtvision.data.listing.splits import part_named, parts_of
from cmtvision.errors import DataError

_NAMES = ("classes.txt", "obj.names", "labels.txt")
_YAMLS = ("data.yaml", "data.yml", "dataset.yaml")
_NO_LABELS = {"classes.txt", "labels.txt", "readme.txt", "license.txt"}


def yolo_folders(source: Path) -> dict[Path, str | None] | None:
    """The folders of images of YOLO data, each with its part; None where it is no YOLO data.

    Raises:
        DataError: two folders for one part, a data.yaml that cannot be read or names no folder that is there.
    """
    if source.is_file():
        if source.suffix.lower() not in (".yaml", ".yml"):
            return None
        return _stated_folders(source, _yaml(source))
    stated = next((source / name for name in _YAMLS if (source / name).is_file()), None)
    if stated is not None:
        return _stated_folders(stated, _yaml(stated))
    inside = {one.name: one for one in source.iterdir() if one.is_dir()}
    split = {name: folder for name, folder in inside.items() if (folder / "images").is_dir() and part_named(name)}
    if split:
        parts = parts_of(split, str(source))
        found = {split[name] / "images": part for name, part in parts.items()}
        return found if any(_has_labels(folder) for folder in found) else None  # type: ignore[return-value]
    images = inside.get("images")
    if images is None:
        return {source: None} if _has_labels(source) else None
    named = {one.name: one for one in images.iterdir() if one.is_dir()}
    parts = parts_of(named, str(images))
    found_parts: dict[Path, str | None] = {named[name]: part for name, part in parts.items()} or {images: None}
    return found_parts if any(_has_labels(folder) for folder in found_parts) else None


def list_yolo(source: Path, folders: dict[Path, str | None]) -> RawListing:
    """The images and objects of YOLO data.

    Raises:
        DataError: a line that is no object, a class without a name, a text file that cannot be read.
    """
    base = source if source.is_dir() else source.parent
    listing = RawListing(base.resolve(), "yolo", names=_class_names(source))
    numbers: set[int] = set()
    seen: dict[str, str | None] = {}
    labels_used: set[Path] = set()
    for folder, part in folders.items():
        for given in _images(folder):
            path, relative = name_below(listing.root, base.resolve(), given.relative_to(base).as_posix(), str(folder))
            if relative in seen:
                if seen[relative] != part:
                    raise DataError(f"{path}: is in {seen[relative]} and in {part}; leave it in one of them")
                listing.left_out.add("an image listed twice, taken once", str(path))
                continue
            seen[relative] = part
            image = RawImage(path, relative, part, shares=True)
            labels = _labels_of(given)
            if labels.is_file():
                labels_used.add(labels)
                _read_objects(labels, image, listing, numbers)
            listing.images.append(image)
        for stray in sorted(_label_folder(folder).rglob("*.txt")) if not folder.is_file() else ():
            if stray not in labels_used and stray.name.lower() not in _NO_LABELS and not stray.name.startswith("."):
                listing.skipped.append(Skipped(stray, "no image of this name"))
    if listing.names is None:  # numbers are their own names, in numerical order
        listing.names = [str(one) for one in range(max(numbers, default=-1) + 1)]
    return listing


def _read_objects(file: Path, image: RawImage, listing: RawListing, numbers: set[int]) -> None:
    known: set[str] = set()
    for line_number, line in enumerate(read_text(file).splitlines(), start=1):
        where, cells = f"{file} line {line_number}", line.split()
        if not cells:
            continue
        if " ".join(cells) in known:
            listing.left_out.add("a box listed twice", where)
            continue
        known.add(" ".join(cells))
        label = _class_of(cells[0], listing.names, where)
        numbers.add(label)
        name = str(label) if listing.names is None else listing.names[label]
        values = [_share(cell, where) for cell in cells[1:]]
        if len(values) > 2 * MAX_POINTS:
            raise DataError(f"{where}: an outline of more than {MAX_POINTS:,} points")
        if (len(values) != 4 and len(values) % 2) or not values:
            raise DataError(f"{where}: {len(cells)} fields, expected class x y width height, or class x y x y x y ...")
        if None in values:
            listing.left_out.add("a box left out: a coordinate that is not a finite number", where)
            continue
        shares = [value for value in values if value is not None]
        if len(shares) == 4:
            x, y, width, height = shares
            box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
            image.objects.append(RawObject(name, box, where))
        elif len(shares) < 6:
            listing.left_out.add("an outline left out: fewer than three points", where)
        else:
            xs, ys = shares[::2], shares[1::2]
            box = (min(xs), min(ys), max(xs), max(ys))
            image.objects.append(RawObject(name, box, where, polygons=(polygon_points(shares),)))


def _class_of(cell: str, names: list[str] | None, where: str) -> int:
    value = number(_share(cell, where))
    if value is None or value % 1 or not 0 <= value < 100_000:
        raise DataError(f"{where}: class {cell[:30]!r}, expected a whole number from 0")
    if names is not None and value >= len(names):
        raise DataError(
            f"{where}: class {int(value)} is outside the {len(names)} named classes (0 to {len(names) - 1})"
        )
    return int(value)


def _share(cell: str, where: str) -> float | None:
    """A number of a line; None if it is not finite."""
    try:
        return number(float(cell))
    except ValueError:
        raise DataError(f"{where}: {cell[:30]!r} is not a number; expected class x y width height") from None


def _class_names(source: Path) -> list[str] | None:
    folder = source if source.is_dir() else source.parent
    stated = source if source.is_file() else next((folder / one for one in _YAMLS if (folder / one).is_file()), None)
    if stated is not None:
        return _names_in(stated, _yaml(stated))
    for place in (folder, folder / "labels"):
        file = next((place / name for name in _NAMES if (place / name).is_file()), None)
        if file is not None:
            return _checked(file, [line.strip() for line in read_text(file).splitlines() if line.strip()])
    return None


def _names_in(file: Path, content: dict[str, Any]) -> list[str] | None:
    names = content.get("names")
    if names is None:
        return None
    if isinstance(names, dict) and sorted(names, key=str) == sorted(range(len(names)), key=str):
        names = [names[place] for place in range(len(names))]
    if not isinstance(names, list) or not all(isinstance(name, str | int) for name in names) or not names:
        raise DataError(f"{file}: names is {str(names)[:60]}, expected a list of class names, or 0: name, 1: name, ...")
    return _checked(file, [str(name).strip() for name in names])


def _checked(file: Path, names: list[str]) -> list[str]:
    if len(set(names)) != len(names) or "" in names:
        raise DataError(f"{file}: a class name is there twice, or empty; name each class once")
    return names


def _yaml(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(read_text(file))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: not YAML ({' '.join(str(error).split())[:200]})") from None
    if not isinstance(content, dict):
        raise DataError(f"{file}: expected names, train and val, as YOLO's data.yaml has them")
    return content


def _stated_folders(file: Path, content: dict[str, Any]) -> dict[Path, str | None]:
    """The folders, or lists of images, that a data.yaml names; see the module's docstring for where they are."""
    found: dict[Path, str | None] = {}
    missing = []
    for part, key in (("train", "train"), ("val", "val"), ("val", "valid"), ("test", "test")):
        values = content.get(key)
        for value in values if isinstance(values, list) else [values] if values else []:
            if not isinstance(value, str):
                raise DataError(f"{file}: {key} is {str(value)[:60]}, expected a folder of images")
            place = _place(file.parent, str(content.get("path") or ""), value)
            if place is None:
                missing.append(f"{key}: {value}")
            elif found.setdefault(place, part) != part:
                raise DataError(f"{file}: {value} is named for {found[place]} and for {part}; name each folder once")
    if not found or (missing and "train" not in found.values()):
        what = f"; it names {shown(', '.join(missing))}" if missing else ""
        raise DataError(f"{file}: no folder of images beside it by the names train, val and test{what}")
    return found


def _place(base: Path, stated: str, value: str) -> Path | None:
    """A folder or list below the base that a data.yaml names; leading '..' and other machines' folders are dropped."""
    parts = [part for part in PurePosixPath(value.replace("\\", "/")).parts if part not in ("..", "/", ".")]
    prefix = [part for part in PurePosixPath(stated.replace("\\", "/")).parts if part not in ("..", "/", ".")]
    for tail in (parts, [*prefix, *parts], *(parts[skip:] for skip in range(1, len(parts)))):
        place = base.joinpath(*tail)
        if exists(place) and place.resolve().is_relative_to(base.resolve()):
            return place
    return None


def _images(folder: Path) -> list[Path]:
    """The images of a folder, or of a text file that lists them, each only if it is below that file's folder."""
    if folder.is_dir():
        return images_below(folder)
    found = []
    for line_number, line in enumerate(read_text(folder).splitlines(), start=1):
        if line.strip():
            path, _ = name_below(folder.parent, folder.parent, line.strip(), f"{folder} line {line_number}")
            found.append(path)
    return found


def _labels_of(image: Path) -> Path:
    """The text file of an image: in ``labels`` where the image is in ``images``, else beside it."""
    parts = list(image.parts)
    places = [place for place, part in enumerate(parts[:-1]) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
        other = Path(*parts).with_suffix(".txt")
        if other.is_file():
            return other
    return image.with_suffix(".txt")


def _label_folder(images: Path) -> Path:
    parts = list(images.parts)
    places = [place for place, part in enumerate(parts) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
    return Path(*parts)


def _has_labels(folder: Path) -> bool:
    """Whether some image of the folder has a text file of its name."""
    place = _label_folder(folder)
    images = {file.stem for file in folder.rglob("*") if file.suffix.lower() in EXTENSIONS}
    return place.is_dir() and any(file.stem in images for file in place.rglob("*.txt"))
