"""What a format's reader hands on: images with their objects as the file says them, before any image is opened."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from cmtvision.data.annotations.outlines import Outline, Points
from cmtvision.data.listing.index import Skipped

Box = tuple[float, float, float, float]
"""x, y of the top left corner, x, y of the bottom right one."""


class RawObject(NamedTuple):
    """One object as a file says it.

    ``box`` and ``polygons`` are in pixels, or in shares of the image's edges where the image's ``shares`` says so.
    ``where`` names the object in a message.
    """

    label: str
    box: Box
    where: str
    outline: Outline | None = None
    polygons: tuple[Points, ...] = ()
    crowd: bool = False
    area: float | None = None


@dataclass
class RawImage:
    """One image as a file says it: where, its name from the root, its part, the size stated for it, its objects."""

    path: Path
    relative: str
    part: str | None
    declared: tuple[int, int] | None = None
    objects: list[RawObject] = field(default_factory=list)
    shares: bool = False


@dataclass
class LeftOut:
    """Objects, or parts of them, that are not used: how many for each reason, and the first of each."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, where: str) -> None:
        """Count one, with its name."""
        self.counts[reason] += 1
        self.first.setdefault(reason, where)

    def notes(self) -> list[str]:
        """One sentence for each reason, the most frequent first."""
        return [
            f"{count:,} x {reason} (first: {self.first[reason]})"
            for reason, count in sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))
        ]


@dataclass
class RawListing:
    """All that was found: images, the order of classes if the data states one, what was left out, what to know."""

    root: Path
    format: str
    images: list[RawImage] = field(default_factory=list)
    names: list[str] | None = None
    skipped: list[Skipped] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=LeftOut)
    notes: list[str] = field(default_factory=list)
