"""Data sets of images and masks: folders of both (CamVid's, our own, ADE20K's), Pascal VOC's, and COCO's outlines.

Recognised are ``train/images`` with ``train/masks`` (and ``val``, ``test``), ``images/train`` with ``masks/train``,
``images`` with ``masks``, and VOC's ``JPEGImages`` with ``SegmentationClass``. A mask belongs to the image of its name,
whatever the two suffixes; ``_mask`` or ``_L`` may follow the image's name. ``classes.txt`` names the classes, one a
line from class 0 on; a class called void, ignore or unlabelled stands for pixels that belong to no class.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from cmtvision.data.annotations.limits import name_below, read_text
from cmtvision.data.annotations.mask_files import JPEG_SUFFIXES, SUFFIXES
from cmtvision.data.annotations.raw import RawListing
from cmtvision.data.annotations.voc import IMAGES, SETS, image_sets
from cmtvision.data.listing.class_folders import images_below
from cmtvision.data.listing.index import Skipped
from cmtvision.data.listing.splits import long_name, part_named, parts_of
from cmtvision.errors import DataError

MASK_FOLDERS = ("masks", "mask", "labels", "annotations")
VOC_MASKS = "SegmentationClass"
VOID_NAMES = ("void", "ignore", "unlabelled", "unlabeled")
_LOSSY = "a JPEG, which changes class numbers; save masks as PNG"
_ENDINGS = ("", "_mask", "_L", "_label", "_gt")
VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """An image with its mask, its name from the root and its part."""

    path: Path
    relative: str
    mask: Path
    part: str | None


def mask_folders(source: Path, suffixes: Collection[str] = SUFFIXES) -> list[tuple[Path, Path, str | None]]:
    """The folders of images and of masks of these suffixes, each pair with its part; none where it is no such data.

    Raises:
        DataError: two folders for one part.
    """
    inside = {one.name: one for one in source.iterdir() if one.is_dir() and not one.name.startswith(".")}
    pairs = {
        name: (folder / "images", _masks_in(folder, suffixes)) for name, folder in inside.items() if part_named(name)
    }
    whole = {name: (images, masks) for name, (images, masks) in pairs.items() if masks and images.is_dir()}
    if whole:
        parts = parts_of(whole, str(source))
        return [(whole[name][0], whole[name][1], part) for name, part in parts.items()]
    images, masks = source / "images", _masks_in(source, suffixes)
    if not images.is_dir() or masks is None:
        return []
    named = [one.name for one in images.iterdir() if one.is_dir() and (masks / one.name).is_dir()]
    parts = parts_of(named, str(images))
    return [(images / name, masks / name, part) for name, part in parts.items()] or [(images, masks, None)]


def list_masks(source: Path, folders: list[tuple[Path, Path, str | None]]) -> tuple[RawListing, list[Pair]]:
    """The images of folders, each with its mask; images without one, and masks without an image, are skipped."""
    listing = RawListing(source.resolve(), "masks", names=class_names(source))
    pairs: list[Pair] = []
    for images, masks, part in folders:
        files = _by_name(masks, SUFFIXES)
        lossy = _by_name(masks, JPEG_SUFFIXES)
        used = set()
        for image in images_below(images):
            name = image.relative_to(images).with_suffix("").as_posix()
            found = next((name + ending for ending in _ENDINGS if name + ending in files), None)
            if found is None:
                jpeg = any(name + ending in lossy for ending in _ENDINGS)
                reason = f"its mask is {_LOSSY}" if jpeg else f"no mask of this name in {masks.name}/"
                listing.skipped.append(Skipped(image, reason))
                continue
            used.add(found)
            path, relative = name_below(
                listing.root, listing.root, image.relative_to(source).as_posix(), str(images)
            )  # fmt: skip
            pairs.append(Pair(path, relative, files[found], part))
        strays = (file for name, file in sorted(files.items()) if name not in used)
        listing.skipped.extend(Skipped(file, f"no image of this name in {images.name}/") for file in strays)
    _refuse_twice(source, pairs)
    return listing, pairs


def is_voc_masks(source: Path) -> bool:
    """Whether a folder has VOC's layout with masks."""
    return (source / VOC_MASKS).is_dir() and (source / IMAGES).is_dir()


def list_voc_masks(source: Path) -> tuple[RawListing, list[Pair]]:
    """The images of a VOC folder that have a mask; their classes are VOC's 21, unless classes.txt names others."""
    listing = RawListing(source.resolve(), "voc", names=class_names(source) or list(VOC_CLASSES))
    images = {file.stem: file for file in images_below(source / IMAGES)}
    masks = {file.stem: file for file in _mask_files(source / VOC_MASKS)}
    if not masks:
        refuse_jpeg(source)
    pairs = []
    parts = image_sets(source, "Segmentation", listing) or dict.fromkeys(sorted(masks))
    for name in sorted(masks.keys() - parts.keys()):
        listing.skipped.append(Skipped(masks[name], f"in none of the lists in {SETS}/Segmentation"))
    for name, part in parts.items():
        if name not in masks or name not in images:
            missing = source / (VOC_MASKS if name in images else IMAGES) / name
            listing.skipped.append(Skipped(missing, "no such file"))
            continue
        path, relative = name_below(listing.root, listing.root, f"{IMAGES}/{images[name].name}", str(source))
        pairs.append(Pair(path, relative, masks[name], part))
    return listing, pairs


def class_names(source: Path) -> list[str] | None:
    """The names in classes.txt, if it is there.

    Raises:
        DataError: a name twice.
    """
    file = source / "classes.txt"
    if not file.is_file():
        return None
    names = [line.strip() for line in read_text(file).splitlines()]
    while names and not names[-1]:
        names.pop()
    if len(set(names)) != len(names) or "" in names or not names:
        raise DataError(f"{file}: expected the name of one class a line, each once; class 0 comes first")
    return names


def refuse_jpeg(source: Path) -> None:
    """Raise DataError for data that would be recognised if its masks were no JPEG files."""
    folders = [masks for _, masks, _ in mask_folders(source, JPEG_SUFFIXES)]
    folders += [source / VOC_MASKS] if is_voc_masks(source) else []
    file = next((file for folder in folders for file in _mask_files(folder, JPEG_SUFFIXES)), None)
    if file is not None:
        raise DataError(f"{file}: a mask that is {_LOSSY}")


def _masks_in(folder: Path, suffixes: Collection[str]) -> Path | None:
    there = (folder / name for name in MASK_FOLDERS if (folder / name).is_dir())
    return next((one for one in there if any(_mask_files(one, suffixes))), None)


def _by_name(folder: Path, suffixes: Collection[str]) -> dict[str, Path]:
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in _mask_files(folder, suffixes)}


def _mask_files(folder: Path, suffixes: Collection[str] = SUFFIXES) -> Iterator[Path]:
    return (file for file in images_below(folder) if file.suffix.lower() in suffixes)


def _refuse_twice(source: Path, pairs: list[Pair]) -> None:
    part: dict[Path, str | None] = {}
    for pair in pairs:
        if part.setdefault(pair.path.resolve(), pair.part) != pair.part:
            other = long_name(str(part[pair.path.resolve()]))
            raise DataError(
                f"{source}: {pair.relative} is also in the {other} part, as a link; leave it in one of them"
            )
