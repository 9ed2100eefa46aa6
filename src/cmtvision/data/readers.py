"""Reading a data set: its images, their classes, and which are held out, for every kind of data (see ``sources``).

Every file is decoded once when a data set is read, so what is damaged is named, counted and left out before training
starts; only shards and torchvision's sets are trusted, since they have many images that were checked when they were
written. Without a validation part one is chosen from the training images by a hash of the seed and each path: it is the
same on every machine, and an image added later moves no other (see ``splits.held_out`` for the one exception).
"""

import warnings
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from difflib import get_close_matches
from hashlib import sha256
from os import PathLike
from pathlib import Path

from cmtvision.data.decode import MAX_BYTES, MAX_PIXELS, open_image
from cmtvision.data.listing.class_folders import Entry, Listing
from cmtvision.data.listing.index import DatasetIndex, Sample, Skipped
from cmtvision.data.listing.split_file import take_split
from cmtvision.data.listing.splits import held_out, long_name
from cmtvision.data.sources.words import ReadOptions, absolute, list_source, source_text
from cmtvision.errors import DataError
from cmtvision.machine import usable_processors

_VERIFIED_SIDE = 64
Progress = Callable[[int, int], None]


def read_dataset(
    path: str | PathLike[str],
    *,
    val_fraction: float = 0.2,
    split_seed: int = 0,
    classes: Sequence[str] | None = None,
    verify: bool = True,
    root: str | PathLike[str] | None = None,
    allow_outside: bool = False,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
    progress: Progress | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    multi_label: bool = False,
    split_file: str | PathLike[str] | None = None,
) -> DatasetIndex:
    """Read a data set's list of images.

    Args:
        path: a folder of class folders; a folder with train/, val/ and test/ (see ``splits`` for other words) of class
            folders; a CSV or Parquet table with the columns path (or image), label and optionally split; WebDataset
            shards, as a folder of .tar files, one of them, or an fsspec URL with braces
            (``s3://bucket/train-{000000..000127}.tar``); ``torchvision:NAME``; ``hf:NAME[:config]``.
        val_fraction: share of the training images to hold out where the data has no validation part; at least one of
            each class with two, and 0 holds out nothing. A test part is never touched by it.
        split_seed: which images those are.
        classes: fix the classes and their order, as a trained model has them; the data may then lack some. Data with
            held-out images alone keeps its parts then (with a val_fraction of 0); else it counts as not yet split.
        verify: decode every file; without it only missing files and wrong extensions are skipped.
        root: what a table's paths are relative to; by default the table's folder.
        allow_outside: let a table's paths be absolute or leave ``root`` by '..'.
        max_pixels, max_bytes: larger images and files are skipped by name.
        progress: called as progress(done, total) while files are verified, or shards without an index scanned.
        image_column, label_column: columns of a table or Hugging Face data set, where they have no usual name.
        multi_label: an image may have several classes, or none: its label is a list, or in a CSV text joined by '|'.
        split_file: a CSV of ``write_split``, which then decides the split; see ``take_split`` for images not in it.

    Raises:
        DataError: no such path, nothing in it, one class only, a class without a usable training image, a class of a
            held-out part that training does not have, a malformed CSV.
    """
    if not 0 <= val_fraction < 1:
        raise DataError(f"val_fraction: got {val_fraction}, expected a share in [0, 1)")
    text = source_text(path)
    options = ReadOptions(root, allow_outside, image_column, label_column, multi_label, classes, progress)
    listing, base = list_source(text, options)
    if not listing.entries:
        raise DataError(f"{text}: no photos found; expected one folder per class with images inside")
    if split_file is None and (classes is None or val_fraction):
        undo_split_without_train(listing)
    usable, unusable = _verified(listing, verify, max_pixels, max_bytes, progress)
    names = _class_names(text, listing, usable, unusable, classes, multi_label)
    fingerprint, empty = _fingerprint(usable), _empty_folders(listing, usable)
    usable, unknown = _without_unknown_classes(text, usable, classes)
    unusable = [*unusable, *unknown]
    split_source = listing.split_source
    learned = [entry for entry in usable if entry.split in (None, "train")]
    if learned and not any(entry.split == "val" for entry in usable):
        split_source = "seeded" if val_fraction else "none"
        chosen = held_out([one.relative for one in learned], [one.labels for one in learned], val_fraction, split_seed)
        learned = [one._replace(split="val" if out else "train") for one, out in zip(learned, chosen, strict=True)]
        usable = [*learned, *(entry for entry in usable if entry.split == "test")]
    number = {name: index for index, name in enumerate(names)}
    parts: dict[str, list[Sample]] = {"train": [], "val": [], "test": []}
    for entry in sorted(usable, key=lambda entry: entry.relative):
        labels = tuple(sorted(number[name] for name in entry.labels))
        label = labels[0] if labels else -1
        parts[entry.split or "train"].append(Sample(entry.path, label, labels if multi_label else ()))
    index = DatasetIndex(
        root=base,
        classes=names,
        train=parts["train"],
        val=parts["val"],
        test=parts["test"],
        skipped=sorted(
            [*listing.skipped, *unusable, *empty],
            key=lambda item: (str(item.path), item.reason),
        ),
        fingerprint=fingerprint,
        split_source=split_source,
        multi_label=multi_label,
        source=absolute(text),
    )
    if split_file is None:
        return index
    index = take_split(index, split_file)
    if index.split_source != "run":
        raise DataError(
            f"{split_file}: names none of the photos of this data; give the data that the run was trained on"
        )
    return index


