"""Which photos there are, of which class, and which are held out, whatever the data is (see ``sources``).

Every file is decoded once when a data set is read, so what is damaged is named, counted and left out before training
starts; only shards and torchvision's sets are taken as they are, since their photos are many and were checked when they
were written. Without a validation part a stratified split is made from a hash of the seed and each path: it is the same
on every machine, and a photo added later moves no other.
"""

import csv
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from os import PathLike, cpu_count
from pathlib import Path
from typing import Any

from cmtvision.data.decode import MAX_BYTES, MAX_PIXELS, open_image
from cmtvision.data.index import DatasetIndex, Sample, Skipped
from cmtvision.data.listing import Entry, Listing, list_csv
from cmtvision.data.sources import ReadOptions, absolute, list_source, source_text
from cmtvision.errors import DataError

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
    """Read a data set's list of photos.

    Args:
        path: a folder of class folders; a folder with train/ and val/ (or valid, validation, test) of class folders; a
            CSV or Parquet table with the columns path (or image), label and optionally split (train or val); WebDataset
            shards, as a folder of .tar files, one of them, or an fsspec URL with braces
            (``s3://bucket/train-{000000..000127}.tar``); ``torchvision:NAME``; ``hf:NAME[:config]``.
        val_fraction: share of each class to hold out where nothing is held out yet; at least one photo of each class
            with two, and 0 holds out nothing (``train`` is then all).
        split_seed: which photos those are.
        classes: fix the classes and their order, as a trained model has them; the data may then lack some.
        verify: decode every file; without it only missing files and wrong extensions are skipped.
        root: what a table's paths are relative to; by default the table's folder.
        allow_outside: let a table's paths be absolute or leave ``root`` by '..'.
        max_pixels, max_bytes: larger images and files are skipped by name.
        progress: called as progress(done, total) while files are verified, or shards without an index scanned.
        image_column, label_column: columns of a table or Hugging Face data set, where they have no usual name.
        multi_label: a photo may have several classes, or none: its label is a list, or in a CSV text joined by '|'.
        split_file: a CSV of ``write_split``, which then decides the split; photos that it does not name are skipped.

    Raises:
        DataError: no such path, nothing in it, one class only, a class without a usable image, a validation class that
            training does not have, a malformed CSV.
    """
    if not 0 <= val_fraction < 1:
        raise DataError(f"val_fraction: got {val_fraction}, expected a share in [0, 1)")
    text = source_text(path)
    options = ReadOptions(root, allow_outside, image_column, label_column, multi_label, classes, progress)
    listing, base = list_source(text, options)
    if not listing.entries:
        raise DataError(f"{text}: no photos found; expected one folder per class with images inside")
    if split_file is not None:
        _take_split(listing, Path(split_file), base)
    usable, unusable = _verified(listing, verify, max_pixels, max_bytes, progress)
    names = _class_names(text, listing, usable, unusable, classes, multi_label)
    _check_val_classes(text, usable)
    split_source = listing.split_source
    if not any(entry.split == "val" for entry in usable):
        split_source = "seeded" if val_fraction else "none"
        chosen = held_out([one.relative for one in usable], [one.labels for one in usable], val_fraction, split_seed)
        usable = [one._replace(split="val" if out else "train") for one, out in zip(usable, chosen, strict=True)]
    number = {name: index for index, name in enumerate(names)}
    parts: dict[str, list[Sample]] = {"train": [], "val": []}
    for entry in sorted(usable, key=lambda entry: entry.relative):
        labels = tuple(sorted(number[name] for name in entry.labels))
        label = labels[0] if labels else -1
        parts[entry.split or "train"].append(Sample(entry.path, label, labels if multi_label else ()))
    return DatasetIndex(
        root=base,
        classes=names,
        train=parts["train"],
        val=parts["val"],
        skipped=sorted([*listing.skipped, *unusable], key=lambda item: (str(item.path), item.reason)),
        fingerprint=_fingerprint(usable),
        split_source=split_source,
        multi_label=multi_label,
        source=absolute(text),
    )


