"""Which photos there are, of which class, and which are held out: from a folder of class folders or a CSV.

Every file is decoded once when a data set is read, so what is damaged is named, counted and left out before training
starts. Without a validation part a stratified split is made from a hash of the seed and each path: it is the same on
every machine, and a photo added later moves no other.
"""

import csv
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from os import PathLike, cpu_count
from pathlib import Path

from cmtvision.data.decode import MAX_BYTES, MAX_PIXELS, open_image
from cmtvision.data.index import DatasetIndex, Sample, Skipped
from cmtvision.data.listing import Entry, list_csv, list_folders
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
) -> DatasetIndex:
    """Read a data set's list of photos.

    Args:
        path: a folder of class folders; a folder with train/ and val/ (or valid, validation, test) of class folders; or
            a CSV with the columns path, label and optionally split (train or val).
        val_fraction: share of each class to hold out where nothing is held out yet; at least one photo of each class
            with two, and 0 holds out nothing (``train`` is then all).
        split_seed: which photos those are.
        classes: fix the classes and their order, as a trained model has them; the data may then lack some.
        verify: decode every file; without it only missing files and wrong extensions are skipped.
        root: what a CSV's paths are relative to; by default the CSV's folder.
        allow_outside: let a CSV's paths be absolute or leave ``root`` by '..'.
        max_pixels, max_bytes: larger images and files are skipped by name.
        progress: called as progress(done, total) while files are verified.

    Raises:
        DataError: no such path, nothing in it, one class only, a class without a usable image, a validation class that
            training does not have, a malformed CSV.
    """
    if not 0 <= val_fraction < 1:
        raise DataError(f"val_fraction: got {val_fraction}, expected a share in [0, 1)")
    source = Path(path)
    if not source.exists():
        raise DataError(f"{source}: no such folder or file; give a folder of class folders, or a CSV with path,label")
    if source.is_dir():
        base = source.resolve()
        listing = list_folders(base, str(source))
    else:
        base = Path(root).resolve() if root is not None else source.resolve().parent
        listing = list_csv(source, base, allow_outside)
    if not listing.entries:
        raise DataError(f"{source}: no photos found; expected one folder per class with images inside")
    usable, unusable = _verified(listing.entries, verify, max_pixels, max_bytes, progress)
    names = _class_names(source, listing.classes, usable, unusable, classes)
    _check_val_classes(source, usable)
    split_source = listing.split_source
    if not any(entry.split == "val" for entry in usable):
        split_source = "seeded" if val_fraction else "none"
        usable = _split(usable, val_fraction, split_seed)
    number = {name: index for index, name in enumerate(names)}
    parts: dict[str, list[Sample]] = {"train": [], "val": []}
    for entry in sorted(usable, key=lambda entry: entry.relative):
        parts[entry.split or "train"].append(Sample(entry.path, number[entry.label]))
    return DatasetIndex(
        root=base,
        classes=names,
        train=parts["train"],
        val=parts["val"],
        skipped=sorted([*listing.skipped, *unusable]),
        fingerprint=_fingerprint(usable),
        split_source=split_source,
    )


def write_split(index: DatasetIndex, file: str | PathLike[str]) -> None:
    """Write the split as a CSV: path (relative to ``index.root``), label, split.

    ``read_dataset(file, root=index.root)`` gives the same samples again; ``root`` may be left out where the file
    stands in it. The file is written under another name first and then renamed.

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
                    writer.writerow([index.relative(sample.path), index.classes[sample.label], split])
        partial.replace(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise DataError(f"{target}: the split cannot be written ({error.strerror or error})") from None


def class_names_from(path: str | PathLike[str]) -> list[str]:
    """The sorted class names of a data folder or CSV, without reading any image.

    Raises:
        DataError: no such path, or no classes in it.
    """
    source = Path(path)
    if not source.exists():
        raise DataError(f"{source}: no such folder or file")
    listing = (
        list_folders(source.resolve(), str(source))
        if source.is_dir()
        else list_csv(source, source.resolve().parent, allow_outside=True)
    )
    if not listing.classes:
        raise DataError(f"{source}: no classes found; expected one folder per class, or a CSV with path,label")
    return sorted(listing.classes)


def _verified(
    entries: Sequence[Entry], verify: bool, max_pixels: int, max_bytes: int, progress: Progress | None
) -> tuple[list[Entry], list[Skipped]]:
    def problem(entry: Entry) -> str | None:
        if not verify:
            return None if entry.path.is_file() else "no such file"
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
    source: Path, listed: Iterable[str], usable: Sequence[Entry], bad: Sequence[Skipped], fixed: Sequence[str] | None
) -> list[str]:
    counts = Counter(entry.label for entry in usable)
    empty = sorted(name for name in listed if not counts[name])
    if empty:
        example = f"; {bad[0].path}: {bad[0].reason}" if bad else ""
        raise DataError(
            f"{source}: no usable image in class {', '.join(map(repr, empty))}; add images or remove the class{example}"
        )
    if fixed is not None:
        unknown = sorted(set(counts) - set(fixed))
        if unknown:
            raise DataError(
                f"{source}: class {', '.join(map(repr, unknown))} is not one of the model's {len(fixed)} classes "
                f"({', '.join(list(fixed)[:5])}{', ...' if len(fixed) > 5 else ''})"
            )
        return list(fixed)
    if len(counts) < 2:
        raise DataError(f"{source}: only one class ({next(iter(counts))!r}); a classifier needs at least two")
    return sorted(counts)


def _check_val_classes(source: Path, usable: Sequence[Entry]) -> None:
    labels = {
        split: {entry.label for entry in usable if (entry.split or "train") == split} for split in ("train", "val")
    }
    unknown = sorted(labels["val"] - labels["train"])
    if unknown and labels["train"]:
        raise DataError(
            f"{source}: class {', '.join(map(repr, unknown))} is in the validation part but has no training image"
        )


def _split(usable: Sequence[Entry], val_fraction: float, seed: int) -> list[Entry]:
    """Hold out round(val_fraction * n) of each class, one at least and never all."""
    by_class: dict[str, list[Entry]] = {}
    for entry in usable:
        by_class.setdefault(entry.label, []).append(entry)
    result: list[Entry] = []
    for entries in by_class.values():
        held_out = min(max(1, round(val_fraction * len(entries))), len(entries) - 1) if val_fraction else 0
        ordered = sorted(entries, key=lambda entry: sha256(f"{seed}:{entry.relative}".encode()).digest())
        result += [entry._replace(split="val" if rank < held_out else "train") for rank, entry in enumerate(ordered)]
    return result


def _fingerprint(usable: Sequence[Entry]) -> str:
    digest = sha256()
    for entry in sorted(usable, key=lambda entry: entry.relative):
        digest.update(f"{entry.relative}\0{entry.path.stat().st_size}\0{entry.label}\n".encode())
    return digest.hexdigest()
