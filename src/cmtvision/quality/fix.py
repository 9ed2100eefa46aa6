"""A cleaned copy of a data set: what a check found wrong is left out, each image with its reason, and nothing else is.

Left out are unreadable images, exact copies, and training images that are also held out (the held-out one stays). Of
images that look the same and have different classes, nobody but a person can say which class is right: all of them are
set aside in ``left-out/contradictory``. The source is only read; images are copied, never linked.

OUT holds class folders as the source does; for a table, shards or another library's data, OUT/data.csv lists copies in
OUT/images. OUT/left-out/left-out.csv says what was left out and why.
"""

import csv
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from cmtvision.data.listing.index import as_text
from cmtvision.data.listing.own_folders import CHECK_FILES
from cmtvision.data.whole_folder import below, check_target, move_into_place, partial_folder
from cmtvision.errors import DataError
from cmtvision.quality.check import Checked
from cmtvision.quality.findings import DataCheck
from cmtvision.quality.listing import Photo

LEFT_OUT_FOLDER = "left-out"
TABLE = "data.csv"
_KEPT_FIRST = {"test": 0, "val": 1, "train": 2}
"""Whose copy stays: a test image is for the final measurement, a training image can be spared."""
_SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif", "JPEG2000": ".jp2"}


@dataclass(frozen=True)
class FixSummary:
    """What was written.

    Attributes:
        directory: the cleaned copy.
        data: what to give ``cmtvision train``: the folder, or the table in it.
        kept: images copied.
        left_out: images that were not, each with the reason, by name.
    """

    directory: Path
    data: Path
    kept: int
    left_out: list[tuple[Photo, str]]


def left_out(check: DataCheck) -> dict[Photo, tuple[str, str]]:
    """The images that a cleaned copy leaves out: each with a kind ('unreadable' ...) and a reason in words."""
    out: dict[Photo, tuple[str, str]] = {}
    for photo, reason in check.unreadable:
        out[photo] = ("unreadable", reason)
    contradictory = check.finding("contradictory-labels")
    for item in contradictory.items if contradictory else []:
        for photo in item.photos:
            others = [f"{one.name} ({one.label})" for one in item.photos if one.label != photo.label]
            out.setdefault(photo, ("contradictory", f"looks the same as {', '.join(others[:3])}"))
    for kind in ("leakage", "exact-duplicates"):
        finding = check.finding(kind)
        for item in finding.items if finding else []:
            staying = sorted((one for one in item.photos if one not in out), key=_importance)
            for photo in staying[1:]:
                if kind == "leakage" and photo.part == staying[0].part:
                    continue
                what = "is also held out as" if kind == "leakage" else "is the same file as"
                out[photo] = (kind, f"{what} {staying[0].name}")
    return out


