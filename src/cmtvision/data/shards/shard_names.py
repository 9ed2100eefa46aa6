"""The shards that a path, a URL or a pattern with braces means, and which of them are held out."""

import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from cmtvision.data.listing.splits import part_named, part_of_file, parts_of
from cmtvision.data.shards.shard_reader import filesystem, is_url, remote_errors
from cmtvision.errors import DataError

_MAX_SHARDS = 100_000


def expand(source: str) -> list[str] | None:
    """The shards that a name with .tar means, braces expanded as a shell would; None for a folder.

    Raises:
        DataError: a compressed tar, or a pattern of too many shards.
    """
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


def shards_in(folder: str) -> tuple[list[tuple[str, str | None]], list[str]]:
    """The .tar files of a folder, or those of its train/, val/ and test/, each with its part; and those left out.

    Raises:
        DataError: two folders or kinds of names for one part.
    """
    by_name = {place.rpartition("/")[2]: tars for place in _folders(folder) if (tars := _tars(place))}
    parts = parts_of(by_name, folder)
    direct = _tars(folder)
    if parts:
        return [(file, part) for name, part in parts.items() for file in by_name[name]], direct
    parts_of((file.rpartition("/")[2] for file in direct), folder, of_files=True)
    return [(file, part_of(file)) for file in direct], []


def part_of(file: str) -> str | None:
    """train, val or test by a shard's own name (train-000000.tar), or by its folder's."""
    folder, _, name = file.rpartition("/")
    return part_of_file(name) or part_named(folder.rpartition("/")[2])


def read_small(file: str, limit: int) -> bytes | None:
    """The content of a local or remote file, or None if it does not exist.

    Raises:
        DataError: more than ``limit`` bytes, or a remote file that cannot be fetched.
    """
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
        raise DataError(f"{source}: {piece} is not a range of up to {_MAX_SHARDS:,} numbers; expected {{first..last}}")
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]


def _tars(folder: str) -> list[str]:
    if not is_url(folder):
        return sorted(str(file) for file in Path(folder).glob("*.tar"))
    files, path = filesystem(folder)
    with remote_errors(folder):
        return sorted(files.unstrip_protocol(name) for name in files.glob(f"{path.rstrip('/')}/*.tar"))


def _folders(folder: str) -> list[str]:
    """The folders in a folder that are named as a part."""
    if not is_url(folder):
        place = Path(folder)
        found = [str(one) for one in place.iterdir() if one.is_dir()] if place.is_dir() else []
    else:
        files, path = filesystem(folder)
        with remote_errors(folder):
            inside = files.ls(path.rstrip("/"), detail=True) if files.isdir(path) else []
        found = [files.unstrip_protocol(one["name"].rstrip("/")) for one in inside if one["type"] == "directory"]
    return sorted(one for one in found if part_named(one.rpartition("/")[2]))
