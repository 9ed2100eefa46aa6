"""Reading an annotated data set: which format a folder has is found out from what is in it."""

from collections.abc import Sequence
from dataclasses import replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from cmtvision.data.annotations.build import (
    BuildOptions,
    Progress,
    Usable,
    build_detection,
    build_segmentation,
    lacking_note,
)
from cmtvision.data.annotations.coco import coco_files, list_coco
from cmtvision.data.annotations.limits import MAX_JSON_BYTES
from cmtvision.data.annotations.mask_files import MOST_CLASSES, DrawnMask, no_class
from cmtvision.data.annotations.mask_index import index_of_masks
from cmtvision.data.annotations.masks import (
    is_voc_masks,
    list_masks,
    list_voc_masks,
    mask_folders,
    refuse_jpeg,
)
from cmtvision.data.annotations.outlines import Outline, polygon_points
from cmtvision.data.annotations.raw import RawListing
from cmtvision.data.annotations.samples import (
    BACKGROUND,
    DetectionIndex,
    DetectionSample,
    SegmentationIndex,
    SegmentationSample,
)
from cmtvision.data.annotations.voc import is_voc, list_voc
from cmtvision.data.annotations.yolo import list_yolo, yolo_folders
from cmtvision.data.decode import MAX_BYTES, MAX_PIXELS
from cmtvision.errors import DataError

DETECTION_FORMATS = (
    "COCO (annotations/instances_train.json beside train/, or a .json), YOLO (images/train with labels/train, or a "
    "data.yaml), or Pascal VOC (Annotations/ and JPEGImages/)"
)
SEGMENTATION_FORMATS = (
    "images with masks of the same names (train/images and train/masks, or images/ and masks/), Pascal VOC "
    "(JPEGImages/ and SegmentationClass/), or COCO (annotations/instances_train.json beside train/)"
)


def read_detection(
    path: str | PathLike[str],
    *,
    val_fraction: float = 0.2,
    split_seed: int = 0,
    classes: Sequence[str] | None = None,
    verify: bool = True,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
    max_json_bytes: int = MAX_JSON_BYTES,
    progress: Progress | None = None,
) -> DetectionIndex:
    """Read images with boxes, and outlines where there are any.

    Args:
        path: a folder in the format of COCO, YOLO or Pascal VOC, a COCO JSON file, or a YOLO data.yaml.
        val_fraction: share of the training images to hold out where the data has no validation part; see
            ``read_dataset``.
        split_seed: which images those are.
        classes: fix the classes and their order, as a trained model has them.
        verify: decode every image; without it only its header is read.
        max_pixels, max_bytes: larger images are skipped by name.
        max_json_bytes: refuse a larger COCO file.
        progress: called as progress(done, total) while images are read.

    Raises:
        DataError: no such folder, another format, annotations that contradict themselves, no usable image, no box.
    """
    source = _source(path, DETECTION_FORMATS)
    options = _options(val_fraction, split_seed, classes, verify, max_pixels, max_bytes, progress)
    index = build_detection(_detection_listing(source, max_json_bytes), str(source), options)
    notes = [*index.notes, *lacking_note(index, "box")]
    bare, total = _without_outline(index.train)
    if bare and index.has_masks:
        notes.append(
            f"{bare:,} of {total:,} training objects have no outline; a Mask R-CNN leaves them out, boxes too, and "
            "learns that nothing is there"
        )
    return replace(index, notes=notes)


def read_segmentation(
    path: str | PathLike[str],
    *,
    val_fraction: float = 0.2,
    split_seed: int = 0,
    classes: Sequence[str] | None = None,
    void: int | None = None,
    verify: bool = True,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
    max_json_bytes: int = MAX_JSON_BYTES,
    progress: Progress | None = None,
) -> SegmentationIndex:
    """Read images with the class of each pixel.

    Args:
        path: a folder of images and masks, in the format of Pascal VOC, or of COCO, whose outlines are drawn over a
            background that becomes class 0.
        val_fraction, split_seed: as for ``read_detection``.
        classes: fix the classes and their order, as a trained model has them; by default the names in classes.txt, else
            the numbers up to the largest in the masks.
        void: the number of pixels that belong to no class; by default that of the class named void, ignore or
            unlabelled in classes.txt, which must be the last, or the first (0, as in ADE20K: class 1 of the files is
            class 0 then), else 255 and, of 16 bits, 65535. Where masks hold 0 and 255 alone and at most two classes are
            named, 255 is class 1.
        verify: decode every image and every mask; without it a mask of other classes is met only when it is used.
        max_pixels, max_bytes: larger images and masks are skipped by name.
        max_json_bytes: refuse a larger COCO file.
        progress: called as progress(done, total) while images are read.

    Raises:
        DataError: no such folder, another format, no usable image, classes that contradict themselves, a single class.
    """
    source = _source(path, SEGMENTATION_FORMATS)
    if void is not None and not 0 <= void < MOST_CLASSES:
        raise DataError(f"void: got {void}, expected the number of a mask's pixels that belong to no class")
    options = _options(val_fraction, split_seed, classes, verify, max_pixels, max_bytes, progress)
    folders = mask_folders(source) if source.is_dir() else []
    if folders:
        return index_of_masks(source, *list_masks(source, folders), options, void)
    if source.is_dir() and is_voc_masks(source):
        return index_of_masks(source, *list_voc_masks(source), options, void)
    files = coco_files(source)
    if not files:
        if source.is_dir():
            refuse_jpeg(source)
        raise DataError(f"{source}: no annotated images recognised; expected {SEGMENTATION_FORMATS}")
    if void == 0:
        raise DataError("void: got 0, which is the background of a mask drawn from outlines; give another number")
    return _from_outlines(source, list_coco(source, files, max_json_bytes), options, void)


