"""What an image is like: its size and its brightness, measured; or what a table says of it."""

import csv
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cmtvision.data import open_image
from cmtvision.data.decode import image_size
from cmtvision.data.photos import PhotoPath
from cmtvision.errors import DataError
from cmtvision.machine import usable_processors
from cmtvision.report.sections.slices import Column

MAX_MEASURED = 10_000
_SIDE = 48  # pixels that a brightness is measured on
_MAX_CSV = 500_000_000
Progress = Callable[[int, int], None]


class _Measure(NamedTuple):
    """An image's shorter side in pixels, the longer side by the shorter, and its mean brightness, 0 to 100."""

    side: float
    ratio: float
    brightness: float


def measured_columns(paths: Sequence[PhotoPath], progress: Progress | None = None) -> list[Column]:
    """Size, shape and brightness of images; None for one that cannot be read."""
    kept: list[_Measure | None] = []
    with ThreadPoolExecutor(usable_processors()) as pool:
        for one in pool.map(_measure, paths):
            kept.append(one)
            if progress is not None:
                progress(len(kept), len(paths))
    return [
        Column("Shorter side", [None if one is None else one.side for one in kept], " px"),
        Column("Longer side by shorter", [None if one is None else round(one.ratio, 2) for one in kept]),
        Column("Brightness", [None if one is None else round(one.brightness, 1) for one in kept], "%"),
    ]


def _measure(path: PhotoPath) -> _Measure | None:
    try:
        width, height = image_size(path)
        gray = np.asarray(open_image(path, short_side=_SIDE).convert("L"), np.float32)
    except DataError:
        return None
    return _Measure(min(width, height), max(width, height) / max(1, min(width, height)), float(gray.mean()) / 2.55)


def table_columns(file: Path, names: Sequence[str], paths: Sequence[PhotoPath]) -> tuple[list[Column], list[str]]:
    """The columns of a CSV for some images, which its column ``path`` names.

    Args:
        file: a CSV with a header and the column path: an image's path from the data's root, a whole path, or one from
            the CSV's own folder.
        names: the images' paths from the data's root.
        paths: the images.

    Returns:
        A column for each of the others of the CSV, and a sentence where images have no row.

    Raises:
        DataError: it cannot be read, has no column path, has no other column, or names none of the images.
    """
    rows = read_table(file)
    columns = [name for name in rows[0] if name != "path"]
    by_path = {row["path"]: row for row in rows}
    folder = file.resolve().parent
    found = [_row(by_path, name, path, folder) for name, path in zip(names, paths, strict=True)]
    missing = sum(row is None for row in found)
    if missing == len(found):
        raise DataError(f"{file}: names none of the images; write paths like {names[0]!r} into its column path")
    notes = [f"{missing:,} of the images have no row in {file.name}."] if missing else []
    return [Column(one, [(row or {}).get(one) or None for row in found]) for one in columns], notes


def read_table(file: Path) -> list[dict[str, str]]:
    """The rows of a CSV to slice by. Raises DataError where it cannot be read, or lacks the columns or any row."""
    rows = _rows(file)
    if not rows or "path" not in rows[0] or len(rows[0]) < 2:
        raise DataError(f"{file}: expected a CSV with a header: a column path, and at least one to slice by")
    return rows


def _row(by_path: dict[str, dict[str, str]], name: str, path: PhotoPath, folder: Path) -> dict[str, str] | None:
    spellings = [name, str(path)]
    if isinstance(path, Path):
        whole = path.resolve()
        spellings += [str(whole), *([whole.relative_to(folder).as_posix()] if whole.is_relative_to(folder) else [])]
    return next((by_path[one] for one in spellings if one in by_path), None)


def _rows(file: Path) -> list[dict[str, str]]:
    try:
        if file.stat().st_size > _MAX_CSV:
            raise DataError(f"{file}: larger than {_MAX_CSV // 1_000_000} MB; give the rows of these images only")
        with file.open(newline="", encoding="utf-8-sig") as text:
            return [{key: value or "" for key, value in row.items() if key} for row in csv.DictReader(text)]
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{file}: cannot be read as a CSV ({reason})") from None
