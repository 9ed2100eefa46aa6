"""Figures of semantic segmentation, from integer counts: those of several processes or images are added, exactly.

    counts[t, p]  pixels of true class t that were taken for p           pixels that are void in truth are not counted
    IoU(k)        counts[k, k] / (row sum + column sum - counts[k, k])   Everingham et al. 2010
    mIoU          the mean of IoU(k) over the classes that occur in truth or prediction
    BF(k)         2 P R / (P + R) of the boundaries of class k, P the share of predicted boundary pixels with a true one
                  within a tolerance, R the share of true ones with a predicted one             Csurka et al. 2013
    right by size share of the true pixels that are right in small, medium and large regions; a region is what hangs
                  together of one class in one image, its size the limits of COCO's objects

We differ from Csurka in one thing: P and R are shares of the boundary pixels of all images together, not means over
images, so that the figure depends on nothing but counts.

H W height and width in pixels, K classes.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cmtvision.errors import DataError

Classes = npt.NDArray[np.integer]  # (H, W) class numbers, or void
Counts = npt.NDArray[np.int64]
TOLERANCE = 2
"""Pixels by which a boundary may be off, as the straight distance, at the image's original size."""
SIZES = (32**2, 96**2)
"""Pixels from which on a region is medium, and large."""


@dataclass(frozen=True, eq=False)
class SegmentationCounts:
    """Everything that the figures need; ``a + b`` counts the images of both.

    Args:
        confusion: (K, K) int64, pixels of each true class by the class predicted.
        boundary: (K, 4) int64: predicted boundary pixels that are right, all predicted ones, true ones that were found,
            all true ones.
        regions: (3, 2) int64: right pixels and all pixels of the small, medium and large regions.
        tolerance: pixels by which a boundary may be off.
    """

    confusion: Counts
    boundary: Counts
    regions: Counts
    tolerance: int = TOLERANCE

    def __add__(self, other: "SegmentationCounts") -> "SegmentationCounts":
        if self.tolerance != other.tolerance or self.confusion.shape != other.confusion.shape:
            raise DataError("segmentation counts: of other classes or another tolerance; count both the same way")
        return SegmentationCounts(
            self.confusion + other.confusion,
            self.boundary + other.boundary,
            self.regions + other.regions,
            self.tolerance,
        )


@dataclass(frozen=True)
class SegmentationFigures:
    """The figures of a set of images; None where there is nothing to divide by.

    Args:
        mean_iou, mean_boundary_f1: over the classes that occur.
        pixel_accuracy: share of the pixels that are not void.
        iou, boundary_f1: by class, None for a class that neither is there nor was predicted.
        pixels: true pixels of each class.
        right_by_size: share of the pixels that are right in small, medium and large regions.
        tolerance: of the boundaries, in pixels.
    """

    mean_iou: float | None
    pixel_accuracy: float | None
    mean_boundary_f1: float | None
    iou: list[float | None]
    boundary_f1: list[float | None]
    pixels: list[int]
    right_by_size: list[float | None]
    tolerance: int


def count(
    truth: Classes, predicted: Classes, num_classes: int, void: int, tolerance: int = TOLERANCE
) -> SegmentationCounts:
    """The counts of one image.

    Args:
        truth: (H, W) class numbers 0 to K - 1, or void.
        predicted: (H, W) class numbers 0 to K - 1.
        num_classes: K.
        void: the number of pixels that belong to no class.
        tolerance: pixels by which a boundary may be off.

    Raises:
        DataError: maps of different sizes, numbers that are no class.
    """
    return SegmentationCounts(
        confusion_counts(truth, predicted, num_classes, void),
        boundary_counts(truth, predicted, num_classes, void, tolerance),
        region_counts(truth, predicted, num_classes, void),
        tolerance,
    )


def no_counts(num_classes: int, tolerance: int = TOLERANCE) -> SegmentationCounts:
    """The counts of no image."""
    return SegmentationCounts(
        np.zeros((num_classes, num_classes), dtype=np.int64),
        np.zeros((num_classes, 4), dtype=np.int64),
        np.zeros((len(SIZES) + 1, 2), dtype=np.int64),
        tolerance,
    )


def confusion_counts(truth: Classes, predicted: Classes, num_classes: int, void: int) -> Counts:
    """Pixels of each true class by the class predicted, (K, K); arguments as for ``count``."""
    _check(truth, predicted, num_classes, void)
    counted = truth != void
    pairs = truth[counted].astype(np.int64) * num_classes + predicted[counted].astype(np.int64)
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes).astype(np.int64)


