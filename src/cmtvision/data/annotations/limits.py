"""Annotation files are not trusted: how large they may be, and reading them with one clear line where they fail."""

import json
import math
from os.path import relpath
from pathlib import Path
from typing import Any

from cmtvision.data.listing.class_folders import inside
from cmtvision.errors import DataError

MAX_JSON_BYTES = 2_000_000_000  # COCO's own largest has 448 MB, LVIS's 1.1 GB
MAX_TEXT_BYTES = 20_000_000  # of one image's YOLO or VOC file, a list of images, a data.yaml
MAX_BOXES = 10_000  # of one image
MAX_POINTS = 100_000  # of one object's outline
MAX_NAME = 1_000  # characters of a file's or class's name
_SHOWN = 60
MAX_MASK_BYTES = 2_000_000_000  # all masks of one image, decoded


def read_bytes(file: Path, max_bytes: int) -> bytes:
    """The content of an annotation file.

    Raises:
        DataError: missing, not a plain file, larger than the limit, or not readable.
    """
    try:
        if not file.is_file():
            raise DataError(f"{file}: {'is not a plain file' if file.exists() else 'no such file'}")
        with file.open("rb") as raw:
            data = raw.read(max_bytes + 1)
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if len(data) > max_bytes:
        raise DataError(f"{file}: more than {max_bytes:,} bytes, the limit of an annotation file")
    return data


def read_text(file: Path, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """The content of an annotation file in UTF-8. DataError as ``read_bytes``, or where it is not text."""
    try:
        return read_bytes(file, max_bytes).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not a text file in UTF-8 ({error.reason} at byte {error.start})") from None


def read_json(file: Path, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """The content of a JSON file. DataError as ``read_bytes``, or where it is not JSON."""
    try:
        return json.loads(read_bytes(file, max_bytes))
    except RecursionError:
        raise DataError(f"{file}: nested too deep for an annotation file") from None
    except ValueError as error:  # also bytes that are no text, and numbers of thousands of digits
        raise DataError(f"{file}: not JSON ({' '.join(str(error).split())[:200]})") from None


def name_below(root: Path, folder: Path, name: str, where: str) -> tuple[Path, str]:
    """The path of an image that a file names from a folder, and its name from the root.

    Raises:
        DataError: an empty name, or one that leads out of the folder.
    """
    if not name.strip() or "\0" in name or len(name) > MAX_NAME:
        raise DataError(f"{where}: the name of an image is {shown(name) if name.strip() else 'empty'}")
    path = inside(folder, name, allow_outside=False, where=where)
    return path, Path(relpath(path, root)).as_posix()


def shown(value: object) -> str:
    """A value of a file in a message, however long it is."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")


def exists(path: Path) -> bool:
    """Whether a path that a file names is there; a name that no file can have is not."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def number(value: object) -> float | None:
    """A JSON value as a finite number; None if it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        converted = float(value)
    except OverflowError:
        return None
    return converted if math.isfinite(converted) else None