def _detection_listing(source: Path, max_json_bytes: int) -> RawListing:
    files = coco_files(source)
    if files:
        return list_coco(source, files, max_json_bytes)
    if source.is_dir() and is_voc(source):
        return list_voc(source)
    folders = yolo_folders(source)
    if folders:
        return list_yolo(source, folders)
    raise DataError(f"{source}: no annotated images recognised; expected {DETECTION_FORMATS}")


def _source(path: str | PathLike[str], formats: str) -> Path:
    source = Path(fspath(path))
    try:
        if not source.exists():
            raise DataError(f"{source}: no such folder or file; give {formats}")
        if source.is_dir():
            next(source.iterdir(), None)
    except (OSError, ValueError) as error:
        raise DataError(f"{source}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    return source


def _options(
    val_fraction: float, split_seed: int, classes: Sequence[str] | None, verify: bool, max_pixels: int, max_bytes: int,
    progress: Progress | None,
) -> BuildOptions:  # fmt: skip
    if not 0 <= val_fraction < 1:
        raise DataError(f"val_fraction: got {val_fraction}, expected a share in [0, 1)")
    return BuildOptions(val_fraction, split_seed, classes, verify, max_pixels, max_bytes, progress)


def _from_outlines(source: Path, listing: RawListing, options: BuildOptions, stated: int | None) -> SegmentationIndex:
    fixed = options.classes
    if fixed is not None and (not fixed or fixed[0] != BACKGROUND):
        raise DataError(
            f"{source}: masks drawn from outlines have {BACKGROUND!r} as class 0, the model has {fixed[:1]}"
        )
    used = {one.label for image in listing.images for one in image.objects}
    ground = sorted(name for name in used if name.lower() == BACKGROUND)  # objects of it are class 0, too
    inner: dict[str, Any] = {"classes": None if fixed is None else [*fixed[1:], *ground]}
    index = build_detection(listing, str(source), replace(options, **inner))
    learned = index.train if fixed is None else index.samples
    if used and not any(sample.has_mask.any() for sample in learned):
        raise DataError(
            f"{source}: its objects have boxes but no outlines that masks could be drawn from; cmtvision detect train "
            "learns from boxes"
        )
    classes = [BACKGROUND, *(name for name in index.classes if name.lower() != BACKGROUND)]
    if len(classes) == 1 and fixed is None:
        raise DataError(f"{source}: {BACKGROUND!r} is its only category; name the categories of its objects")
    void = no_class(len(classes)) if stated is None else stated
    if void < len(classes):
        raise DataError(f"void: got {void}, which is class {classes[void]!r}; give a number without a class")
    number = [0 if name.lower() == BACKGROUND else classes.index(name) for name in index.classes]
    parts = {
        sample.path: part for part in ("train", "val", "test") for sample in getattr(index, part)
    }  # settled already, by the objects
    samples = []
    for sample in index.samples:
        drawn = _drawn(sample, number, void)
        labels = tuple(sorted({0, *drawn.labels} - {void}))
        one = SegmentationSample(sample.path, sample.size, drawn, void, labels)
        samples.append(Usable(one, index.relative(sample.path), parts[sample.path], drawn.key()))
    built = build_segmentation(listing, str(source), replace(options, val_fraction=0.0), classes, samples, void, 0)
    notes = [*index.notes, *lacking_note(built, "pixel")]
    bare, total = _without_outline(index.samples)
    if bare:
        notes.append(f"{bare:,} of {total:,} objects have no outline; the pixels in their boxes belong to no class")
    return replace(built, split_source=index.split_source, notes=notes)


def _drawn(sample: DetectionSample, number: Sequence[int], void: int) -> DrawnMask:
    """The mask of an image's outlines, the largest first; groups (crowd) are drawn as well.

    Where an object has no outline, nobody knows which pixels of its box are its own, so they belong to no class.
    """
    order = sorted(range(len(sample.boxes)), key=lambda place: -float(sample.area[place]))
    outlines, labels = [], []
    for place in order:
        outline = sample.outlines[place] if sample.outlines else None
        outlines.append(outline or _box_outline(sample, place))
        labels.append(void if outline is None else number[int(sample.labels[place])])
    return DrawnMask(sample.size, tuple(outlines), tuple(labels))


def _box_outline(sample: DetectionSample, place: int) -> Outline:
    x0, y0, x1, y1 = sample.boxes[place].tolist()
    return Outline(*sample.size, (polygon_points([x0, y0, x1, y0, x1, y1, x0, y1]),))


def _without_outline(samples: Sequence[DetectionSample]) -> tuple[int, int]:
    """How many objects have no outline, and how many objects there are; groups (crowd) are not counted."""
    bare = sum(int((~sample.has_mask & ~sample.crowd).sum()) for sample in samples)
    return bare, sum(int((~sample.crowd).sum()) for sample in samples)
