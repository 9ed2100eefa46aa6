"""split.csv: which images a run was trained on and which it held out, and how they are recognised later.

An image is recognised by its path from the data's root and by its file: its size, and a checksum of its two ends. Where
the path has changed (the data was put below another folder, or is a part of it, or is listed by a CSV elsewhere), file
name and class are used instead. So a data set is recognised wherever it is and whatever its name, and another one with
the same file names is not: its files differ. Old split files contain names only; an image with a common name is then
taken for the run's, since figures on images that were trained on are worthless.
"""

import csv
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from cmtvision.data.listing.class_folders import plain_name
from cmtvision.data.listing.index import DatasetIndex, Sample, Skipped, as_text, from_spelled
from cmtvision.data.photos import PhotoPath, StoredPhoto
from cmtvision.errors import DataError

_PARTS = ("train", "val", "test")  # the most seen first
_END = 4096  # bytes at each end of a file
_BY_CHANCE = 0.2  # of images with a name in common, those that have the same size although they are not the same


class SplitRow(NamedTuple):
    """One image of split.csv: path from the data's root, classes joined by '|', part; of its file, where noted, the
    bytes, and the CRC-32 of the first and last 4 KiB.
    """

    path: str
    label: str
    split: str
    bytes: int | None
    crc32: str = ""


@dataclass(frozen=True)
class _Photo:
    """One image of an index, and what identifies it."""

    sample: Sample
    part: str
    name: str
    label: str
    size: int | None

    @property
    def file_name(self) -> str:
        return _file_name(self.name)


