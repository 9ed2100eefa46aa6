"""Finding the shards that a path or URL means, and the images in them.

``cmtvision shard`` writes index.json next to its shards; it is trusted, since every image was verified when it was
written. Shards of other writers are scanned once, and the result is kept in the user's cache folder under their
address, size and date.
"""

import json
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from cmtvision.data.listing.class_folders import Entry, Listing, class_folders, settle_splits
from cmtvision.data.listing.index import Skipped
from cmtvision.data.listing.labels import resolve
from cmtvision.data.listing.own_folders import SHARD_FORMAT, is_shard_index
from cmtvision.data.listing.splits import part_named
from cmtvision.data.photos import StoredPhoto
from cmtvision.data.shards.shard_names import expand, join, parent, part_of, read_small, shards_in
from cmtvision.data.shards.shard_reader import Shard, filesystem, is_url, remote_errors
from cmtvision.data.shards.tar_scan import ScannedShard, scan_tar
from cmtvision.data.user_cache import cache_folder
from cmtvision.errors import DataError

INDEX_FILE = "index.json"
CLASSES_FILE = "classes.json"
VERSION = 1
_SCAN = 2  # of what is kept of a shard without an index
MAX_INDEX_BYTES = 4_000_000_000


class _Found(NamedTuple):
    """A shard with what is in it; ``part`` is train, val, test or None."""

    shard: Shard
    part: str | None
    content: ScannedShard


def is_shards(path: Path) -> bool:
    """Whether a local path means shards: a .tar, or a folder with .tar files in it or in its train/, val/ or test/.

    A folder with class folders is not shards, and a .tar in it is ignored, unless our own index.json
    says that the folder contains shards.
    """
    if not path.is_dir():
        return re.search(r"\.(tar(\.\w+)?|tgz)$", path.name) is not None
    if is_shard_index(path / INDEX_FILE):
        return True
    found = any(path.glob("*.tar")) or any(part_named(tar.parent.name) for tar in path.glob("*/*.tar"))
    return found and not class_folders(path)


def list_shards(
    source: str,
    *,
    multi_label: bool,
    fixed: Sequence[str] | None,
    label_column: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Listing:
    """The images of shards.

    Args:
        source: a folder of shards, one shard, or a pattern with braces; a path or an fsspec URL.
        multi_label: an image may have several classes.
        fixed: a trained model's classes.
        label_column: the key of the label in .json files of other writers.
        progress: called as progress(done, total) while shards of other writers are scanned.

    Raises:
        DataError: no shards there, one that is cut off or has no labels, an index that does not fit.
    """
    files = expand(source)
    folder = source if files is None else parent(files[0])
    index = _index_above(folder, source if files is None else None)
    if index is not None:
        return _from_index(*index, None if files is None else set(files), source, multi_label)
    stray: list[str] = []
    if files is None:
        parts, stray = shards_in(source)
    else:
        parts = [(file, part_of(file)) for file in files]
    if not parts:
        raise DataError(f"{source}: no shards found; expected .tar files, or train/, val/ and test/ with .tar files")
    names = _declared_classes(folder)
    found = []
    with ThreadPoolExecutor(8) as pool:  # an object store is slow to answer, and answers many at a time
        for one in pool.map(lambda pair: _scanned(pair[0], pair[1], label_column), parts):
            found.append(one)
            if progress is not None:
                progress(len(found), len(parts))
    places = [one.content.names[i] for one in found for i in range(len(one.content.names))]
    raw = [label for one in found for label in one.content.labels]
    labels, order = resolve(raw, places, names=names, fixed=fixed, multi_label=multi_label, source=source)
    listing = Listing(names=order, trusted=True)
    listing.skipped += [Skipped(Path(file), "next to folders of shards, not part of them") for file in stray]
    # Names don't depend on where the shards are, so that their split doesn't either.
    folders = [one.shard.location.split("/")[:-1] for one in found]
    depth = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, zip(*folders, strict=False)))
    rest = iter(labels)
    for one in found:
        short = "/".join(one.shard.location.split("/")[depth:])
        for name, offset, size in zip(*one.content[:3], strict=True):
            photo = StoredPhoto(one.shard, f"{short}/{name}", offset, size)
            listing.entries.append(Entry(photo, photo.name, next(rest), one.part))
    _settle(listing, source)
    return listing


def _settle(listing: Listing, source: str) -> None:
    if any(entry.split in ("val", "test") for entry in listing.entries):
        settle_splits(listing, source, "folders")
    else:
        listing.entries = [entry._replace(split=None) for entry in listing.entries]


