"""Images with mask files as an index: which numbers of the masks are classes, and which belong to none."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from cmtvision.data.annotations.build import (
    BuildOptions,
    Facts,
    Usable,
    build_segmentation,
    image_facts,
    in_threads,
    settled,
)
from cmtvision.data.annotations.mask_files import MaskFile, Numbering, no_class
from cmtvision.data.annotations.masks import VOID_NAMES, Pair
from cmtvision.data.annotations.orientation import turn_needed, upright_size
from cmtvision.data.annotations.raw import RawImage, RawListing
from cmtvision.data.annotations.samples import BACKGROUND, NO_CLASS, SegmentationIndex, SegmentationSample
from cmtvision.data.listing.index import Skipped
from cmtvision.errors import DataError

BLACK_AND_WHITE = (BACKGROUND, "foreground")
"""The classes of masks with 0 and 255 alone, where nobody has named them."""
_MOST_UNNAMED = 200
_GAPS = 4  # so many times as many numbers as are in the masks, and _FEW more, may be classes that nobody has named
_FEW = 20


def index_of_masks(
    source: Path, listing: RawListing, pairs: list[Pair], options: BuildOptions, void: int | None
) -> SegmentationIndex:
    """The index of images and their masks; ``void`` as of ``read_segmentation``.

    Raises:
        DataError: no usable image, classes that contradict themselves, masks of a single class.
    """
    names, none, numbering = _classes_and_void(source, listing.names, options.classes, void)
    unclear = void is None and none == NO_CLASS and numbering == "plain" and (names is None or len(names) == 2)
    look = options.verify or names is None or unclear

    def looked(pair: Pair) -> tuple[Facts, MaskFile, bytes, tuple[int, ...]] | Skipped:
        try:
            facts = image_facts(pair.path, options)
        except DataError as error:
            return Skipped(pair.path, str(error))
        try:
            mask = MaskFile(pair.mask, 1, options.max_pixels, options.max_bytes, numbering, none)
            if not look:
                return facts, mask, mask.key(), ()
            numbers, key = mask.stored(), mask.key()
        except DataError as error:
            return Skipped(pair.mask, str(error).removeprefix(f"{pair.mask}: "))
        turn = turn_needed(numbers.shape, facts.stored, facts.orientation)
        if turn is None:
            sizes = [f"{width} x {height}" for height, width in (numbers.shape, facts.stored)]
            return Skipped(pair.mask, f"{sizes[0]} pixels, its image has {sizes[1]}")
        return facts, replace(mask, turn=turn), key, tuple(np.flatnonzero(np.bincount(numbers.reshape(-1))).tolist())

    found: list[tuple[Pair, Facts, MaskFile, bytes, tuple[int, ...]]] = []
    for pair, answer in in_threads(looked, pairs, options.progress):
        if isinstance(answer, Skipped):
            listing.skipped.append(answer)
        else:
            found.append((pair, *answer))
    every = {value for *_, values in found for value in values}
    black_and_white = unclear and NO_CLASS in every and every <= {0, NO_CLASS}
    if black_and_white:
        names = list(names or BLACK_AND_WHITE)
        listing.notes.append(f"the masks hold 0 and 255 alone: 255 is read as class 1, {names[1]!r}, not as void")
    names = names if names is not None else _unnamed(source, every - {none})
    samples: list[Usable[SegmentationSample]] = []
    turned = 0
    raw = [RawImage(pair.path, pair.relative, pair.part) for pair, *_ in found]
    settled(raw, options)
    for (pair, facts, mask, key, values), image in zip(found, raw, strict=True):
        labels = tuple(value for value in values if value != none)
        if black_and_white:
            mask = replace(mask, numbering="0 and 255")  # noqa: PLW2901
            labels = tuple(min(value, 1) for value in values)
        unknown = [value for value in labels if value >= len(names)]
        if unknown:
            reason = f"value {unknown[0]} is neither a class (0 to {len(names) - 1}) nor void ({none})"
            listing.skipped.append(Skipped(pair.mask, reason))
            continue
        turned += mask.turn != 1
        size = upright_size(facts.stored, facts.orientation)
        sample = SegmentationSample(pair.path, size, mask, none, labels)
        samples.append(Usable(sample, pair.relative, image.part, key))
    if look and options.classes is None and samples:
        _refuse_one_class(source, names, samples, none)
    return build_segmentation(listing, str(source), options, names, samples, none, turned)


def _unnamed(source: Path, numbers: set[int]) -> list[str]:
    """The numbers up to the largest as the names of classes, unless they look like gray levels or ids."""
    count = max(numbers, default=-1) + 1
    if count > min(_MOST_UNNAMED, _FEW + _GAPS * len(numbers)):
        raise DataError(
            f"{source}: its masks hold {len(numbers):,} numbers up to {count - 1:,}; save class numbers from 0 on "
            "without gaps, or name a class for each number in classes.txt"
        )
    return [str(value) for value in range(count)]


def _refuse_one_class(source: Path, names: list[str], samples: list[Usable[SegmentationSample]], void: int) -> None:
    """Raise DataError where no two classes are to be told apart."""
    seen = {label for one in samples for label in one.sample.labels}
    if len(seen) > 1:
        return
    what = f"of class {names[seen.pop()]!r} or of none ({void})" if seen else f"of no class ({void})"
    raise DataError(
        f"{source}: every pixel of its masks is {what}; save a number of its own for each class, e.g. 1 for the "
        "foreground"
    )


def _classes_and_void(
    source: Path, stated: list[str] | None, fixed: Sequence[str] | None, void: int | None
) -> tuple[list[str] | None, int, Numbering]:
    """The names of the classes without void, or None where only the masks tell; the void value; and whether that is 0
    in the files, before the first class.
    """
    names = list(stated) if stated is not None else None
    void_first = names is not None and names[0].lower() in VOID_NAMES and void in (None, 0)
    if names is not None and void_first:
        names.pop(0)
        void = None
    if names is not None:
        places = [place for place, name in enumerate(names) if name.lower() in VOID_NAMES]
        if len(places) > 1 or (places and places[0] not in (len(names) - 1, void)):
            raise DataError(
                f"{source}: classes.txt: {names[places[0]]!r} must be the first or last class, and the only such one"
            )
        if places:
            if void not in (None, places[0]):
                raise DataError(f"{source}: void is {void}, but classes.txt names {names[places[0]]!r} as {places[0]}")
            void = places[0]
            names.pop()
    if void is None:
        void = no_class(len(names or ()))
    if names is not None and void < len(names):
        raise DataError(f"{source}: void is {void}, which is class {names[void]!r}; give a number without a class")
    if fixed is not None:
        if names is not None and names != list(fixed):
            raise DataError(
                f"{source}: its classes ({', '.join(names[:5])}, ...) are not the model's ({', '.join(fixed[:5])}, ...)"
            )
        names = list(fixed)
    return names, void, "void first" if void_first else "plain"
