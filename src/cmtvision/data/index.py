"""What reading a data set gives: its classes, its samples in two parts, what was left out and why."""

from collections import Counter
from dataclasses import dataclass
from os.path import relpath
from pathlib import Path
from typing import NamedTuple


class Sample(NamedTuple):
    """One photo: its file and the number of its class."""

    path: Path
    label: int


class Skipped(NamedTuple):
    """A file that is not used, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class DatasetIndex:
    """A data set's photos.

    Args:
        root: the folder that relative paths start from.
        classes: class names; a label is a position in this list.
        train, val: the two parts, sorted by path.
        skipped: files left out, sorted.
        fingerprint: sha256 over the sorted relative paths, file sizes in bytes and class names of all usable photos.
        split_source: 'folders' or 'csv' where the data says what is held out, 'seeded' where we chose, 'none' where
            nothing is held out.
    """

    root: Path
    classes: list[str]
    train: list[Sample]
    val: list[Sample]
    skipped: list[Skipped]
    fingerprint: str
    split_source: str

    @property
    def samples(self) -> list[Sample]:
        """Both parts together, sorted by path."""
        return sorted([*self.train, *self.val])

    @property
    def skipped_counts(self) -> dict[str, int]:
        """How many files were skipped for each reason, the most frequent first."""
        return dict(Counter(item.reason for item in self.skipped).most_common())

    def class_counts(self) -> dict[str, tuple[int, int]]:
        """Photos of each class as (train, val)."""
        train = Counter(sample.label for sample in self.train)
        val = Counter(sample.label for sample in self.val)
        return {name: (train[label], val[label]) for label, name in enumerate(self.classes)}

    def relative(self, path: Path) -> str:
        """A photo's path from the root, with forward slashes."""
        return Path(relpath(path, self.root)).as_posix()
