"""COCO JSON: our own folders, those of the COCO data set, and exports of annotation tools.

Recognised are a folder ``annotations/`` with ``instances_<part>.json`` (``instances_train2017.json``) beside the
folders of images (``train/``, ``train2017/``, ``images/train/``, ``images/``), folders ``train/``, ``valid/``,
``test/`` that each hold images with their ``_annotations.coco.json``, and a single JSON file.

Classes are the categories in the order of their ids, as the training file lists them; other files may number them
differently, and are matched by name. Annotations are not used by their ids, so ids given twice do no harm.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cmtvision.data.annotations.limits import (
    MAX_JSON_BYTES,
    MAX_NAME,
    MAX_POINTS,
    exists,
    name_below,
    number,
    read_json,
    shown,
)
from cmtvision.data.annotations.outlines import Outline, Points, checked_counts, counts_from_text, polygon_points
from cmtvision.data.annotations.raw import LeftOut, RawImage, RawListing, RawObject
from cmtvision.data.listing.splits import part_of_file, parts_of
from cmtvision.errors import DataError

IN_FOLDER = "_annotations.coco.json"
_PREFIX = "instances_"
_FARTHEST = 1e9  # pixels: outside any image, and a float32
_LOOKED_AT = 20  # images by which the folder that holds them is chosen


@dataclass(frozen=True)
class _File:
    json: Path
    part: str | None
    folders: tuple[Path, ...]  # where its images may be, the likeliest first


def coco_files(source: Path) -> list[_File]:
    """The JSON files of a COCO folder, or the file itself; none where it is no COCO data.

    Raises:
        DataError: two files for one part.
    """
    if source.is_file():
        return [_File(source, None, _image_folders(source.parent, source.stem))] if source.suffix == ".json" else []
    inner = [folder for folder in _folders(source) if (folder / IN_FOLDER).is_file()]
    if inner:
        parts = parts_of((folder.name for folder in inner), str(source))
        return [_File(folder / IN_FOLDER, parts[folder.name], (folder,)) for folder in inner if folder.name in parts]
    for folder in (source / "annotations", source):
        files = sorted(folder.glob("*.json")) if folder.is_dir() else []
        chosen = {file.stem.removeprefix(_PREFIX): file for file in files if file.name.startswith(_PREFIX)}
        chosen = chosen or {file.stem: file for file in files if part_of_file(file.stem)}
        if not chosen and len(files) == 1 and (folder != source or _begins_as_coco(files[0])):
            chosen = {"": files[0]}
        if chosen:
            parts = parts_of(chosen, str(folder), of_files=True)
            if len(chosen) > 1:
                chosen = {tail: file for tail, file in chosen.items() if tail in parts}
            return [_File(file, parts.get(tail), _image_folders(source, tail)) for tail, file in chosen.items()]
    return []


def list_coco(source: Path, files: list[_File], max_bytes: int = MAX_JSON_BYTES) -> RawListing:
    """The images and objects of COCO JSON files.

    Raises:
        DataError: not COCO, an annotation of an unknown image or category, ids or names of images given twice for
            different images, a name that leads out of the folder.
    """
    root = source.resolve()
    if not source.is_dir():
        root = root.parent.parent if root.parent.name == "annotations" else root.parent
    listing = RawListing(root, "coco")
    seen: dict[str, RawImage] = {}
    for file in sorted(files, key=lambda one: (one.part not in (None, "train"), one.part or "")):
        _list_file(file, listing, seen, max_bytes)
    return listing


def _list_file(file: _File, listing: RawListing, seen: dict[str, RawImage], max_bytes: int) -> None:
    content = read_json(file.json, max_bytes)
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise DataError(f"{file.json}: not COCO, which is an object with images, annotations and categories")
    categories = _categories(file.json, content.get("categories"))
    if listing.names is None:
        listing.names = list(categories.values())
    folder = _image_folder(file, content["images"])
    images: dict[Any, RawImage] = {}
    for place, entry in enumerate(content["images"]):
        where = f"{file.json} image {place}"
        if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
            raise DataError(f"{where}: expected an object with id and file_name")
        key = _id(entry.get("id"), where, "id")
        path, relative = name_below(listing.root, folder.resolve(), entry["file_name"], where)
        image = seen.get(relative)
        if key in images and images[key] is not image:
            raise DataError(
                f"{where}: id {shown(key)} is that of {images[key].relative} already; number each image once"
            )
        if image is None:
            image = seen[relative] = RawImage(path, relative, file.part, _size(entry, where))
            listing.images.append(image)
        elif image.part != file.part:
            raise DataError(f"{where}: {relative} is in {image.part} and in {file.part}; leave it in one of them")
        elif key not in images:
            listing.left_out.add("an image listed twice, taken once with the boxes of both", where)
        images[key] = image
    annotations = content.get("annotations")
    if not isinstance(annotations, list):
        raise DataError(f"{file.json}: no list of annotations; without one it can only be predicted")
    known: dict[int, set[int]] = defaultdict(set)  # hashes per image, to find what is listed twice
    for annotation in _objects(file.json, annotations, images, categories, listing.left_out):
        image, found = annotation
        same = hash((found.label, found.box, found.crowd, found.outline.key() if found.outline else b""))
        if same in known[id(image)]:
            listing.left_out.add("a box listed twice", found.where)
            continue
        known[id(image)].add(same)
        image.objects.append(found)


def _objects(
    json: Path,
    annotations: list[Any],
    images: Mapping[Any, RawImage],
    categories: Mapping[Any, str],
    left_out: LeftOut,
) -> Iterator[tuple[RawImage, RawObject]]:
    for place, entry in enumerate(annotations):
        where = f"{json} annotation {place}"
        if not isinstance(entry, dict):
            raise DataError(f"{where}: expected an object with image_id, category_id and bbox")
        image = images.get(_id(entry.get("image_id"), where, "image_id"))
        label = categories.get(_id(entry.get("category_id"), where, "category_id"))
        if image is None:
            raise DataError(f"{where}: image {shown(entry.get('image_id'))} is not among its images")
        if label is None:
            raise DataError(
                f"{where}: category {shown(entry.get('category_id'))} is not among its categories "
                f"({', '.join(map(shown, list(categories)[:5]))}{', ...' if len(categories) > 5 else ''})"
            )
        outline = _outline(entry.get("segmentation"), image, where, left_out)
        box = entry.get("bbox")
        if isinstance(box, list) and len(box) == 4:
            numbers = [number(value) for value in box]
            if None in numbers:
                left_out.add("a box left out: a coordinate that is not a finite number", where)
                continue
            x, y, width, height = (value for value in numbers if value is not None)
            corners = (x, y, x + width, y + height)
        elif not box and outline is not None:
            corners = outline.box()
        else:
            raise DataError(f"{where}: bbox is {shown(box)}, expected [x, y, width, height]")
        area = number(entry.get("area"))
        yield (
            image,
            RawObject(
                label, corners, where, outline=outline, crowd=entry.get("iscrowd") in (1, "1"),
                area=area if area is not None and area > 0 else None,
            ),
        )  # fmt: skip


def _outline(value: object, image: RawImage, where: str, left_out: LeftOut) -> Outline | None:
    """The outline of an annotation; None, and counted, where it is unusable: its box may still be right."""
    if not value:
        return None
    if image.declared is None:
        raise DataError(f"{where}: an outline needs width and height of its image, which {image.relative} has not")
    height, width = image.declared
    if isinstance(value, dict):
        return _runs(value, height, width, where, left_out)
    if not isinstance(value, list):
        raise DataError(f"{where}: segmentation is neither polygons nor run lengths")
    polygons = []
    if sum(len(one) for one in value if isinstance(one, list)) > 2 * MAX_POINTS:
        left_out.add(f"an outline left out: more than {MAX_POINTS:,} points", where)
        return None
    for one in value:
        points = _points(one)
        if points is None:
            left_out.add("a polygon left out: not pairs of finite numbers", where)
        elif len(points) < 3:
            left_out.add("a polygon left out: fewer than three points", where)
        else:
            polygons.append(points)
    return Outline(height, width, tuple(polygons)) if polygons else None


def _points(value: object) -> Points | None:
    """x, y, x, y, ... as points; None where they are no pairs of finite numbers."""
    try:
        numbers = np.array(value)
    except (ValueError, OverflowError):  # lists of different lengths
        return None
    if numbers.ndim != 1 or numbers.dtype.kind not in "if" or len(numbers) % 2:
        return None
    points = polygon_points(np.clip(numbers, -_FARTHEST, _FARTHEST))
    return points if np.isfinite(points).all() else None


def _runs(value: dict[str, Any], height: int, width: int, where: str, left_out: LeftOut) -> Outline | None:
    size, counts = value.get("size"), value.get("counts")
    if size != [height, width]:
        left_out.add(f"an outline left out: of size {shown(size)}, not its image's", where)
        return None
    try:
        if isinstance(counts, str):
            lengths = counts_from_text(counts)
        elif isinstance(counts, list) and all(type(one) is int and 0 <= one <= height * width for one in counts):
            lengths = np.array(counts, dtype=np.int64)
        else:
            raise ValueError("run lengths that are neither numbers nor text")
        return Outline(height, width, counts=checked_counts(lengths, height, width))
    except ValueError as error:
        left_out.add(f"an outline left out: {error}", where)
        return None


def _categories(json: Path, value: object) -> dict[Any, str]:
    """The names of categories by id, in the order of ids."""
    if not isinstance(value, list) or not value:
        raise DataError(f"{json}: no categories; COCO lists them as objects with id and name")
    found: dict[Any, str] = {}
    for place, entry in enumerate(value):
        where = f"{json} category {place}"
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or not entry["name"].strip():
            raise DataError(f"{where}: expected an object with id and name")
        if len(entry["name"]) > MAX_NAME:
            raise DataError(f"{where}: a name of {len(entry['name']):,} characters, {shown(entry['name'])}")
        key, name = _id(entry.get("id"), where, "id"), entry["name"].strip()
        if key in found or name in found.values():
            raise DataError(f"{where}: {'id ' + shown(key) if key in found else shown(name)} is there twice")
        found[key] = name
    return dict(sorted(found.items(), key=lambda item: (isinstance(item[0], str), item[0])))


def _size(entry: dict[str, Any], where: str) -> tuple[int, int] | None:
    height, width = number(entry.get("height")), number(entry.get("width"))
    if height is None and width is None:
        return None
    if not height or not width or height < 1 or width < 1 or height % 1 or width % 1:
        raise DataError(
            f"{where}: width {shown(entry.get('width'))} and height {shown(entry.get('height'))}, expected pixels"
        )
    return int(height), int(width)


def _id(value: object, where: str, key: str) -> int | str:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise DataError(f"{where}: {key} is {shown(value)}, expected a whole number")
    return value


def _image_folder(file: _File, entries: list[Any]) -> Path:
    """Of the folders where the images may be, the one that holds the first of them, else the first that exists."""
    names = [entry["file_name"] for entry in entries[:_LOOKED_AT] if isinstance(entry, dict)
             and isinstance(entry.get("file_name"), str) and "\0" not in entry["file_name"]]  # fmt: skip
    existing = [folder for folder in file.folders if folder.is_dir()]
    for folder in existing:
        if any(exists(folder / name) for name in names):
            return folder
    return existing[0]


def _image_folders(root: Path, tail: str) -> tuple[Path, ...]:
    tail = tail.removeprefix(_PREFIX)
    part = part_of_file(tail) or ""
    names = dict.fromkeys((tail, f"images/{tail}", part, f"images/{part}", "images", ""))
    above = (root.parent,) if root.name == "annotations" else ()
    return tuple(base / name for base in (root, *above) for name in names)


def _folders(source: Path) -> list[Path]:
    try:
        return sorted(one for one in source.iterdir() if one.is_dir() and not one.name.startswith("."))
    except OSError as error:
        raise DataError(f"{source}: cannot be read ({error.strerror or error})") from None


def _begins_as_coco(file: Path) -> bool:
    """Whether a JSON file beside the images says what COCO says, so that other files there mean nothing."""
    try:
        with file.open("rb") as raw:
            beginning = raw.read(1_000_000)
    except OSError:
        return False
    return any(f'"{key}"'.encode() in beginning for key in ("annotations", "images", "categories"))
