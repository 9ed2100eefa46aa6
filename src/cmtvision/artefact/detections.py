"""What a detector finds in an image.

N detections, H W the original image's height and width in pixels.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cmtvision.data.annotations.outlines import counts_to_text, encode_counts
from cmtvision.errors import DataError


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Detections:
    """What was found in one image, in pixels of the upright original image; small, and picklable.

    Args:
        boxes: (N, 4) float32 x, y, x, y.
        scores: (N,) float32 confidences.
        labels: (N,) int64 class numbers.
        masks: N masks as COCO's compressed run lengths; None where none were asked for.
        size: (height, width) of the masks' image; (0, 0) where there is none.
    """

    boxes: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    masks: tuple[str, ...] | None = None
    size: tuple[int, int] = (0, 0)

    def __repr__(self) -> str:
        return f"Detections({len(self)}{'' if self.masks is None else ', with masks'})"

    def __len__(self) -> int:
        return len(self.boxes)

    def above(self, score: float) -> "Detections":
        """Those with a score of at least ``score``, the surest first."""
        order = np.argsort(-self.scores, kind="stable")
        kept = order[self.scores[order] >= score]
        masks = None if self.masks is None else tuple(self.masks[place] for place in kept)
        return Detections(self.boxes[kept], self.scores[kept], self.labels[kept], masks, self.size)


def detections(
    boxes: npt.ArrayLike,
    scores: npt.ArrayLike,
    labels: npt.ArrayLike,
    masks: Iterable[npt.NDArray[np.bool_]] | None = None,
) -> Detections:
    """What was found in one image, checked and made small.

    Args:
        boxes: (N, 4) x, y, x, y in pixels of the upright original image.
        scores: (N,) confidences.
        labels: (N,) class numbers.
        masks: N of (H, W) bool, in the original image; taken one by one, as a hundred of a large photo fill the memory.

    Raises:
        DataError: shapes that do not belong together, numbers that are not finite.
    """
    corners = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
    confidence, classes = np.asarray(scores, dtype=np.float32), np.asarray(labels, dtype=np.int64)
    if confidence.shape != (len(corners),) or classes.shape != (len(corners),):
        raise DataError(
            f"detections: boxes {corners.shape}, scores {confidence.shape} and labels {classes.shape}, expected "
            "(N, 4), (N,) and (N,)"
        )
    if not (np.isfinite(corners).all() and np.isfinite(confidence).all()):
        raise DataError("detections: a box or score is not a finite number; the network diverged")
    if masks is None:
        return Detections(corners, confidence, classes)
    size, text = (0, 0), list[str]()
    for mask in masks:
        if mask.ndim != 2 or (text and mask.shape != size):
            raise DataError(f"detections: a mask {mask.shape}, expected (H, W), the same for all")
        size = (mask.shape[0], mask.shape[1])
        text.append(counts_to_text(encode_counts(mask.astype(np.bool_))))
    if len(text) != len(corners):
        raise DataError(f"detections: {len(text)} masks of {len(corners)} boxes")
    return Detections(corners, confidence, classes, tuple(text), size)


def merged(parts: Iterable[Mapping[int, Detections]]) -> dict[int, Detections]:
    """What several processes found, by the image's number, in the order of numbers.

    An image that several looked at (padding of the last batch) counts once, as the first of them saw it.
    """
    found: dict[int, Detections] = {}
    for part in parts:
        for number, one in part.items():
            found.setdefault(number, one)
    return dict(sorted(found.items()))
