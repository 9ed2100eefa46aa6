"""Reading images out of shards: tar files with an index of byte offsets, local or in an object store.

With (shard, offset, size) for every image, a million images in shards are a list like any other: any order, any place
to resume, any number of processes. A local shard is read in place, a few bytes at a time. A remote shard (any fsspec
URL) is fetched whole when its first image is needed, since images of one shard are needed together (see
``EpochSampler``), and kept in the user's cache folder; the folder's limit is CMTVISION_SHARD_CACHE_GB, 50 by default,
and the least recently fetched or opened shard is deleted first.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from cmtvision.data.user_cache import cache_folder
from cmtvision.errors import ConfigError, DataError

_OPEN_FILES = 64
_CACHE_VARIABLE = "CMTVISION_SHARD_CACHE_GB"
_open: "dict[Shard, _OpenFile]" = {}  # the first is the one opened longest ago; children of a fork may share them


@dataclass(frozen=True)
class Shard:
    """A file that holds images as they were, one after another.

    Args:
        location: a local path, or an fsspec URL.
        num_bytes: its size, which is checked when it is opened.
        version: what changes when a remote shard changes: its sha256 where an index knows it, else its ETag or date.
        label: what errors call it; by default its location.
        sequential: reading images of one shard together is faster, so the sampler keeps them together.
    """

    location: str
    num_bytes: int
    version: str = ""
    label: str = ""
    sequential: bool = True

    def read(self, place: int, size: int) -> bytes:
        """Size bytes from an offset; safe in threads and forked processes.

        Raises:
            DataError: the shard is gone, shorter than it was, or cannot be fetched.
        """
        if not 0 <= place <= place + size <= self.num_bytes:
            raise DataError(f"{self}: bytes {place} to {place + size} of a shard of {self.num_bytes:,}; index it again")
        file = _opened(self)
        content = os.pread(file.descriptor, size, place)
        while len(content) < size:  # a signal or a network file system may cut a read short
            more = os.pread(file.descriptor, size - len(content), place + len(content))
            if not more:
                raise DataError(f"{self}: ends at byte {place + len(content):,}, before {place + size:,}; "
                                "write or copy the shard again")  # fmt: skip
            content += more
        return content

    def __str__(self) -> str:
        return self.label or self.location


def is_url(text: str) -> bool:
    """Whether text is an fsspec URL (``s3://...``, ``memory://...``), not a path."""
    return "://" in text


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL and the path there. Made again in each process: few survive a fork.

    Raises:
        DataError: no such protocol, or the package for it is not installed.
    """
    import fsspec  # type: ignore[import-untyped]

    try:
        found = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise DataError(f"{url}: {' '.join(str(error).split())}") from None
    except (ValueError, OSError) as error:
        raise DataError(f"{url}: {_reason(error)}; expected a URL that fsspec knows, like s3://bucket/a.tar") from None
    return found[0], found[1]


@contextmanager
def remote_errors(url: str) -> Iterator[None]:
    """Turn whatever a remote file system raises into one line.

    Raises:
        DataError: in place of any other error.
    """
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{url}: no such file; check the URL") from None
    except Exception as error:  # each file system has its own: botocore's, aiohttp's, ...
        raise DataError(f"{url}: cannot be fetched ({_reason(error)}); check the network and the credentials") from None


class _OpenFile:
    """A descriptor that is closed when no thread reads from it any more."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


def _opened(shard: Shard) -> _OpenFile:
    file = _open.get(shard)
    if file is not None:
        return file
    path = _local_copy(shard) if is_url(shard.location) else Path(shard.location)
    try:
        file = _OpenFile(os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)))
    except OSError as error:
        raise DataError(f"{shard}: cannot be opened ({error.strerror or error}); put the shard back") from None
    actual = os.fstat(file.descriptor).st_size
    if actual != shard.num_bytes:
        raise DataError(f"{shard}: {actual:,} bytes, its index says {shard.num_bytes:,}; write or copy the shard again")
    _open[shard] = file
    while len(_open) > _OPEN_FILES:
        with suppress(StopIteration, KeyError, RuntimeError):  # another thread may be doing the same
            _open.pop(next(iter(_open)))
    return file


def _local_copy(shard: Shard) -> Path:
    """The shard in the cache folder, fetched by one process while others wait."""
    folder = cache_folder("shards")
    key = sha256(f"{shard.location}\0{shard.num_bytes}\0{shard.version}".encode()).hexdigest()
    target = folder / f"{key}.tar"
    with _locked(folder / f"{key}.lock"):
        if target.is_file() and target.stat().st_size == shard.num_bytes:
            os.utime(target)
            return target
        _make_room(folder, shard.num_bytes)
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{key}.")
        os.close(handle)
        try:
            files, path = filesystem(shard.location)
            with remote_errors(shard.location):
                files.get_file(path, temporary)
            _check_copy(shard, Path(temporary))
            Path(temporary).replace(target)
        finally:
            Path(temporary).unlink(missing_ok=True)
    return target


def _check_copy(shard: Shard, copy: Path) -> None:
    actual = copy.stat().st_size
    if actual != shard.num_bytes:
        raise DataError(f"{shard}: {actual:,} bytes, its index says {shard.num_bytes:,}; write or copy the shard again")
    if shard.version.startswith("sha256:"):
        with copy.open("rb") as file:
            digest = sha256()
            while block := file.read(1 << 20):
                digest.update(block)
        if digest.hexdigest() != shard.version.removeprefix("sha256:"):
            raise DataError(f"{shard}: its sha256 is not the one in its index; write or copy the shard again")


def _make_room(folder: Path, needed: int) -> None:
    """Remove the least recently used shards until a new one fits; a reader that has one open keeps it."""
    text = os.environ.get(_CACHE_VARIABLE) or "50"
    try:
        limit = float(text) * 1e9
    except ValueError:
        raise ConfigError(f"{_CACHE_VARIABLE}: got {text!r}, expected a number of gigabytes") from None
    kept = []
    for file in folder.glob("*.tar"):
        with suppress(OSError):  # another process may be removing it
            kept.append((file.stat().st_mtime, file.stat().st_size, file))
    total = sum(size for _, size, _ in kept) + needed
    for _, size, file in sorted(kept):
        if total <= limit:
            return
        file.unlink(missing_ok=True)
        total -= size


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # no such locks on Windows: two processes may fetch the same shard, and the last one's stays
        yield
        return
    with file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
