"""The cheap part of the data check, which training makes by itself: class sizes, and files that are in two parts.

Only files of the same size as one in another part are compared: first by a checksum of their two ends, then byte by
byte. It stops after a few seconds and says how far it came. Images in shards, tables and remote stores are not files
of their own, and are not compared.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path

from cmtvision.data import DatasetIndex, Sample
from cmtvision.data.listing.split_file import checksum
from cmtvision.quality.classes import IMBALANCE, imbalance, imbalance_summary, tiny_classes, tiny_summary

SECONDS = 3.0


def quick_lines(index: DatasetIndex, seconds: float = SECONDS) -> list[str]:
    """What is wrong with a data set, one line each; none where nothing is.

    Args:
        index: the images in their parts; no image is decoded.
        seconds: at most, for comparing files.
    """
    lines = []
    shared, whole = _in_two_parts(index, seconds)
    if shared:
        first, other = shared[0]
        what = "image is" if len(shared) == 1 else "images are"
        lines.append(
            f"leakage: {len(shared):,} training {what} also held out, as the same file"
            f" ({index.relative(first)} = {index.relative(other)})"
        )
    if not whole:
        lines.append(f"leakage: not all files could be compared in {seconds:g} s; cmtvision check-data compares all")
    counts = Counter(label for sample in index.train for label in (sample.labels or (sample.label,)) if label >= 0)
    named = {name: counts[number] for number, name in enumerate(index.classes)}
    tiny = tiny_classes(named)
    if tiny:
        lines.append(tiny_summary(tiny))
    if imbalance(named) >= IMBALANCE:
        lines.append(f"imbalance: {imbalance_summary(named)}")
    return lines


def _in_two_parts(index: DatasetIndex, seconds: float) -> tuple[list[tuple[Path, Path]], bool]:
    """Training images that are also held out, each with the held-out file; and whether all files were compared."""
    until = time.monotonic() + seconds
    found: list[tuple[Path, Path]] = []
    held_out: dict[int, list[Path]] = defaultdict(list)
    for path in _files([*index.val, *index.test]):
        held_out[_size(path)].append(path)
        if time.monotonic() > until:
            return found, False
    ends: dict[int, dict[str, list[Path]]] = {}  # by size, then by the checksum of a file's two ends
    for path in _files(index.train) if held_out else ():
        if time.monotonic() > until:
            return found, False
        size = _size(path)
        if size not in held_out:
            continue
        if size not in ends:
            ends[size] = defaultdict(list)
            for other in held_out[size]:
                ends[size][checksum(other)].append(other)
        alike = [other for other in ends[size].get(checksum(path), []) if other != path]
        digest = _digest(path) if alike else None
        same = next((other for other in alike if digest and _digest(other) == digest), None)
        if same is not None:
            found.append((path, same))
    return found, True


def _files(samples: Sequence[Sample]) -> Iterator[Path]:
    return (sample.path for sample in samples if isinstance(sample.path, Path))


def _size(path: Path) -> int:
    """Bytes of a file; -1 where it is gone, which training itself says."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _digest(path: Path) -> bytes | None:
    """BLAKE2b of a file; None where it cannot be read."""
    digest = blake2b(digest_size=16)
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError:
        return None
    return digest.digest()
