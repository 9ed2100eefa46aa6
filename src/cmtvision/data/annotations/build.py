"""From what files say to an index: every image opened, boxes checked and turned upright, parts and classes settled."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from cmtvision.data.annotations.limits import MAX_BOXES
from cmtvision.data.annotations.orientation import Size, turn_needed, turned_box, upright_size
from cmtvision.data.annotations.outlines import Outline
from cmtvision.data.annotations.raw import LeftOut, RawImage, RawListing, RawObject
from cmtvision.data.annotations.samples import AnnotationIndex, DetectionSample, Sample, SegmentationSample
from cmtvision.data.decode import MAX_BYTES, MAX_PIXELS, open_image, orientation, readable_formats, up_to
from cmtvision.data.listing.index import Skipped
from cmtvision.data.listing.splits import held_out
from cmtvision.errors import DataError
from cmtvision.machine import usable_processors

Progress = Callable[[int, int], None]
_VERIFIED_SIDE = 64
_One = TypeVar("_One")
_Done = TypeVar("_Done")


@dataclass(frozen=True)
class BuildOptions:
    """How an index is made; see ``read_detection``."""

    val_fraction: float = 0.2
    split_seed: int = 0
    classes: Sequence[str] | None = None
    verify: bool = True
    max_pixels: int = MAX_PIXELS
    max_bytes: int = MAX_BYTES
    progress: Progress | None = None


class Facts(NamedTuple):
    """What an image's file says about itself: (height, width) as stored, and its EXIF orientation."""

    stored: Size
    orientation: int


class Usable(NamedTuple, Generic[Sample]):
    """A sample with its name, its part, and what goes into the fingerprint."""

    sample: Sample
    relative: str
    part: str | None
    key: bytes


def image_facts(path: Path, options: BuildOptions) -> Facts:
    """Size and orientation of an image file, which is decoded as well where it is to be verified.

    Raises:
        DataError: as ``open_image``, without the path.
    """
    try:
        if not path.is_file():
            raise DataError("no such file")
        if options.verify:
            open_image(path, options.max_pixels, options.max_bytes, short_side=_VERIFIED_SIDE)
        with up_to(options.max_pixels), Image.open(path, formats=readable_formats()) as picture:
            width, height = picture.size
            turned = orientation(picture)
    except DataError as error:
        raise DataError(str(error).removeprefix(f"{path}: ")) from None
    except Exception as error:  # Pillow's readers raise whatever a damaged header leads them to
        raise DataError(f"not an image ({' '.join(str(error).split()) or type(error).__name__})") from None
    if width * height > options.max_pixels:
        raise DataError(f"more pixels than the limit of {options.max_pixels:,} (data.max_pixels)")
    return Facts((height, width), turned if turned in range(1, 9) else 1)


def in_threads(
    function: Callable[[_One], _Done], items: Sequence[_One], progress: Progress | None
) -> Iterable[tuple[_One, _Done]]:
    """Each item with the function's answer, in order; Pillow's warnings about harmless oddities are not shown."""
    with warnings.catch_warnings(), ThreadPoolExecutor(min(8, usable_processors())) as pool:
        warnings.simplefilter("ignore")
        for done, pair in enumerate(zip(items, pool.map(function, items), strict=True), start=1):
            yield pair
            if progress is not None and (done % 100 == 0 or done == len(items)):
                progress(done, len(items))


def build_detection(listing: RawListing, source: str, options: BuildOptions) -> AnnotationIndex[DetectionSample]:
    """The index of a detection data set.

    Raises:
        DataError: no usable image, no box to learn from, a class that the fixed or the training classes lack.
    """

    def facts(image: RawImage) -> Facts | str:
        try:
            return image_facts(image.path, options)
        except DataError as error:
            return str(error)

    usable: list[tuple[RawImage, Facts, int]] = []
    turned = 0
    for image, found in in_threads(facts, listing.images, options.progress):
        reason = found if isinstance(found, str) else None
        turn: int | None = 1
        if not isinstance(found, str) and image.declared is not None:
            turn = turn_needed(image.declared, found.stored, found.orientation)
            if turn is None:
                height, width = image.declared
                was = f"{found.stored[1]} x {found.stored[0]}"
                reason = f"its annotation is of an image of {width} x {height} pixels, the file has {was}"
        if len(image.objects) > MAX_BOXES:
            reason = f"{len(image.objects):,} boxes, more than the limit of {MAX_BOXES:,}"
        if reason is not None or isinstance(found, str):
            listing.skipped.append(Skipped(image.path, reason or ""))
            continue
        turned += turn not in (None, 1)
        usable.append((image, found, turn or 1))
    if not usable:
        raise _nothing_usable(source, listing)
    _settle_parts([image for image, _, _ in usable], options)
    classes = _detection_classes(source, listing, [image for image, _, _ in usable], options.classes)
    number = {name: place for place, name in enumerate(classes)}
    outlined = any(one.outline or one.polygons for image, _, _ in usable for one in image.objects)
    samples = []
    for image, found, turn in usable:
        sample = _detection_sample(image, found, turn, number, outlined, listing.left_out)
        samples.append(Usable(sample, image.relative, image.part, _detection_key(sample)))
    index = _index(listing, source, options, classes, samples)
    learned = index.train
    if not any((~sample.crowd).any() for sample in learned) and options.classes is None:
        notes = "; ".join(listing.left_out.notes())
        raise DataError(
            f"{source}: no box to learn from in {len(learned):,} training images{'; ' + notes if notes else ''}"
        )
    return replace(index, notes=[*listing.notes, *listing.left_out.notes(), *_detection_notes(index, turned)])


