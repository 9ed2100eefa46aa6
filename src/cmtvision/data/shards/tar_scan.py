"""Scanning a WebDataset shard without an index: its tar headers are read once, the images are not.

A sample is a sequence of files with the same name up to the first dot: an image, and its label in ``.cls`` (a class
number or name) or ``.json`` (label, or labels); without either, the folder that its name begins with. Nothing is
unpacked.
"""

import json
import tarfile
from pathlib import PurePosixPath
from typing import IO, Any, NamedTuple

from cmtvision.data.listing.class_folders import EXTENSIONS, plain_name
from cmtvision.errors import DataError

_MAX_LABEL_BYTES = 1_000_000
_LABEL_KEYS = ("label", "labels", "cls", "class")


class ScannedShard(NamedTuple):
    """The images of a shard, in its order: plain names, offsets and sizes in bytes, labels as they were written."""

    names: list[str]
    offsets: list[int]
    sizes: list[int]
    labels: list[Any]


def scan_tar(file: IO[bytes], num_bytes: int, where: str, label_column: str | None = None) -> ScannedShard:
    """Read the headers of a tar, and the labels in it.

    Args:
        file: seekable.
        num_bytes: its size.
        where: what errors call it.
        label_column: the key of the label in .json files; by default label, labels, cls or class.

    Raises:
        DataError: not an uncompressed tar, cut off, an image without a label, or no image at all.
    """
    found = ScannedShard([], [], [], [])
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, Any] = {}
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if not member.isreg() or member.sparse is not None:
                    continue  # links, folders and devices: nothing here is followed or made
                if member.offset_data + member.size > num_bytes:
                    raise DataError(f"{where}: {member.name} ends beyond the end of the shard; write or copy it again")
                name = plain_name(member.name)
                if any(part.startswith(".") or part == "__MACOSX" for part in name.split("/")):
                    continue  # what macOS and editors leave next to images, as in folders
                key, extension = _key(name)
                if f".{extension.rpartition('.')[2]}" in EXTENSIONS:
                    if key in images:
                        raise DataError(f"{where}: two images are called {key}; give each sample a name of its own")
                    images[key] = (name, member.offset_data, member.size)
                elif extension in {"cls", "json"} and member.size <= _MAX_LABEL_BYTES:
                    content = tar.extractfile(member)
                    assert content is not None  # it is a regular file
                    label = _label(extension, content.read(), f"{where}: {member.name}", label_column)
                    if label is not None:
                        labels.setdefault(key, label)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{where}: not a whole, uncompressed tar file ({error}); write or copy it again") from None
    for key, (name, offset, size) in images.items():
        label = labels.get(key, PurePosixPath(key).parent.name or None)
        if label is None:
            raise DataError(f"{where}: {name} has no label; expected {key}.cls or {key}.json with a label")
        found.names.append(name)
        found.offsets.append(offset)
        found.sizes.append(size)
        found.labels.append(label)
    if not images:
        raise DataError(f"{where}: no photos in this shard")
    return found


def _key(name: str) -> tuple[str, str]:
    """WebDataset's rule: the key ends at the first dot of the file's own name."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()


def _label(extension: str, content: bytes, where: str, column: str | None) -> Any:
    try:
        text = content.decode("utf-8").strip()
        if extension == "cls":
            return int(text) if text.lstrip("-").isdecimal() else text
        found = json.loads(text)
    except ValueError:
        raise DataError(f"{where}: not a readable label") from None
    if not isinstance(found, dict):
        return None
    keys = (column,) if column is not None else _LABEL_KEYS
    return next((found[key] for key in keys if key in found), None)
