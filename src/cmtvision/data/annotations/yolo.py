"""YOLO: one text file an image, one object a line: ``class x y width height`` in shares of the image's edges.

x and y are the box's middle. A line may instead give an outline, ``class x y x y x y ...`` with three points or more;
its box is the smallest around it. With ``kpt_shape`` in data.yaml, a line has keypoints after its box, which are left
out. Images are in folders called ``images``, labels of the same names in ``labels``
(``images/train`` and ``labels/train``, or ``train/images`` and ``train/labels``), or beside the images (``train/a.jpg``
and ``train/a.txt``, too). ``data.yaml``
may name the classes and the folders of the parts; without it, ``classes.txt`` (one name a line) or ``obj.names`` does,
and classes without names are called by their number. An image without a text file, or with an empty one, has no object.

Paths in data.yaml are read from the folder that holds it, whatever its ``path`` says: a downloaded file names folders
of another machine, and none may lead out of the data. Images to train on or to hold out that it names must be there;
those of a test part often are not published, and a note says so.
"""

from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from cmtvision.data.annotations.limits import MAX_POINTS, exists, name_below, number, read_text, shown
from cmtvision.data.annotations.outlines import polygon_points
from cmtvision.data.annotations.raw import RawImage, RawListing, RawObject
from cmtvision.data.listing.class_folders import images_below
from cmtvision.data.listing.index import Skipped
from cmtvision.data.listing.splits import part_named, part_of_file, parts_of
from cmtvision.errors import DataError

_NAMES = ("classes.txt", "obj.names", "labels.txt")
_YAMLS = ("data.yaml", "data.yml", "dataset.yaml")
_NO_LABELS = {"classes.txt", "labels.txt", "readme.txt", "license.txt"}


def yolo_folders(source: Path) -> dict[Path, str | None] | None:
    """The folders of images of YOLO data, each with its part; None where it is no YOLO data.

    Raises:
        DataError: two folders for one part, a data.yaml that cannot be read or names folders that are not there.
    """
    if source.is_file() and source.suffix.lower() not in (".yaml", ".yml"):
        return None
    stated = _stated_file(source)
    if stated is not None:
        return _stated_folders(stated, _yaml(stated))
    inside = {one.name: one for one in source.iterdir() if one.is_dir()}
    split = {name: _images_in(folder) for name, folder in inside.items() if part_named(name)}
    split = {name: one for name, one in split.items() if one.name == "images" or _has_labels(one, source)}
    if any(_has_labels(folder, source) for folder in split.values()):
        return {split[name]: part for name, part in parts_of(split, str(source)).items()}
    images = inside.get("images")
    if images is None:
        return {source: None} if _has_labels(source, source) else None
    named = {one.name: one for one in images.iterdir() if one.is_dir()}
    parts = parts_of(named, str(images))
    found: dict[Path, str | None] = {named[name]: part for name, part in parts.items()} or {images: None}
    return found if any(_has_labels(folder, source) for folder in found) else None


def list_yolo(source: Path, folders: dict[Path, str | None]) -> RawListing:
    """The images and objects of YOLO data.

    Raises:
        DataError: a line that is no object, a class without a name, a text file that cannot be read.
    """
    base = source if source.is_dir() else source.parent
    listing = RawListing(base.resolve(), "yolo", names=_class_names(source))
    stated = _stated_file(source)
    pose = stated is not None and _yaml(stated).get("kpt_shape") is not None
    if pose:
        listing.notes.append("keypoints (kpt_shape) are left out; boxes alone are read")
    numbers: set[int] = set()
    seen: dict[str, str | None] = {}
    labels_used: set[Path] = set()
    for folder, part in folders.items():
        if not exists(folder):
            listing.notes.append(f"the {part} images that {stated} names are not there: {folder}")
            continue
        for given in _images(folder):
            path, relative = name_below(listing.root, base.resolve(), given.relative_to(base).as_posix(), str(folder))
            if relative in seen:
                if seen[relative] != part:
                    raise DataError(f"{path}: is in {seen[relative]} and in {part}; leave it in one of them")
                listing.left_out.add("an image listed twice, taken once", str(path))
                continue
            seen[relative] = part
            image = RawImage(path, relative, part, shares=True)
            labels = _labels_of(given, base)
            if labels.is_file():
                labels_used.add(labels)
                _read_objects(labels, image, listing, numbers, pose)
            listing.images.append(image)
        beside = _in_labels(folder, base)
        for stray in sorted((beside if beside.is_dir() else folder).rglob("*.txt")) if folder.is_dir() else ():
            if stray not in labels_used and stray.name.lower() not in _NO_LABELS and not stray.name.startswith("."):
                listing.skipped.append(Skipped(stray, "no image of this name"))
    if listing.names is None:  # numbers are their own names, in numerical order
        listing.names = [str(one) for one in range(max(numbers, default=-1) + 1)]
    return listing