def lacking_note(index: AnnotationIndex[Sample], what: str) -> list[str]:
    """The classes of which there is no box, or no pixel, to learn from, as a note."""
    lacking = [name for name, (train, _) in index.class_counts().items() if not train]
    if not lacking or not index.train:
        return []
    names = ", ".join(map(repr, lacking[:5])) + (", ..." if len(lacking) > 5 else "")
    return [f"{len(lacking)} of {len(index.classes)} classes have no training {what}: {names}"]


def build_segmentation(
    listing: RawListing,
    source: str,
    options: BuildOptions,
    classes: list[str],
    samples: list[Usable[SegmentationSample]],
    void: int,
    turned: int,
) -> AnnotationIndex[SegmentationSample]:
    """The index of a segmentation data set, of samples that were checked.

    Raises:
        DataError: no usable image.
    """
    if not samples:
        raise _nothing_usable(source, listing)
    index = _index(listing, source, options, classes, samples)
    if not index.train and options.classes is None:
        raise DataError(f"{source}: no image to train on; put images and masks into train/images and train/masks")
    notes = [*listing.notes, *listing.left_out.notes(), *_turned_note(turned, "masks")]
    looked = any(sample.labels for sample in index.train)
    return replace(index, notes=[*notes, *(lacking_note(index, "pixel") if looked else ())], void=void)


def settled(images: Sequence[RawImage], options: BuildOptions) -> None:
    """Held-out images without any training images are data that is not yet split; see ``read_dataset``."""
    _settle_parts(images, options)


def _settle_parts(images: Sequence[RawImage], options: BuildOptions) -> None:
    parts = {image.part for image in images}
    if parts & {None, "train"} or (options.classes is not None and not options.val_fraction):
        return
    undone = "val" if "val" in parts else "test"
    for image in images:
        image.part = None if image.part == undone else image.part


def _index(
    listing: RawListing, source: str, options: BuildOptions, classes: list[str], usable: list[Usable[Sample]]
) -> AnnotationIndex[Sample]:
    """The samples in their parts; where nothing is held out for choices, some training images are, by seed."""
    usable = sorted(usable, key=lambda one: one.relative)
    learned = [one for one in usable if one.part in (None, "train")]
    split_source = "folders" if any(one.part in ("val", "test") for one in usable) else "none"
    parts = {one.relative: one.part or "train" for one in usable}
    if learned and options.val_fraction and not any(one.part == "val" for one in usable):
        split_source = "seeded"
        names = [one.relative for one in learned]
        labels = [tuple(sorted(set(map(int, one.sample.labels)))) for one in learned]
        for name, out in zip(names, held_out(names, labels, options.val_fraction, options.split_seed), strict=True):
            parts[name] = "val" if out else "train"
    digest = sha256()
    for one in usable:
        size = one.sample.path.stat().st_size
        digest.update(f"{one.relative}\0{size}\0".encode("utf-8", "surrogateescape") + one.key + b"\n")
    digest.update("|".join(classes).encode())
    train, val, test = (
        [one.sample for one in usable if parts[one.relative] == part] for part in ("train", "val", "test")
    )
    return AnnotationIndex(
        root=listing.root, format=listing.format, classes=classes, train=train, val=val, test=test,
        skipped=sorted(listing.skipped, key=lambda item: (str(item.path), item.reason)), fingerprint=digest.hexdigest(),
        split_source=split_source, source=str(Path(source).resolve()),
    )  # fmt: skip


