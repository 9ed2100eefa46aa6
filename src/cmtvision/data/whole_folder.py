"""Writing a folder so that it appears whole, and without ever deleting other people's files.

A new folder is filled under another name next to its destination and renamed. An existing one is filled in place
and remains the same folder: it may be a shell's current folder, a link, or a mount point.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from cmtvision.errors import DataError

Foreign = Callable[[Path], str | None]
"""What is not ours in a folder, as 'it holds x.png'; None where all of it is. It must not follow links."""


def check_target(target: Path, overwrite: bool, what: str, foreign: Foreign) -> None:
    """Refuse a folder to write to, before anything is written.

    Raises:
        DataError: a file; or a non-empty folder without ``overwrite``, or with content that is not ours.
    """
    if target.exists() and not target.is_dir():
        raise DataError(f"{target}: is a file; name a folder to write the {what} to")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not overwrite:
        raise DataError(f"{target}: the folder is not empty; choose another, or use --overwrite to write it again")
    _refuse(target, foreign(target))


def partial_folder(target: Path) -> Path:
    """The path at which to fill what becomes ``target``; on the same disk, and not created yet."""
    place = target.resolve()
    return (
        place / f".partial-{os.getpid()}" if place.is_dir() else place.with_name(f".{place.name}.partial-{os.getpid()}")
    )


def move_into_place(partial: Path, target: Path, foreign: Foreign) -> None:
    """Move the filled folder to its destination, replacing what is ours there.

    Raises:
        DataError: something that is not ours appeared meanwhile.
        OSError: it cannot be written; the previous content is restored.
    """
    place = target.resolve()
    if partial.parent != place:
        partial.replace(place)
        return
    former = partial / ".former"
    former.mkdir()
    old = [item for item in place.iterdir() if item != partial]
    new = sorted((item for item in partial.iterdir() if item != former), key=Path.is_file)  # folders, then what is read
    moved: list[tuple[Path, Path]] = []
    try:
        for item, goal in [*((item, former) for item in old), *((item, place) for item in new)]:
            item.replace(goal / item.name)
            moved.append((goal / item.name, item))
        if old:
            _refuse(target, foreign(former))  # filling takes a while: somebody may have put a file there
    except BaseException:
        for there, back in reversed(moved):
            there.replace(back)
        raise
    shutil.rmtree(partial)


def below(folder: Path, name: str = "") -> Iterator[tuple[str, Path]]:
    """Everything in a folder and below it, with its name from there, what is in a folder before the folder.

    Links are yielded and not followed.
    """
    for item in sorted((folder / name).iterdir()):
        inner = f"{name}/{item.name}" if name else item.name
        if item.is_dir() and not item.is_symlink():
            yield from below(folder, inner)
        yield inner, item


def _refuse(target: Path, found: str | None) -> None:
    if found is not None:
        raise DataError(
            f"{target}: not overwritten, since not all in it was written by cmtvision ({found}); choose another folder"
        )
