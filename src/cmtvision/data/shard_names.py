"""Which files a path, a URL or a pattern with braces means as shards, and which of them are held out."""

import re
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path

from cmtvision.data.listing import VAL_NAMES
from cmtvision.data.shards import filesystem, is_url, remote_errors
from cmtvision.errors import DataError

_MAX_SHARDS = 100_000
_SPLITS = {"train": "train", **dict.fromkeys(VAL_NAMES, "val")}


def expand(source: str) -> list[str] | None:
    """The shards that a name with .tar means, braces expanded as a shell would; None for a folder."""
    if not re.search(r"\.(tar(\.\w+)?|tgz)$", source):
        return None
    if not source.endswith(".tar"):
        raise DataError(f"{source}: shards are uncompressed .tar files; unpack the compression first")
    choices = [_choices(piece, source) for piece in re.split(r"(\{[^{}]*\})", source)]
    count = 1
    for choice in choices:
        count *= len(choice)
    if count > _MAX_SHARDS:
        raise DataError(f"{source}: {count:,} shards, more than {_MAX_SHARDS:,}")
    return ["".join(pieces) for pieces in product(*choices)]


def shards_in(folder: str) -> list[tuple[str, str | None]]:
    """The .tar files of a folder, or those of its train/ and val/ (or valid, validation, test)."""
    direct = [(file, part_of(file)) for file in _tars(folder)]
    if direct:
        return direct
    train = [(file, "train") for file in _tars(join(folder, "train"))]
    held_out: Iterable[list[str]] = (_tars(join(folder, name)) for name in VAL_NAMES)
    return [*train, *((file, "val") for file in next(filter(None, held_out), []))] if train else []


def part_of(file: str) -> str | None:
    """train or val by a shard's own name (train-000000.tar), or by its folder's."""
    folder, _, name = file.rpartition("/")
    for word in (re.split(r"[^a-z]", name.lower())[0], folder.rpartition("/")[2].lower()):
        if word in _SPLITS:
            return _SPLITS[word]
    return None


def read_small(file: str, limit: int) -> bytes | None:
    """A whole file, or None where there is none."""
    if not is_url(file):
        path = Path(file)
        if not path.is_file():
            return None
        if path.stat().st_size > limit:
            raise DataError(f"{file}: more than {limit:,} bytes")
        return path.read_bytes()
    files, path_there = filesystem(file)
    try:
        with remote_errors(file):
            if not files.exists(path_there):
                return None
            if int(files.info(path_there)["size"] or 0) > limit:
                raise DataError(f"{file}: more than {limit:,} bytes")
            return bytes(files.cat_file(path_there))
    except FileNotFoundError:
        return None


def parent(file: str) -> str:
    """The folder of a path or URL."""
    return file.rpartition("/")[0] or "."


def join(folder: str, name: str) -> str:
    """A name in a folder, which is a path or URL."""
    return f"{folder.rstrip('/')}/{name}"


def _choices(piece: str, source: str) -> Sequence[str]:
    if not piece.startswith("{"):
        return [piece]
    numbers = re.fullmatch(r"\{(\d+)\.\.(\d+)\}", piece)
    if numbers is None:
        return piece[1:-1].split(",")
    first, last = numbers.groups()
    if int(first) > int(last) or int(last) - int(first) >= _MAX_SHARDS:
        raise DataError(f"{source}: {piece} is no row of up to {_MAX_SHARDS:,} numbers; expected {{first..last}}")
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]


def _tars(folder: str) -> list[str]:
    if not is_url(folder):
        return sorted(str(file) for file in Path(folder).glob("*.tar"))
    files, path = filesystem(folder)
    with remote_errors(folder):
        return sorted(files.unstrip_protocol(name) for name in files.glob(f"{path.rstrip('/')}/*.tar"))