def write_split(index: DatasetIndex, file: str | PathLike[str]) -> None:
    """Write the split as a CSV: path (relative to ``index.root``), label, split, bytes and crc32 (see ``SplitRow``).

    ``read_dataset(file, root=index.root)`` gives the same samples again; ``root`` may be left out if the file
    is in it. Where images are not files, ``read_dataset(index.source, split_file=file)`` does. Bytes of a name that
    are no UTF-8 are spelled ``\\udcXX``. The file is written under another name first and then renamed.

    Raises:
        DataError: the file cannot be written.
    """
    target = Path(file)
    partial = target.with_name(f".{target.name}.partial")
    try:
        with partial.open("w", newline="", encoding="utf-8") as out:
            writer, quoting = csv.writer(out), csv.writer(out, quoting=csv.QUOTE_ALL)
            writer.writerow(SplitRow._fields)
            for part in _PARTS:
                for photo in _photos(index, part):
                    row = [as_text(photo.name), as_text(photo.label), part]
                    spaces = any(cell != cell.strip() for cell in row)  # a reader may take them for a typist's
                    size = "" if photo.size is None else str(photo.size)
                    (quoting if spaces else writer).writerow([*row, size, checksum(photo.sample.path)])
        partial.replace(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise DataError(f"{target}: the split cannot be written ({error.strerror or error})") from None


def read_split(file: str | PathLike[str]) -> list[SplitRow]:
    """Read what ``write_split`` wrote, by any version.

    Raises:
        DataError: it cannot be read, or is not such a file.
    """
    rows: dict[str, SplitRow] = {}
    try:
        with Path(file).open(newline="", encoding="utf-8-sig") as text:
            for row in (lines := csv.DictReader(text)):
                size, name = row.get("bytes"), plain_name(from_spelled(row["path"]))
                label, part = from_spelled(row["label"] or ""), row["split"]
                found = SplitRow(name, label, part, int(size) if size else None, row.get("crc32") or "")
                if part not in _PARTS or rows.setdefault(name, found).split != part:
                    raise DataError(
                        f"{file} line {lines.line_num}: {name or 'no path'} is in none of the parts "
                        f"{', '.join(_PARTS)}, or in two; take the file from the run again"
                    )
    except (OSError, csv.Error, KeyError, ValueError) as error:
        reason = f"no column {error}" if isinstance(error, KeyError) else getattr(error, "strerror", None) or error
        raise DataError(
            f"{file}: cannot be read as a run's split ({reason}); take the file from the run again"
        ) from None
    return list(rows.values())


def take_split(index: DatasetIndex, file: str | PathLike[str], fingerprint: str = "") -> DatasetIndex:
    """Assign the images of an index to the parts that a run had them in, if they are the run's.

    Images that the run does not know stay in the part that the data itself gives them. If it gives none, they are left
    out by name if the run's own held-out images are present, so that a figure is about the same images as the run's
    own; otherwise they are held out, since they were not trained on.

    Args:
        index: images of whatever data.
        file: the run's split.csv.
        fingerprint: of the run's data, if recorded.

    Returns:
        The index, with ``split_source`` 'run' and anything unusual in its ``notes``. Other data is returned in its
        own parts, with a note if names are equal.

    Raises:
        DataError: the file cannot be read.
    """
    rows = read_split(file)
    photos = [photo for part in _PARTS for photo in _photos(index, part)]
    parts, differ = _known_parts(photos, rows)
    if parts is None:
        return replace(index, notes=[*index.notes, *_note(differ, _OTHER)])
    given = index.split_source in ("folders", "csv")
    new = [place for place, part in enumerate(parts) if part is None]
    wanted = sum(row.split == "val" for row in rows)
    gone = wanted - parts.count("val")
    notes: list[str] = []
    skipped: list[Skipped] = []
    if given:
        seen = sum(photo.part != "train" and part == "train" for photo, part in zip(photos, parts, strict=True))
        notes += _note(
            seen, "{count} held-out {photos} of this data {are} among those that the run trained on; not counted"
        )
        parts = [part or photo.part for part, photo in zip(parts, photos, strict=True)]
    elif "val" in parts:
        reason = f"not in the run's {Path(file).name}: added since the run began, or of other data"
        skipped = [Skipped(photos[place].sample.path, reason) for place in new]
    else:
        notes += _note(
            len(new), "{count} {photos} that the run does not know {are} held out here; its own are not counted"
        )
        parts = [part or "val" for part in parts]
    if gone > 0:
        notes.append(f"{gone:,} of the {wanted:,} photos that the run held out are not in this data")
    if index.fingerprint != fingerprint and any(row.bytes is None for row in rows):
        notes.append("the run's photos were recognised by their names alone: its split.csv has no sizes")
    found = _in_parts(index, photos, parts)
    everything = sorted([*index.skipped, *skipped], key=lambda item: (str(item.path), item.reason))
    return replace(found, skipped=everything, split_source="run", notes=[*index.notes, *notes])


def keep_split(index: DatasetIndex, file: str | PathLike[str]) -> tuple[DatasetIndex, list[str]]:
    """Return the images of an index to the parts that they had when a run began; new ones stay as the index has them.

    If the data itself defines what is held out, an image that was held out before may now be trained on, but one that
    was trained on stays a training image.

    Returns:
        The index, and the names of images that the data itself now assigns to another part.

    Raises:
        DataError: the file cannot be read.
    """
    photos = [photo for part in _PARTS for photo in _photos(index, part)]
    known, _ = _known_parts(photos, read_split(file))
    if known is None:
        return index, []
    given = index.split_source in ("folders", "csv")
    parts: list[str | None] = []
    moved: list[str] = []
    for photo, before in zip(photos, known, strict=True):
        part = photo.part if before is None else _most_seen((before, photo.part)) if given else before
        parts.append(part)
        # earlier versions took a test part for held-out images
        if given and before not in (None, photo.part) and (before, photo.part) != ("val", "test"):
            moved.append(photo.name)
    if all(part == photo.part for part, photo in zip(parts, photos, strict=True)):
        return index, moved  # in the very order that it has
    return _in_parts(index, photos, parts), moved


_OTHER = (
    "{count} {photos} {have} the name of one of the run's, but other content: taken for other data, "
    "all of it unknown to the run"
)


def _note(count: int, text: str) -> list[str]:
    words = {"photos": "photos", "are": "are", "have": "have"} if count != 1 else {
        "photos": "photo", "are": "is", "have": "has"
    }  # fmt: skip
    return [text.format(count=f"{count:,}", **words)] if count else []


def _known_parts(photos: Sequence[_Photo], rows: Sequence[SplitRow]) -> tuple[list[str | None] | None, int]:
    """The part of each image in the run, None for an unknown image; None altogether for other data.

    Returns:
        The parts, and how many images share a name with one of the run's but not its size (or class, without sizes).
    """
    by_path = {row.path: row for row in rows}
    parts: list[str | None] = [None] * len(photos)
    taken: set[str] = set()
    left: list[int] = []
    for place, photo in enumerate(photos):
        row = by_path.get(photo.name)
        if row is not None and _agrees(row, photo):
            parts[place] = row.split
            taken.add(row.path)
        else:
            left.append(place)
    namesakes, differ = _namesakes(photos, left, rows)
    renamed = _renamed(photos, [place for place in left if not namesakes.get(place, [None])], rows)
    if len(renamed) >= _BY_CHANCE * len(photos):  # fewer are copies of one image in two data sets
        namesakes |= renamed
    # train/cat/1.jpg and val/cat/1.jpg may be of one size: the folder that the others came from decides
    ways = Counter(_way(row.path, photos[place].name) for place, found in namesakes.items() for row in found)
    for place, found in namesakes.items():
        usual = max((ways[_way(row.path, photos[place].name)] for row in found), default=0)
        likely = [row for row in found if ways[_way(row.path, photos[place].name)] == usual]
        parts[place] = _most_seen(row.split for row in likely) if likely else None
        taken.update(row.path for row in found)
    agree = sum(part is not None for part in parts)
    if not agree or agree < _BY_CHANCE * (agree + differ):
        return None, differ
    moved: dict[tuple[str, int], list[str]] = {}
    for row in rows if agree < len(photos) else ():
        if row.path not in taken and row.bytes is not None:
            moved.setdefault((_file_name(row.path), row.bytes), []).append(row.split)
    for place in left:
        photo = photos[place]
        if parts[place] is None and photo.name in by_path:  # the same image, edited since
            parts[place] = by_path[photo.name].split
        elif parts[place] is None and photo.size is not None:  # moved to another class
            found_parts = moved.get((photo.file_name, photo.size))
            parts[place] = _most_seen(found_parts) if found_parts else None
    return parts, differ


def _namesakes(
    photos: Sequence[_Photo], left: Sequence[int], rows: Sequence[SplitRow]
) -> tuple[dict[int, list[SplitRow]], int]:
    """Rows with another path that may describe some images, by place; how many images share a name but do not fit.

    An image with the path of a row and another size is from other data or was edited since: it has no namesakes.
    """
    paths = {row.path for row in rows}
    by_name: dict[tuple[str, str], list[SplitRow]] = {}
    for row in rows if left else ():
        by_name.setdefault((_file_name(row.path), row.label), []).append(row)
    found: dict[int, list[SplitRow]] = {}
    differ = 0
    for place in left:
        photo = photos[place]
        if photo.name in paths:
            differ += 1
            continue
        named = by_name.get((photo.file_name, photo.label), [])
        found[place] = [row for row in named if _agrees(row, photo)]
        differ += not found[place] and bool(named)
    return found, differ


def _renamed(photos: Sequence[_Photo], places: Sequence[int], rows: Sequence[SplitRow]) -> dict[int, list[SplitRow]]:
    """Rows with the same content as some images, whatever their names, by place."""
    by_size: dict[int, list[SplitRow]] = {}
    for row in rows if places else ():
        if row.bytes is not None and row.crc32:
            by_size.setdefault(row.bytes, []).append(row)
    found = {}
    for place in places:
        photo = photos[place]
        same = by_size.get(photo.size, []) if photo.size is not None else []
        if same:
            sum_ = checksum(photo.sample.path)
            found[place] = [row for row in same if row.crc32 == sum_]
    return {place: rows_found for place, rows_found in found.items() if rows_found}


def _way(before: str, now: str) -> tuple[str, str]:
    """The beginnings of two paths of one image, up to where they become equal."""
    old, new = before.split("/"), now.split("/")
    while old and new and old[-1] == new[-1]:
        old.pop()
        new.pop()
    return "/".join(old), "/".join(new)


def _agrees(row: SplitRow, photo: _Photo) -> bool:
    """Whether an image can be that of a row with the same name: by its file, or if that is unknown, by class."""
    if row.bytes is None or photo.size is None:
        return row.label == photo.label
    return row.bytes == photo.size and (not row.crc32 or checksum(photo.sample.path) in (row.crc32, ""))


def _most_seen(parts: Iterable[str]) -> str:
    return min(parts, key=_PARTS.index)


def _in_parts(index: DatasetIndex, photos: Sequence[_Photo], parts: Sequence[str | None]) -> DatasetIndex:
    """The index with its images in these parts, each sorted by name as ``read_dataset`` does; None is left out."""
    order = sorted(range(len(photos)), key=lambda place: photos[place].name)
    train, val, test = ([photos[place].sample for place in order if parts[place] == part] for part in _PARTS)
    return replace(index, train=train, val=val, test=test)


def _photos(index: DatasetIndex, part: str) -> list[_Photo]:
    found = []
    for sample in getattr(index, part):
        labels = sample.labels if index.multi_label else (sample.label,)
        label = "|".join(index.classes[number] for number in labels)
        found.append(_Photo(sample, part, index.relative(sample.path), label, file_size(sample.path)))
    return found


def file_size(path: PhotoPath) -> int | None:
    """Bytes of an image's file; None where that is not known without reading it, or the file is gone."""
    if isinstance(path, StoredPhoto):
        return path.size if path.size >= 0 else None
    try:
        return path.stat().st_size
    except OSError:
        return None


def checksum(path: PhotoPath) -> str:
    """CRC-32 of the first and last 4 KiB of an image's file, as 8 hexadecimal digits; '' without a file.

    Uncompressed images all have one size, so sizes alone do not distinguish them.
    """
    if isinstance(path, StoredPhoto):
        return ""
    try:
        with path.open("rb") as file:
            crc = zlib.crc32(file.read(_END))
            file.seek(max(0, os.fstat(file.fileno()).st_size - _END))
            return f"{zlib.crc32(file.read(_END), crc):08x}"
    except OSError:
        return ""


def _file_name(path: str) -> str:
    return path.rpartition("/")[2]
