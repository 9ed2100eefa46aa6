"""Which images are trained on and which are held out: the parts' names in data, and our own choice by seed.

A data set has up to three parts: ``train``, ``val`` (evaluated during training, for choices) and ``test`` (measured
once, at the end). Folders, tables, shards and other libraries' data sets use the same names for them, in any case.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Any

from cmtvision.errors import DataError

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Word -> the part that it means."""
_HASHES = 2**64


def part_named(word: str) -> str | None:
    """'train', 'val' or 'test' if a whole word means one of them, else None."""
    return SPLIT_WORDS.get(re.sub(r"[ _-]?(set|data|images|imgs)$", "", word.strip().lower()))


def part_of_file(name: str) -> str | None:
    """The part that a file's name begins with (``validation-00000-of-00003.parquet``), or None."""
    return part_named(_first_word(name))


def parts_of(names: Iterable[str], where: str, of_files: bool = False) -> dict[str, str]:
    """The names that mean a part, each with its part.

    Args:
        names: of folders, or of another library's splits.
        where: the beginning of an error message.
        of_files: the names are file names, of which only the first word counts, and many may share it.

    Raises:
        DataError: two words for one part, which is ambiguous.
    """
    found: dict[str, str] = {}
    words: dict[str, str] = {}
    for name in sorted(names):
        part = part_of_file(name) if of_files else part_named(name)
        if part is None:
            continue
        word = _first_word(name) if of_files else name
        before = words.setdefault(part, word)
        if before != word:
            raise DataError(
                f"{where}: {before} and {word} both mean the {long_name(part)} part; keep one, or rename it"
            )
        found[name] = part
    return found


def split_word(word: object, where: str) -> str | None:
    """A split column's value as 'train', 'val', 'test', or None if it is empty. DataError for another."""
    word = "" if word is None else str(word).strip()  # a table may hold numbers
    part = part_named(word)
    if word and part is None:
        raise DataError(f"{where}: split {word!r}, expected train, val or test")
    return part


def long_name(part: str) -> str:
    """The name of a part in a sentence."""
    return {"train": "training", "val": "validation"}.get(part, part)


def held_out(names: Sequence[str], labels: Sequence[tuple[Any, ...]], val_fraction: float, seed: int) -> list[bool]:
    """Which images to hold out; each is decided by its own name, so that an image added later moves no other.

    An image is held out if sha256("seed:name"), its first 8 bytes as a share of 2^64, is below ``val_fraction``. Of a
    class with n images about val_fraction * n are then held out, though not exactly that number.

    The one exception keeps every class with two images or more in both parts. Where that rule would hold out no image
    of a class, the one with the lowest share is held out; where it would hold out all, the one with the highest is
    kept. That image, and no other, may move when a class grows. The only image of a class is never held out.

    Args:
        names: of the images; with the seed they decide which.
        labels: the classes of each, by name or number; an image of several counts for the rarest of them.
        val_fraction: 0 holds out nothing.
        seed: decides which.
    """
    hashes = [_hash(f"{seed}:{name}") for name in names]
    chosen = [value < val_fraction * _HASHES for value in hashes]
    if not val_fraction:
        return chosen
    counts = Counter(label for found in labels for label in found)
    by_class: dict[Any, list[int]] = {}
    for place, found in enumerate(labels):
        rarest = min(found, key=lambda label: (counts[label], label), default=None)
        by_class.setdefault(rarest, []).append(place)
    for places in by_class.values():
        out = sum(chosen[place] for place in places)
        if out == len(places):
            chosen[max(places, key=lambda place: (hashes[place], names[place]))] = False
        elif out == 0 and len(places) > 1:
            chosen[min(places, key=lambda place: (hashes[place], names[place]))] = True
    return chosen


def _hash(text: str) -> int:
    return int.from_bytes(sha256(text.encode(errors="surrogateescape")).digest()[:8], "big")


def _first_word(name: str) -> str:
    return re.split(r"[^A-Za-z]", name, maxsplit=1)[0]