def _from_index(file: str, index: dict[str, Any], only: set[str] | None, source: str, multi_label: bool) -> Listing:
    """The images that our own index.json lists, in the shards that were asked for."""
    folder = parent(file)
    if index["multi_label"] and not multi_label:
        raise DataError(f"{source}: photos with several labels; set data.multi_label=true")
    names: list[str] = index["classes"]
    listing = Listing(names=names, trusted=True)
    for one in index["shards"]:
        location = join(folder, one["file"])
        if only is not None and location not in only:
            continue
        if not is_url(location):
            _check_local(Path(location), one["size"])
        shard = Shard(location, one["size"], f"sha256:{one['sha256']}")
        for name, offset, size, label in zip(one["names"], one["offsets"], one["sizes"], one["labels"], strict=True):
            numbers = label if index["multi_label"] else [label]
            if any(not isinstance(number, int) or not 0 <= number < len(names) for number in numbers):
                raise DataError(f"{shard}: label {label} of {name} is outside the {len(names)} classes "
                                f"(0 to {len(names) - 1}); write the shards again")  # fmt: skip
            labels = tuple(sorted(names[number] for number in numbers))
            listing.entries.append(Entry(StoredPhoto(shard, name, offset, size), name, labels, one["part"]))
    _settle(listing, source)
    if not listing.entries:
        raise DataError(f"{source}: {file} does not list these shards; give the folder of the index, or move it away")
    return listing


def _check_local(file: Path, size: int) -> None:
    if not file.is_file():
        raise DataError(f"{file}: the shard is missing; put it back or write the shards again")
    actual = file.stat().st_size
    if actual != size:
        raise DataError(f"{file}: {actual:,} bytes, its index says {size:,}; write or copy the shard again")


def _index_above(folder: str, asked: str | None) -> tuple[str, dict[str, Any]] | None:
    """Our index.json in a folder or the one above it (shards are in train/, val/ and test/), or None."""
    for place in [folder] if asked is not None else [folder, parent(folder)]:
        file = join(place, INDEX_FILE)
        text = read_small(file, MAX_INDEX_BYTES)
        if text is not None and SHARD_FORMAT.encode() in text[:200]:
            return file, _checked_index(file, text)
    return None


def _checked_index(file: str, text: bytes) -> dict[str, Any]:
    wrong = f"{file}: not a whole index of cmtvision shard; write the shards again"
    try:
        index = json.loads(text)
        if index["version"] != VERSION:
            raise DataError(f"{file}: version {index['version']} of the index, this cmtvision knows {VERSION}; update")
        if not all(isinstance(name, str) for name in index["classes"]) or not isinstance(index["multi_label"], bool):
            raise DataError(wrong)
        for one in index["shards"]:
            if not re.fullmatch(r"((train|val|test)/)?[0-9A-Za-z_-]+\.tar", one["file"]):
                raise DataError(f"{file}: {one['file']!r} is not the name of a shard here; write the shards again")
            columns = [one[key] for key in ("names", "offsets", "sizes", "labels")]
            whole = all(isinstance(number, int) and number >= 0 for key in ("offsets", "sizes") for number in one[key])
            if len(set(map(len, columns))) != 1 or not whole or not isinstance(one["size"], int):
                raise DataError(wrong)
            if not isinstance(one["sha256"], str) or one["part"] not in ("train", "val", "test", None):
                raise DataError(wrong)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DataError(wrong) from None
    return dict(index)


def shard_files(file: str) -> list[str]:
    """The shards that an index.json of ours names; none if it is missing or not ours.

    Raises:
        DataError: it is ours, but not whole.
    """
    text = read_small(file, MAX_INDEX_BYTES)
    if text is None or SHARD_FORMAT.encode() not in text[:200]:
        return []
    return [one["file"] for one in _checked_index(file, text)["shards"]]


def _declared_classes(folder: str) -> list[str] | None:
    """Class names in order from a classes.json next to shards of another writer, where there is one."""
    text = read_small(join(folder, CLASSES_FILE), 100_000_000)
    if text is None:
        return None
    try:
        names = json.loads(text)
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{join(folder, CLASSES_FILE)}: expected a JSON list of class names")
    return names


def _scanned(file: str, part: str | None, label_column: str | None) -> _Found:
    """A shard with its content, from the cache folder if it was scanned before."""
    if is_url(file):
        files, path = filesystem(file)
        with remote_errors(file):
            info = files.info(path)
            num_bytes, version = int(info["size"]), str(files.ukey(path))
    else:
        try:
            status = Path(file).stat()
        except OSError as error:
            raise DataError(f"{file}: cannot be read ({error.strerror or error})") from None
        num_bytes, version = status.st_size, str(status.st_mtime_ns)
    shard = Shard(file, num_bytes, version)
    key = sha256(json.dumps([_SCAN, file, num_bytes, version, label_column]).encode()).hexdigest()
    kept = cache_folder("shard_indices") / f"{key}.json"
    try:
        return _Found(shard, part, ScannedShard(*json.loads(kept.read_text(encoding="utf-8"))))
    except (OSError, ValueError, TypeError):
        pass  # not scanned before, or the record was cut off: scan
    if is_url(file):
        with remote_errors(file), files.open(path, "rb") as opened:
            content = scan_tar(opened, num_bytes, file, label_column)
    else:
        with Path(file).open("rb") as opened:
            content = scan_tar(opened, num_bytes, file, label_column)
    partial = kept.with_suffix(f".{os.getpid()}.partial")
    with suppress(OSError):  # a full disk costs another scan next time, no more
        partial.write_text(json.dumps(content), encoding="utf-8")
        partial.replace(kept)
    return _Found(shard, part, content)
