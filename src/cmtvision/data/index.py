"""What reading a data set gives: its classes, its samples in two parts, what was left out and why."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from os.path import relpath
from pathlib import Path
from typing import NamedTuple

from cmtvision.data.photos import PhotoPath, StoredPhoto


class Sample(NamedTuple):
    """One photo: where it is, the number of its class, and where a photo may have several classes, all of them.

    ``labels`` is empty in data with one class a photo. Where photos may have several, it holds them sorted, and
    ``label`` is the first of them, or -1 for a photo of no class.
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
    """A data set's photos.

    Args:
        root: the folder that relative paths start from; of data that is not in a folder here, its source as a path.
        classes: class names; a label is a position in this list.
        train, val: what is learned from, and what is held out to choose by; sorted by name.
        skipped: files left out, sorted.
        fingerprint: sha256 over the sorted relative names, file sizes in bytes and class names of all usable photos.
        split_source: 'folders' or 'csv' where the data says what is held out ('csv' means any table), 'seeded' where we
            chose, 'run' where the photos are a run's and in the parts that it had them in, 'none' where nothing is held
            out.
        multi_label: a photo may have several classes, or none; see ``Sample.labels``.
        source: what to give ``read_dataset`` to read the same data again, wherever the current folder is.
        test: photos that the data sets apart to be measured on once, sorted by name; training never looks at them.
        notes: what a person should know of how the photos were put into their parts, a sentence each.
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
        """Photos of each class as (train, val); a photo of several classes counts in each."""
        train, val = self._counts(self.train), self._counts(self.val)
        return {name: (train[label], val[label]) for label, name in enumerate(self.classes)}

    def relative(self, path: PhotoPath) -> str:
        """A photo's path from the root, or its name in its store, with forward slashes."""
        return path.name if isinstance(path, StoredPhoto) else Path(relpath(path, self.root)).as_posix()

    def _counts(self, samples: Sequence[Sample]) -> Counter[int]:
        if self.multi_label:
            return Counter(label for sample in samples for label in sample.labels)
        return Counter(sample.label for sample in samples)


def group_numbers(samples: Sequence[Sample]) -> list[int] | None:
    """The shard of each photo as a number, for ``EpochSampler(groups=...)``; None where photos lie in no shards."""
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
    """A name as text that any file can hold: its bytes that are no UTF-8 (lone surrogates in Python) as ``\\udcXX``."""
    return _SPELLED.sub(r"\\u005cu\1", name).encode("utf-8", "backslashreplace").decode("utf-8")


def from_spelled(text: str) -> str:
    """The name that ``as_text`` spelled so."""
    return _SPELLED.sub(lambda found: chr(int(found[1], 16)), text)