def _detection_classes(
    source: str, listing: RawListing, images: Sequence[RawImage], fixed: Sequence[str] | None
) -> list[str]:
    learned = Counter(one.label for image in images if image.part in (None, "train") for one in image.objects)
    every = Counter(one.label for image in images for one in image.objects)
    names = list(fixed) if fixed is not None else listing.names or sorted(learned)
    if fixed is None and not learned and not listing.names:
        raise DataError(f"{source}: no box in any of its {len(images):,} images; check that the annotations are there")
    unknown = sorted(set(every) - set(names))
    if unknown:
        whose = "the model's" if fixed is not None else "the training part's"
        raise DataError(
            f"{source}: class {', '.join(map(repr, unknown[:5]))} is not one of {whose} {len(names)} classes "
            f"({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"
        )
    return names


def _detection_sample(
    image: RawImage, facts: Facts, turn: int, number: dict[str, int], outlined: bool, left_out: LeftOut
) -> DetectionSample:
    height, width = upright_size(facts.stored, facts.orientation)
    boxes, labels, crowd, area = [], [], [], []
    outlines: list[Outline | None] = []
    for one in image.objects:
        x0, y0, x1, y1 = _pixels(one.box, height, width) if image.shares else turned_box(one.box, facts.stored, turn)
        left, right = (min(max(0.0, x), float(width)) for x in (x0, x1))
        top, bottom = (min(max(0.0, y), float(height)) for y in (y0, y1))
        box = np.array([left, top, right, bottom], dtype=np.float32)
        if not (box[2] > box[0] and box[3] > box[1]):
            outside = x1 > x0 and y1 > y0
            left_out.add(f"a box left out: {'outside the image' if outside else 'of no area'}", one.where)
            continue
        if x0 < -1 or y0 < -1 or x1 > width + 1 or y1 > height + 1:  # less than that is rounding
            left_out.add("a box that reached out of the image, cut at its edge", one.where)
        outline = _outline(one, image, facts, turn)
        boxes.append(box)
        labels.append(number[one.label])
        crowd.append(one.crowd)
        own = float((box[2] - box[0]) * (box[3] - box[1])) if outline is None else outline.area()
        stated = one.area if one.area is not None and one.area <= height * width else None
        area.append(stated or own)
        outlines.append(outline)
    return DetectionSample(
        image.path,
        (height, width),
        np.stack(boxes) if boxes else np.zeros((0, 4), dtype=np.float32),
        np.array(labels, dtype=np.int64),
        np.array(crowd, dtype=np.bool_),
        np.array(area, dtype=np.float32),
        tuple(outlines) if outlined else (),
    )


def _outline(one: RawObject, image: RawImage, facts: Facts, turn: int) -> Outline | None:
    if one.outline is not None:
        return replace(one.outline, turn=turn)
    if not one.polygons:
        return None
    height, width = upright_size(facts.stored, facts.orientation)
    scale = np.array([width, height], dtype=np.float32) if image.shares else np.ones(2, dtype=np.float32)
    return Outline(height, width, tuple(points * scale for points in one.polygons))


def _pixels(shares: tuple[float, float, float, float], height: int, width: int) -> tuple[float, float, float, float]:
    return (shares[0] * width, shares[1] * height, shares[2] * width, shares[3] * height)


def _detection_key(sample: DetectionSample) -> bytes:
    parts = [sample.boxes.astype("<f4").tobytes(), sample.labels.astype("<i8").tobytes(), sample.crowd.tobytes()]
    parts += [outline.key() if outline is not None else b"-" for outline in sample.outlines]
    return sha256(b"\0".join(parts)).digest()


def _detection_notes(index: AnnotationIndex[DetectionSample], turned: int) -> list[str]:
    notes = _turned_note(turned, "boxes")
    empty = sum(not len(sample.boxes) for sample in index.train)
    if empty:
        notes.append(f"{empty:,} of {len(index.train):,} training images have no box; they teach what is background")
    crowds = sum(int(sample.crowd.sum()) for sample in index.samples)
    if crowds:
        notes.append(f"{crowds:,} boxes are groups (iscrowd): not trained on, and not counted in evaluation")
    return notes


def _turned_note(turned: int, what: str) -> list[str]:
    return [f"{turned:,} images are rotated by EXIF and were annotated as stored; their {what} were turned"] * bool(
        turned
    )


def _nothing_usable(source: str, listing: RawListing) -> DataError:
    first = f"; {listing.skipped[0].path}: {listing.skipped[0].reason}" if listing.skipped else ""
    return DataError(f"{source}: no usable image{first}")