def boundary_counts(truth: Classes, predicted: Classes, num_classes: int, void: int, tolerance: int) -> Counts:
    """Boundary pixels of each class, (K, 4); see ``SegmentationCounts``, and ``count`` for the arguments.

    A boundary pixel of a class has one of another class beside it, above or below. The image's edge is no boundary,
    nor is that between a class and void; void pixels are no boundary of the prediction either.
    """
    from scipy.ndimage import distance_transform_edt

    _check(truth, predicted, num_classes, void)
    counted = truth != void
    true_edges, predicted_edges = _edges(truth, void), _edges(predicted, void) & counted
    out = np.zeros((num_classes, 4), dtype=np.int64)
    for label in np.union1d(truth[true_edges], predicted[predicted_edges]).tolist():
        true, found = true_edges & (truth == label), predicted_edges & (predicted == label)
        out[label, 1], out[label, 3] = found.sum(), true.sum()
        if out[label, 1] and out[label, 3]:
            out[label, 0] = (distance_transform_edt(~true)[found] <= tolerance).sum()
            out[label, 2] = (distance_transform_edt(~found)[true] <= tolerance).sum()
    return out


def region_counts(truth: Classes, predicted: Classes, num_classes: int, void: int) -> Counts:
    """Right pixels and all pixels of the small, medium and large regions, (3, 2); arguments as for ``count``.

    Pixels hang together that are beside, above or below each other.
    """
    from scipy.ndimage import label

    _check(truth, predicted, num_classes, void)
    out = np.zeros((len(SIZES) + 1, 2), dtype=np.int64)
    right = truth == predicted
    for number in np.unique(truth[truth != void]).tolist():
        regions, _ = label(truth == number)
        areas = np.bincount(regions.ravel())
        hits = np.bincount(regions[right], minlength=len(areas))
        sizes = np.digitize(areas[1:], SIZES)  # region 0 is everything else
        np.add.at(out, sizes, np.stack([hits[1:], areas[1:]], axis=1))
    return out


def figures(counts: SegmentationCounts) -> SegmentationFigures:
    """The figures of counts."""
    confusion = counts.confusion
    right = np.diag(confusion)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - right
    iou = [_share(int(hit), int(whole)) for hit, whole in zip(right, union, strict=True)]
    boundary: list[float | None] = []
    for row in counts.boundary.tolist():
        precision, recall = _share(row[0], row[1]), _share(row[2], row[3])
        if precision is None and recall is None:
            boundary.append(None)
        else:  # one of them has no boundary at all: nothing of the other's is right
            both = (precision or 0.0) + (recall or 0.0)
            boundary.append(2 * (precision or 0.0) * (recall or 0.0) / both if both else 0.0)
    return SegmentationFigures(
        mean_iou=_mean(iou),
        pixel_accuracy=_share(int(right.sum()), int(confusion.sum())),
        mean_boundary_f1=_mean(boundary),
        iou=iou,
        boundary_f1=boundary,
        pixels=confusion.sum(axis=1).tolist(),
        right_by_size=[_share(hit, whole) for hit, whole in counts.regions.tolist()],
        tolerance=counts.tolerance,
    )


def _edges(classes: Classes, void: int) -> npt.NDArray[np.bool_]:
    """Pixels (H, W) beside one of another class; neither of the two is void."""
    out = np.zeros(classes.shape, dtype=np.bool_)
    known = classes != void
    across = (classes[:, 1:] != classes[:, :-1]) & known[:, 1:] & known[:, :-1]
    down = (classes[1:] != classes[:-1]) & known[1:] & known[:-1]
    out[:, 1:] |= across
    out[:, :-1] |= across
    out[1:] |= down
    out[:-1] |= down
    return out


def _check(truth: Classes, predicted: Classes, num_classes: int, void: int) -> None:
    if truth.ndim != 2 or truth.shape != predicted.shape:
        raise DataError(f"segmentation: truth {truth.shape} and prediction {predicted.shape}, expected both (H, W)")
    for name, classes in (("truth", truth[truth != void]), ("prediction", predicted)):
        if classes.size and (classes.min() < 0 or classes.max() >= num_classes):
            raise DataError(
                f"segmentation: {name} has numbers from {classes.min()} to {classes.max()}, expected 0 to "
                f"{num_classes - 1}" + (f", or void ({void})" if name == "truth" else "")
            )


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