def class_names_from(path: str | PathLike[str]) -> list[str]:
    """The class names of data, without reading any image; sorted, unless the data has an order of its own.

    Raises:
        DataError: no such path, or no classes in it.
    """
    text = source_text(path)
    listing, _ = list_source(text, ReadOptions(allow_outside=True))
    undo_split_without_train(listing)
    names = listing.names or sorted(listing.learned_classes())
    if not names:
        raise DataError(f"{text}: no classes found; expected one folder per class, or a CSV with path,label")
    return names


def undo_split_without_train(listing: Listing) -> None:
    """Treat held-out images without any training images as data that is not yet split.

    Raises:
        DataError: the folder for training images is empty; others must not replace them.
    """
    if not listing.entries or any(entry.split in (None, "train") for entry in listing.entries):
        return
    empty = listing.empty_train or next(
        (path for path, (_, part) in listing.class_folders.items() if part == "train"), None
    )
    if empty is not None:
        raise DataError(f"{empty}: no image in it to train on; put the images of each class into a folder there")
    parts = {entry.split for entry in listing.entries}
    undone = "val" if parts == {"val", "test"} else next(iter(parts))  # beside val, test stays what it is
    listing.entries = [one._replace(split=None) if one.split == undone else one for one in listing.entries]
    listing.class_folders = {
        path: (name, None if part == undone else part) for path, (name, part) in listing.class_folders.items()
    }
    listing.split_source = "none" if len(parts) == 1 else listing.split_source


def _empty_folders(listing: Listing, usable: Sequence[Entry]) -> list[Skipped]:
    """Class folders without a usable image; in a training part they are an error, unless the classes are fixed."""
    folders = {entry.path.parent for entry in usable if isinstance(entry.path, Path)}
    filled = {name for folder in folders for name in (folder, *folder.parents)}
    return [
        Skipped(folder, "no usable image in this class") for folder in listing.class_folders if folder not in filled
    ]


def _verified(
    listing: Listing, verify: bool, max_pixels: int, max_bytes: int, progress: Progress | None
) -> tuple[list[Entry], list[Skipped]]:
    entries = listing.entries
    if listing.trusted:
        return entries, []

    def problem(entry: Entry) -> str | None:
        if not verify:
            return None if not isinstance(entry.path, Path) or entry.path.is_file() else "no such file"
        try:
            # at an eighth of its size a JPEG file is read to its end as well, in a fraction of the time
            open_image(entry.path, max_pixels, max_bytes, short_side=_VERIFIED_SIDE)
        except DataError as error:
            return str(error).removeprefix(f"{entry.path}: ")
        return None

    good: list[Entry] = []
    bad: list[Skipped] = []
    # Pillow warns about harmless oddities (metadata, palettes) of files that decode; one warning each would be noise.
    with warnings.catch_warnings(), ThreadPoolExecutor(min(8, usable_processors())) as pool:
        warnings.simplefilter("ignore")
        for done, (entry, reason) in enumerate(zip(entries, pool.map(problem, entries), strict=True), start=1):
            if reason is None:
                good.append(entry)
            else:
                bad.append(Skipped(entry.path, reason))
            if progress is not None and (done % 100 == 0 or done == len(entries)):
                progress(done, len(entries))
    return good, bad


