"""The result of reading a data set: its classes, its samples in two parts, what was left out and why."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from os.path import relpath
from pathlib import Path
from typing import NamedTuple

from cmtvision.data.photos import PhotoPath, StoredPhoto


class Sample(NamedTuple):
    """One image: where it is, the number of its class, and where an image may have several classes, all of them.

    ``labels`` is empty in data with one class per image. Where images may have several, it holds them sorted, and
    ``label`` is the first of them, or -1 for an image of no class.
    """

    path: PhotoPath
    label: int
    labels: tuple[int, ...] = ()


class Skipped(NamedTuple):
    """A file that is not used, and why."""

    path: PhotoPath
    reason: str


@dataclass(frozen=True)
class DatasetIndex:
    """A data set's images.

    Args:
        root: the folder that relative paths start from; of data that is not in a folder here, its source as a path.
        classes: class names; a label is a position in this list.
        train, val: the training images, and the images held out for choices; sorted by name.
        skipped: files left out, sorted.
        fingerprint: sha256 over the sorted relative names, file sizes in bytes and class names of all usable images.
        split_source: 'folders' or 'csv' where the data says what is held out ('csv' means any table), 'seeded' where we
            chose, 'run' where the images are a run's and in the parts the run had them in, 'none' where nothing is held
            out.
        multi_label: an image may have several classes, or none; see ``Sample.labels``.
        source: what to give ``read_dataset`` to read the same data again, wherever the current folder is.
        test: images that the data sets apart for one final measurement, sorted by name; training never reads them.
        notes: what a user should know about the assignment of images to parts, one sentence each.
    """

    root: Path
    classes: list[str]
    train: list[Sample]
    val: list[Sample]
    skipped: list[Skipped]
    fingerprint: str
    split_source: str
    multi_label: bool = False
    source: str = field(default="", compare=False)
    test: list[Sample] = field(default_factory=list)
    notes: list[str] = field(default_factory=list, compare=False)

    @property
    def samples(self) -> list[Sample]:
        """All parts together, sorted by name."""
        return sorted([*self.train, *self.val, *self.test])

    @property
    def skipped_counts(self) -> dict[str, int]:
        """How many files were skipped for each reason, the most frequent first."""
        return dict(Counter(item.reason for item in self.skipped).most_common())

    def class_counts(self) -> dict[str, tuple[int, int]]:
        """Images of each class as (train, val); an image of several classes counts in each."""
        train, val = self._counts(self.train), self._counts(self.val)
        return {name: (train[label], val[label]) for label, name in enumerate(self.classes)}

    def relative(self, path: PhotoPath) -> str:
        """An image's path from the root, or its name in its store, with forward slashes."""
        return path.name if isinstance(path, StoredPhoto) else Path(relpath(path, self.root)).as_posix()

    def _counts(self, samples: Sequence[Sample]) -> Counter[int]:
        if self.multi_label:
            return Counter(label for sample in samples for label in sample.labels)
        return Counter(sample.label for sample in samples)


def group_numbers(samples: Sequence[Sample]) -> list[int] | None:
    """The shard of each image as a number, for ``EpochSampler(groups=...)``; None where images are not in shards."""
    number: dict[str, int] = {}
    groups = []
    for sample in samples:
        store = getattr(sample.path, "store", None)
        if not getattr(store, "sequential", False):
            return None
        groups.append(number.setdefault(str(store), len(number)))
    return groups


_SPELLED = re.compile(r"\\u(dc[89a-f][0-9a-f]|005c)")


def as_text(name: str) -> str:
    """A name as text for any file: its bytes that are not UTF-8 (lone surrogates in Python) as ``\\udcXX``."""
    return _SPELLED.sub(r"\\u005cu\1", name).encode("utf-8", "backslashreplace").decode("utf-8")


def from_spelled(text: str) -> str:
    """The inverse of ``as_text``."""
    return _SPELLED.sub(lambda found: chr(int(found[1], 16)), text)
