"""What reading annotations gives: one plain structure for detection, one for segmentation, and one index for both.

N objects of an image, H W its height and width in pixels, upright (see ``orientation``).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from os.path import relpath
from pathlib import Path
from typing import Generic, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from cmtvision.data.annotations.limits import MAX_MASK_BYTES
from cmtvision.data.annotations.outlines import Outline
from cmtvision.data.listing.index import Skipped
from cmtvision.errors import DataError

ClassMap: TypeAlias = npt.NDArray[np.int32]  # (H, W) class numbers, and the void value
NO_CLASS = 255
"""The usual void value of a mask: pixels that belong to no class, which neither training nor a figure counts."""
BACKGROUND = "background"


@dataclass(frozen=True, slots=True, eq=False)
class DetectionSample:
    """One image and the objects in it.

    Args:
        path: of the image.
        size: (height, width) of the upright image in pixels.
        boxes: (N, 4) float32: x, y of the top left corner, x, y of the bottom right one, in pixels of the upright
            image, within it, each with an area; (0, 0) is the image's corner, so a box is x1 - x0 pixels wide.
        labels: (N,) int64 class numbers.
        crowd: (N,) bool: the box is a group of objects that nobody separated. Training leaves it out, and evaluation
            counts detections in it neither right nor wrong.
        area: (N,) float32 pixels that the object covers: as annotated, else of its outline, else of its box.
        outlines: N outlines, None for an object without one; () where the data set has none.
    """

    path: Path
    size: tuple[int, int]
    boxes: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    crowd: npt.NDArray[np.bool_]
    area: npt.NDArray[np.float32]
    outlines: tuple[Outline | None, ...] = ()

    @property
    def has_mask(self) -> npt.NDArray[np.bool_]:
        """Which objects have an outline, (N,)."""
        if not self.outlines:
            return np.zeros(len(self.boxes), dtype=np.bool_)
        return np.array([outline is not None for outline in self.outlines], dtype=np.bool_)

    def masks(self) -> npt.NDArray[np.bool_]:
        """The objects' masks (N, H, W), decoded now; all False for an object without an outline.

        Raises:
            DataError: together they would fill the memory.
        """
        height, width = self.size
        if len(self.boxes) * height * width > MAX_MASK_BYTES:
            raise DataError(
                f"{self.path}: {len(self.boxes):,} masks of {width} x {height} pixels need more than "
                f"{MAX_MASK_BYTES:,} bytes; shrink the image, or leave it out"
            )
        out = np.zeros((len(self.boxes), height, width), dtype=np.bool_)
        for place, outline in enumerate(self.outlines):
            if outline is not None:
                out[place] = outline.mask()
        return out


class MaskSource(Protocol):
    """Where the class of each pixel comes from; small and picklable."""

    def read(self) -> ClassMap:
        """The class numbers (H, W) of the upright image. DataError if it cannot be read."""

    def key(self) -> bytes:
        """Bytes that are equal for equal masks, for a fingerprint."""


@dataclass(frozen=True, slots=True, eq=False)
class SegmentationSample:
    """One image and the class of each of its pixels.

    Args:
        path: of the image.
        size: (height, width) of the upright image in pixels.
        mask: reads the class numbers, (H, W) int32.
        void: the number of pixels that belong to no class.
        labels: the classes that are in the mask, or of the outlines that it is drawn from, sorted; () where nobody has
            looked.
    """

    path: Path
    size: tuple[int, int]
    mask: MaskSource
    void: int = NO_CLASS
    labels: tuple[int, ...] = ()


Sample = TypeVar("Sample", bound=DetectionSample | SegmentationSample)


@dataclass(frozen=True)
class AnnotationIndex(Generic[Sample]):
    """An annotated data set's images.

    Args:
        root: the folder that relative paths start from.
        format: 'coco', 'yolo', 'voc' or 'masks'.
        classes: class names; a label is a position in this list. For segmentation the background, if there is one, is a
            class like the others.
        train, val, test: images to train on, held out for choices, and set apart for one final measurement; sorted by
            name.
        skipped: images that are left out, sorted, and why.
        fingerprint: sha256 over the sorted relative names, file sizes, and annotations of all usable images.
        split_source: 'folders' where the data says what is held out, 'seeded' where we chose, else 'none'.
        source: what to read to get the same data again.
        notes: what a user should know, one sentence each: boxes left out, images without one, rotations.
        void: for segmentation, the number of pixels that belong to no class; None for detection.
    """

    root: Path
    format: str
    classes: list[str]
    train: list[Sample]
    val: list[Sample]
    test: list[Sample]
    skipped: list[Skipped]
    fingerprint: str
    split_source: str
    source: str = field(default="", compare=False)
    notes: list[str] = field(default_factory=list, compare=False)
    void: int | None = None

    @property
    def samples(self) -> list[Sample]:
        """All parts together, sorted by path."""
        return sorted([*self.train, *self.val, *self.test], key=lambda sample: sample.path)

    @property
    def has_masks(self) -> bool:
        """Whether a training image has an object with an outline; for segmentation always."""
        return any(isinstance(one, SegmentationSample) or bool(one.has_mask.any()) for one in self.train)

    @property
    def skipped_counts(self) -> dict[str, int]:
        """How many images were skipped for each reason, the most frequent first."""
        return dict(Counter(item.reason for item in self.skipped).most_common())

    def class_counts(self) -> dict[str, tuple[int, int]]:
        """For each class (train, val): boxes for detection, images for segmentation."""
        train, val = _counts(self.train), _counts(self.val)
        return {name: (train[label], val[label]) for label, name in enumerate(self.classes)}

    def relative(self, path: Path) -> str:
        """An image's path from the root, with forward slashes."""
        return Path(relpath(path, self.root)).as_posix()


DetectionIndex: TypeAlias = AnnotationIndex[DetectionSample]
SegmentationIndex: TypeAlias = AnnotationIndex[SegmentationSample]


def _counts(samples: Sequence[DetectionSample | SegmentationSample]) -> Counter[int]:
    return Counter(int(label) for sample in samples for label in sample.labels)