def _class_names(
    source: str,
    listing: Listing,
    usable: Sequence[Entry],
    bad: Sequence[Skipped],
    fixed: Sequence[str] | None,
    multi_label: bool,
) -> list[str]:
    asked = (None, "train") if fixed is None else (None, "train", "val")
    counted = [entry for entry in usable if entry.split in asked] or usable
    counts = Counter(name for entry in counted for name in entry.labels)
    may_lack = fixed is not None or listing.names is not None
    empty = [] if may_lack else sorted(name for name in listing.learned_classes() if not counts[name])
    if empty or not counts:
        example = f"; {bad[0].path}: {bad[0].reason}" if bad else ""
        what = f"in class {', '.join(map(repr, empty))}" if empty else "with a class"
        raise DataError(f"{source}: no usable image {what}; add images or remove the class{example}")
    if fixed is not None:
        unknown = sorted(set(counts) - set(fixed))
        if unknown:
            raise DataError(
                f"{source}: class {', '.join(map(repr, unknown))} is not one of the model's {len(fixed)} classes "
                f"({', '.join(list(fixed)[:5])}{', ...' if len(fixed) > 5 else ''})"
            )
        return list(fixed)
    if len(counts) < 2 and not multi_label:
        raise DataError(f"{source}: only one class ({next(iter(counts))!r}); a classifier needs at least two")
    if listing.names is None:
        return sorted(counts)
    unknown = sorted(set(counts) - set(listing.names))
    if unknown or len(set(listing.names)) != len(listing.names):
        problem = f"class {unknown[0]!r} is not in its list of classes" if unknown else "its list names a class twice"
        raise DataError(f"{source}: {problem}; correct the list")
    return list(listing.names)


def _without_unknown_classes(
    source: str, usable: Sequence[Entry], fixed: Sequence[str] | None
) -> tuple[list[Entry], list[Skipped]]:
    """Leave out test images of classes that were not learned.

    Raises:
        DataError: there are held-out images of such a class, which could never be right.
    """
    learned = set(fixed or (name for entry in usable if entry.split in (None, "train") for name in entry.labels))
    reasons: dict[tuple[str, ...], str] = {}
    kept, left_out = [], []
    for entry in usable:
        unknown = tuple(sorted(set(entry.labels) - learned))
        if entry.split not in ("val", "test") or not unknown:
            kept.append(entry)
            continue
        if unknown not in reasons:
            names = ", ".join(map(repr, unknown))
            lacks = "has no training image" if fixed is None else "is none of the model's"
            what = f"class {names} is in the {long_name(entry.split)} part but {lacks}{_alike(unknown[0], learned)}"
            if entry.split == "val":
                raise DataError(f"{source}: {what}")
            reasons[unknown] = f"its {what}"
        left_out.append(Skipped(entry.path, reasons[unknown]))
    return kept, left_out


def _alike(name: str, known: Collection[str]) -> str:
    """A hint if a class was probably meant to be another."""
    lowered = {other.lower(): other for other in sorted(known, reverse=True)}
    found = get_close_matches(name.lower(), lowered, n=1, cutoff=0.6)
    return f" (is it {lowered[found[0]]!r}?)" if found else ""


def _fingerprint(usable: Sequence[Entry]) -> str:
    digest = sha256()
    for entry in sorted(usable, key=lambda entry: entry.relative):
        size = entry.path.stat().st_size if isinstance(entry.path, Path) else entry.path.size
        line = f"{entry.relative}\0{size}\0{'|'.join(entry.labels)}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))  # a file name need not be UTF-8
    return digest.hexdigest()
