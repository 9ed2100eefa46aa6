"""Detecting what cmtvision itself wrote among the images (runs, studies, exports, shards, plots), which is never data.

``cd photos; cmtvision train .`` writes to ``photos/runs``, which would be a class of the next run.
"""

import os
from collections.abc import Iterator
from pathlib import Path

OWN = "written by cmtvision, not data"
"""The reason with which such a folder is skipped."""
FIGURE_MARK = b"Software\0cmtvision"
"""What a PNG plot of ours has among its first bytes."""
CHECK_FILES = ("left-out.csv", "check.json")
"""What the folder left-out/ of a cleaned copy (``check-data --fix``) has in it."""
_MARKS = (
    CHECK_FILES,
    ("run.json", "recipe.yaml"),
    ("tune.json", "recipe.yaml"),
    ("study.json", "recipe.yaml"),
    ("model.json", "model.safetensors"),
    ("model.json", "model.onnx"),
    ("model.json", "model.xml"),
    ("model.json", "model.pt2"),
)
"""Files of which a folder of ours has both: a run, a search, a study, an artefact, an export."""
SHARD_FORMAT = "cmtvision shards"
"""What the index.json of our shards begins with."""
_TRACES = ("comparison.json", "ablation.json", "bench.json", ".lock")
"""Files that stand alone in a folder of ours; beside photos they mean nothing."""
_DEFAULT = "runs"  # where every command writes without --out


def has_marks(folder: Path) -> bool:
    """Whether a folder is one run, study, export or set of shards of ours."""
    try:
        ours = any((folder / first).is_file() and (folder / second).is_file() for first, second in _MARKS)
        return ours or ((folder / "classes.json").is_file() and is_shard_index(folder / "index.json"))
    except OSError:  # a folder that may not be looked into is met again where its images are listed
        return False


def is_shard_index(file: Path) -> bool:
    """Whether a file is the index.json of shards that we wrote, by its first bytes."""
    return SHARD_FORMAT.encode() in _beginning(file)[:200]


def is_own(folder: Path, image_suffixes: frozenset[str]) -> bool:
    """Whether everything in a folder was written by us, so that it is not a class: our marks, or only such folders.

    A folder with images next to a run folder is a class (the run folder in it is left out), unless it is ``runs``,
    where images next to run folders can only be plots.
    """
    if has_marks(folder):
        return True
    default = folder.name == _DEFAULT
    found = False
    for file in _within(folder):
        if file.is_dir():
            found = True
            if default and file.parent == folder:
                return True
        elif file.name in _TRACES or (default and file.suffix.lower() == ".svg") or _is_figure(file):
            found = True
        elif file.suffix.lower() in image_suffixes and not file.name.startswith("."):
            return False
    return found


def _within(folder: Path) -> Iterator[Path]:
    """The files below a folder; a folder of ours is given itself instead of its content."""
    for place, folders, files in os.walk(folder):
        here = Path(place)
        ours = [name for name in folders if has_marks(here / name)]
        folders[:] = [name for name in folders if name not in ours and not name.startswith(".")]
        yield from (here / name for name in ours)
        yield from (here / name for name in files)


def _is_figure(file: Path) -> bool:
    """Whether a PNG says that it is a plot of ours."""
    return file.suffix.lower() == ".png" and FIGURE_MARK in _beginning(file)


def _beginning(file: Path) -> bytes:
    """The first bytes of a file; none if it cannot be read, or is a pipe, which would block."""
    try:
        if not file.is_file():
            return b""
        with file.open("rb") as raw:
            return raw.read(512)
    except OSError:
        return b""