def _read_objects(file: Path, image: RawImage, listing: RawListing, numbers: set[int], pose: bool) -> None:
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
        values = [_share(cell, where) for cell in cells[1 : 5 if pose else None]]
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
    folder, stated = source if source.is_dir() else source.parent, _stated_file(source)
    if stated is not None:
        return _names_in(stated, _yaml(stated))
    for place in (folder, folder / "labels"):
        file = next((place / name for name in _NAMES if (place / name).is_file()), None)
        if file is not None:
            return _checked(file, [line.strip() for line in read_text(file).splitlines() if line.strip()])
    return None


def _stated_file(source: Path) -> Path | None:
    """The data.yaml of a folder, or the source itself where it is one."""
    return source if source.is_file() else next((source / one for one in _YAMLS if (source / one).is_file()), None)


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
    missing: list[tuple[str, str]] = []
    for part, key in (("train", "train"), ("val", "val"), ("val", "valid"), ("test", "test")):
        values = content.get(key)
        for value in values if isinstance(values, list) else [values] if values else []:
            if not isinstance(value, str):
                raise DataError(f"{file}: {key} is {str(value)[:60]}, expected a folder of images")
            place = _place(file.parent, str(content.get("path") or ""), value)
            if place is None:
                missing.append((key, value))
            elif found.setdefault(place, part) != part:
                raise DataError(f"{file}: {value} is named for {found[place]} and for {part}; name each folder once")
    if not found or (missing and "train" not in found.values()):
        what = f"; it names {shown(', '.join(f'{key}: {value}' for key, value in missing))}" if missing else ""
        raise DataError(f"{file}: no folder of images beside it by the names train, val and test{what}")
    for key, value in missing:
        if key != "test":
            instead = "" if key == "train" else ", and some of the training images are held out"
            raise DataError(
                f"{file}: {key} is {shown(value)}, which is not in {file.parent}; put it there, or take it out of "
                f"{file.name}{instead}"
            )
    return found | {file.parent.joinpath(*_below(value)): "test" for _, value in missing}


def _place(base: Path, stated: str, value: str) -> Path | None:
    """A folder or list below the base that a data.yaml names; leading '..' and other machines' folders are dropped."""
    parts, prefix = _below(value), _below(stated)
    tails = [parts[skip:] for skip in range(1, len(parts))]
    if any(map(part_of_file, parts)):  # test/images is not images
        tails = [tail for tail in tails if any(map(part_of_file, tail))]
    for tail in (parts, [*prefix, *parts], *tails):
        place = base.joinpath(*tail)
        if exists(place) and place.resolve().is_relative_to(base.resolve()):
            return place
    return None


def _below(stated: str) -> list[str]:
    return [part for part in PurePosixPath(stated.replace("\\", "/")).parts if part not in ("..", "/", ".")]


def _images(folder: Path) -> list[Path]:
    """The images of a folder, or of a text file that lists them, each only if it is below that file's folder."""
    if folder.is_dir():
        return images_below(folder)
    found, root = [], folder.parent.resolve()
    for line_number, line in enumerate(read_text(folder).splitlines(), start=1):
        if line.strip():
            _, relative = name_below(root, root, line.strip(), f"{folder} line {line_number}")
            found.append(folder.parent / relative)
    return found


def _images_in(folder: Path) -> Path:
    return folder / "images" if (folder / "images").is_dir() else folder


def _labels_of(image: Path, base: Path) -> Path:
    """The text file of an image: in ``labels`` where the image is in ``images``, else beside it."""
    other = _in_labels(image, base).with_suffix(".txt")
    return other if other.is_file() else image.with_suffix(".txt")


def _in_labels(path: Path, base: Path) -> Path:
    """A path below ``images`` as one below ``labels``. Folders above the data may be called images as well, which means
    nothing.
    """
    parts = list(path.relative_to(base.parent).parts)
    places = [place for place, part in enumerate(parts) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
    return base.parent.joinpath(*parts)


def _has_labels(folder: Path, base: Path) -> bool:
    """Whether some image of the folder has a text file of its name."""
    return any(_labels_of(image, base).is_file() for image in images_below(folder))
