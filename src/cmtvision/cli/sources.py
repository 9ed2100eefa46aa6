"""The images to predict: files, folders, globs and standard input, one after another."""

import glob
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from cmtvision.errors import DataError

STDIN = "-"
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ")


class Source(NamedTuple):
    """An image to predict: its name, and its file, its bytes, or the error."""

    name: str
    content: Path | bytes | DataError


def find_images(words: Sequence[str]) -> Iterable[Source]:
    """Every image named by the given words, in their order; those of a folder in the order of their names.

    A word without an image gives a source whose content is the error, so that the others continue. They are a list,
    unless standard input is among the words, which may be a person, or a pipe that never ends.
    """
    found = (source for word in words for source in (_from_stdin() if word == STDIN else _from_word(word)))
    return found if STDIN in words else list(found)


def peeked(sources: Iterable[Source]) -> tuple[Source, Iterable[Source]]:
    """The first of some sources, and all of them."""
    if isinstance(sources, list):
        return sources[0], sources
    others = iter(sources)
    first = next(others)
    return first, chain([first], others)


def is_image(head: bytes) -> bool:
    """Whether bytes begin like an image file."""
    if head.startswith(_SIGNATURES):
        return True
    boxed = (head[:4] == b"RIFF" and head[8:12] == b"WEBP") or head[4:12] == b"ftypavif"
    return boxed or (head[:2] == b"BM" and b"\0" in head[2:16])


def _from_word(word: str) -> Iterator[Source]:
    from cmtvision.data.listing.class_folders import images_below

    path = Path(word)
    if not word:  # an unset variable, not the current folder
        yield Source(word, DataError("an empty word in the place of an image; name a file or a folder"))
    elif path.is_dir():
        inside = images_below(path)
        if not inside:
            yield Source(word, DataError(f"{path}: no image in this folder or below it"))
        yield from (Source(str(file), file) for file in inside)
    elif not path.exists() and glob.has_magic(word):
        matches = sorted(filter(os.path.isfile, glob.glob(word, recursive=True)))  # noqa: PTH207  # absolute ones too
        if not matches:
            yield Source(word, DataError(f"{word}: no file matches"))
        yield from (Source(match, Path(match)) for match in matches)
    else:
        yield Source(word, path)  # a missing file is named when its turn comes, and the others continue


def _from_stdin() -> Iterator[Source]:
    from cmtvision.data import MAX_BYTES

    if sys.stdin is None:  # closed by whoever started us
        yield Source("standard input", DataError("standard input: closed; pipe in an image, or one path a line"))
        return
    stream = sys.stdin.buffer
    head: bytes = stream.peek(16) if hasattr(stream, "peek") else b""
    if is_image(head):
        content = stream.read(MAX_BYTES + 1)
        yield Source("standard input", content)
        return
    found = False
    for number, line in enumerate(stream, start=1):
        if b"\0" in line:
            reason = f"standard input: line {number} is not a path, and the input is not an image of a known kind"
            yield Source("standard input", DataError(reason))
            return
        word = os.fsdecode(line.rstrip(b"\r\n"))
        if word:
            found = True
            yield Source(word, Path(word))
    if not found:
        yield Source("standard input", DataError("standard input: empty; pipe in an image, or one path a line"))