def write_cleaned(
    checked: Checked, target: Path, overwrite: bool = False, progress: Callable[[int, int], None] | None = None
) -> FixSummary:
    """Write the cleaned copy.

    Args:
        checked: of ``check_data``.
        target: the folder to write; it appears only when complete.
        overwrite: replace a cleaned copy that was written here before (never other files).
        progress: called as progress(done, total).

    Raises:
        DataError: the folder is inside the data or holds the data, is not empty, or cannot be written; nothing is left.
    """
    listed, check = checked.listed, checked.result
    refuse_early(check.source, target, overwrite)
    out = left_out(check)
    kept = [photo for photo in check.photos if photo not in out]
    if not kept:
        raise DataError(f"{check.source}: nothing would be left to copy; see what the check says")
    folders = not listed.in_store and not listed.is_table
    aside = [photo for photo, (kind, _) in out.items() if kind == "contradictory"]
    partial = partial_folder(target)
    beside = partial / LEFT_OUT_FOLDER
    try:
        names = []
        for done, photo in enumerate(kept, start=1):
            names.append(_copy(photo, partial, _name(photo, folders, done)))
            if progress is not None and (done % 100 == 0 or done == len(kept)):
                progress(done, len(kept))
        for number, photo in enumerate(aside):
            _copy(photo, beside / "contradictory", _name(photo, folders, number))
        if not folders:
            split = check.split_source != "seeded"
            rows = [[as_text(name), as_text(one.label), one.part] for one, name in zip(kept, names, strict=True)]
            columns = ["path", "label", "split"] if split else ["path", "label"]
            _write_csv(partial / TABLE, columns, [row[: len(columns)] for row in rows])
        reasons = sorted((photo.name, photo.label, photo.part, kind, why) for photo, (kind, why) in out.items())
        table = [[as_text(cell) for cell in row] for row in reasons]
        _write_csv(beside / CHECK_FILES[0], ["path", "label", "part", "kind", "reason"], table)
        files = [as_text(name) for name, item in below(partial) if not item.is_dir()]
        record = {"data": check.source, "files": files}
        (beside / CHECK_FILES[1]).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        move_into_place(partial, target, _foreign)
    except OSError as error:
        raise DataError(f"{target}: the copy cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    reported = [(photo, why) for photo, (_, why) in sorted(out.items(), key=lambda pair: pair[0].name)]
    return FixSummary(target, target if folders else target / TABLE, len(kept), reported)


def refuse_early(source: str, target: Path, overwrite: bool) -> None:
    """Refuse a folder that must not be written to, before the data is looked at.

    Raises:
        DataError: it is in the data or around it, is a file, or holds what is not a cleaned copy of ours.
    """
    data = Path(source.removeprefix("hf:"))
    if data.exists():
        root = (data if data.is_dir() else data.parent).resolve()
        place = target.resolve()
        inside = place.is_relative_to(root) if data.is_dir() else place == root
        if inside or root.is_relative_to(place):
            raise DataError(f"{target}: inside {source} or around it, which is never written to; choose another folder")
    check_target(target, overwrite, "cleaned copy", _foreign)


def _importance(photo: Photo) -> tuple[int, str]:
    return _KEPT_FIRST[photo.part], photo.name


def _name(photo: Photo, folders: bool, number: int) -> str:
    """The name of a copy: as in the source; a number where the source has no files, without the suffix."""
    if folders:
        return photo.name
    return f"images/{photo.name}" if isinstance(photo.path, Path) else f"images/{number:07d}"


def _copy(photo: Photo, folder: Path, name: str) -> str:
    """Copy an image's file with its date; where it has none, its bytes, or its pixels as PNG. Returns the full name."""
    if isinstance(photo.path, Path):
        goal = folder / name
        goal.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(photo.path, goal)  # follows a link: a copy of the image, not of the link
        return name
    content = photo.path.read()
    name += _suffix(content)
    goal = folder / name
    goal.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        goal.write_bytes(content)
    else:
        content.save(goal, "PNG")
    return name


def _suffix(content: bytes | Image.Image) -> str:
    """The usual suffix of an encoded image."""
    if not isinstance(content, bytes):
        return ".png"
    with Image.open(io.BytesIO(content)) as picture:
        name = picture.format or "PNG"
    return _SUFFIXES.get(name, f".{name.lower()}")


def _write_csv(file: Path, columns: list[str], rows: list[list[str]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out, quoting=csv.QUOTE_ALL)
        writer.writerow(columns)
        writer.writerows(rows)


def _foreign(folder: Path) -> str | None:
    """What ``write_cleaned`` did not write there: a folder without its record, or a file that is not in the record."""
    record = folder / LEFT_OUT_FOLDER / CHECK_FILES[1]
    try:
        files = set(json.loads(record.read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return f"it has no {LEFT_OUT_FOLDER}/{CHECK_FILES[1]}"
    own = {f"{LEFT_OUT_FOLDER}/{CHECK_FILES[1]}"}
    for name, item in below(folder):
        if item.is_symlink() or (not item.is_dir() and as_text(name) not in files and as_text(name) not in own):
            return f"it holds {name}"
    return None