def write_split(index: DatasetIndex, file: str | PathLike[str]) -> None:
    """Write the split as a CSV: path (relative to ``index.root``), label, split.

    ``read_dataset(file, root=index.root)`` gives the same samples again; ``root`` may be left out where the file
    stands in it. Where photos are no files, ``read_dataset(index.source, split_file=file)`` does. The file is written
    under another name first and then renamed.

    Raises:
        DataError: the file cannot be written.
    """
    target = Path(file)
    partial = target.with_name(f".{target.name}.partial")
    try:
        with partial.open("w", newline="", encoding="utf-8") as out:
            writer = csv.writer(out)
            writer.writerow(["path", "label", "split"])
            for split, samples in (("train", index.train), ("val", index.val)):
                for sample in samples:
                    labels = sample.labels if index.multi_label else (sample.label,)
                    text = "|".join(index.classes[label] for label in labels)
                    writer.writerow([index.relative(sample.path), text, split])
        partial.replace(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise DataError(f"{target}: the split cannot be written ({error.strerror or error})") from None


def class_names_from(path: str | PathLike[str]) -> list[str]:
    """The class names of data, without reading any image; sorted, unless the data has an order of its own.

    Raises:
        DataError: no such path, or no classes in it.
    """
    text = source_text(path)
    listing, _ = list_source(text, ReadOptions(allow_outside=True))
    if not listing.classes:
        raise DataError(f"{text}: no classes found; expected one folder per class, or a CSV with path,label")
    return listing.names or sorted(listing.classes)


def _take_split(listing: Listing, file: Path, base: Path) -> None:
    """Split a listing as a file says; what either of them lacks is named as skipped."""
    rows = list_csv(file, file.resolve().parent, allow_outside=True, multi_label=True)
    split = {entry.relative: entry.split for entry in rows.entries}
    listing.split_source = "csv"
    kept = []
    for entry in listing.entries:
        part = split.get(entry.relative)
        if part is None:
            listing.skipped.append(Skipped(entry.path, f"not in {file.name}"))
        else:
            kept.append(entry._replace(split=part))
    gone = split.keys() - {entry.relative for entry in kept}
    listing.skipped += [Skipped(base / name, f"in {file.name}, but not in the data any more") for name in gone]
    if not kept:
        raise DataError(f"{file}: names none of the photos of this data; give the data that the run was trained on")
    listing.entries = kept


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
            open_image(entry.path, max_pixels, max_bytes)
        except DataError as error:
            return str(error).removeprefix(f"{entry.path}: ")
        return None

    good: list[Entry] = []
    bad: list[Skipped] = []
    # Pillow warns about harmless oddities (metadata, palettes) of files that decode; one warning each would be noise.
    with warnings.catch_warnings(), ThreadPoolExecutor(min(8, cpu_count() or 1)) as pool:
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
    counts = Counter(name for entry in usable for name in entry.labels)
    empty = [] if listing.names is not None else sorted(name for name in listing.classes if not counts[name])
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


def _check_val_classes(source: str, usable: Sequence[Entry]) -> None:
    labels = {
        split: {name for entry in usable if (entry.split or "train") == split for name in entry.labels}
        for split in ("train", "val")
    }
    unknown = sorted(labels["val"] - labels["train"])
    if unknown and labels["train"]:
        raise DataError(
            f"{source}: class {', '.join(map(repr, unknown))} is in the validation part but has no training image"
        )


def held_out(names: Sequence[str], labels: Sequence[tuple[Any, ...]], val_fraction: float, seed: int) -> list[bool]:
    """Which photos to hold out: round(val_fraction * n) of each class, one at least and never all.

    Args:
        names: of the photos; with the seed they decide which.
        labels: the classes of each, by name or number; a photo of several counts for the rarest of them.
        val_fraction: 0 holds out nothing.
        seed: decides which.
    """
    counts = Counter(label for found in labels for label in found)
    by_class: dict[Any, list[int]] = {}
    for place, found in enumerate(labels):
        rarest = min(found, key=lambda label: (counts[label], label), default=None)
        by_class.setdefault(rarest, []).append(place)
    chosen = [False] * len(names)
    for places in by_class.values():
        count = min(max(1, round(val_fraction * len(places))), len(places) - 1) if val_fraction else 0
        for place in sorted(places, key=lambda place: sha256(f"{seed}:{names[place]}".encode()).digest())[:count]:
            chosen[place] = True
    return chosen


def _fingerprint(usable: Sequence[Entry]) -> str:
    digest = sha256()
    for entry in sorted(usable, key=lambda entry: entry.relative):
        size = entry.path.stat().st_size if isinstance(entry.path, Path) else entry.path.size
        digest.update(f"{entry.relative}\0{size}\0{'|'.join(entry.labels)}\n".encode())
    return digest.hexdigest()
