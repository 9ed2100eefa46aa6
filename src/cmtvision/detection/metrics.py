"""Average precision and recall of detection and instance segmentation, as COCO defines them (Lin et al. 2014).

    AP       the mean over classes and IoU thresholds 0.50, 0.55, ..., 0.95 of the precision at 101 recalls
    AP50     at the threshold 0.50 alone, AP75 at 0.75
    AP S M L of objects below 32 x 32 pixels, below 96 x 96, and larger, by the annotated area in the original image
    AR k     the mean recall with the k most confident detections of each class in an image

The arithmetic is faster-coco-eval's, which equals pycocotools' (tests/unit/detection). What is found in an image is
kept by the image's number, so that what several processes found is merged, and the figures are those of one process to
the last bit. A class without an object has no figure and does not count in a mean.

N detections, H W the original image's height and width in pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from cmtvision.artefact.detections import Detections
from cmtvision.data import DetectionSample
from cmtvision.data.annotations.outlines import Outline, counts_to_text, encode_counts
from cmtvision.errors import ConfigError, DataError

Kind = Literal["boxes", "masks"]
MAX_DETECTIONS = 100
"""Detections of an image that count, the most confident of each class, as COCO has it."""
HIT = 0.5
"""Overlap (IoU) from which on a box is right, where a single one is judged."""
RIGHT, WRONG, IN_A_GROUP = np.int8(1), np.int8(0), np.int8(-1)
_COUNTED = (1, 10, MAX_DETECTIONS)
_ALL, _SMALL, _MEDIUM, _LARGE = range(4)  # COCO's areas


@dataclass(frozen=True)
class DetectionFigures:
    """COCO's twelve figures, each within 0 to 1 or None where no object has that size; and AP by class.

    Args:
        kind: 'boxes' or 'masks': by what an overlap is measured.
        ap, ap50, ap75, ap_small, ap_medium, ap_large: average precision.
        ar1, ar10, ar100, ar_small, ar_medium, ar_large: average recall.
        ap_by_class: of each class, None for one without an object.
        precision50, precision75: at IoU 0.50 and 0.75, the precision at the recalls 0, 0.01, ..., 1, the mean over
            classes; empty where there is no object.
        num_images, num_objects: counted; groups (crowd) are not.
    """

    kind: Kind
    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ar1: float | None
    ar10: float | None
    ar100: float | None
    ar_small: float | None
    ar_medium: float | None
    ar_large: float | None
    ap_by_class: list[float | None]
    precision50: list[float]
    precision75: list[float]
    num_images: int
    num_objects: int


def coco_library() -> tuple[Any, Any]:
    """The classes COCO and COCOeval_faster of faster-coco-eval. Raises ConfigError where it is not installed."""
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError:
        raise ConfigError("COCO figures need faster-coco-eval; pip install 'cmtvision[detection]'") from None
    return COCO, COCOeval_faster


def coco_figures(
    samples: Sequence[DetectionSample], found: Mapping[int, Detections], num_classes: int, kind: Kind = "boxes"
) -> DetectionFigures:
    """The figures of what was found.

    Args:
        samples: the images; an image's number is its place here.
        found: what was found in each of them; an image in which nothing was found has no boxes, but is there.
        num_classes: classes of the network.
        kind: 'boxes', or 'masks' where detections and images have them. An object without a mask then counts as a
            group: detections in its box are neither right nor wrong.

    Raises:
        DataError: an image without an answer, a class number out of range, no masks.
        ConfigError: faster-coco-eval is not installed.
    """
    COCO, COCOeval_faster = coco_library()  # noqa: N806  # classes
    if kind not in ("boxes", "masks"):
        raise DataError(f"kind: got {kind!r}, expected boxes or masks")
    _check(samples, found, num_classes, kind)
    truth, num_objects = _truth(samples, num_classes, kind)
    answers = [
        answer for number in range(len(samples)) for answer in _answers(number + 1, found[number], kind)
    ]  # in the order of images, whichever process saw them
    silent: dict[str, Any] = {"print_function": _nothing}
    annotated = COCO(truth, **silent)
    results = annotated.loadRes(answers) if answers else COCO({**truth, "annotations": []}, **silent)
    evaluation = COCOeval_faster(
        annotated, results, iouType="bbox" if kind == "boxes" else "segm", extra_calc=False, **silent
    )
    evaluation.params.maxDets = list(_COUNTED)
    evaluation.evaluate()
    evaluation.accumulate()
    ious, rest = len(evaluation.params.iouThrs), (num_classes, 4, len(_COUNTED))
    precision = np.asarray(evaluation.eval["precision"]).reshape(ious, -1, *rest)  # (IoU, recall, class, area, counted)
    recall = np.asarray(evaluation.eval["recall"]).reshape(ious, *rest)  # (IoU, class, area, counted)
    best = precision[..., -1]
    return DetectionFigures(
        kind=kind,
        ap=_mean(best[..., _ALL]),
        ap50=_mean(best[0, ..., _ALL]),
        ap75=_mean(best[5, ..., _ALL]),
        ap_small=_mean(best[..., _SMALL]),
        ap_medium=_mean(best[..., _MEDIUM]),
        ap_large=_mean(best[..., _LARGE]),
        ar1=_mean(recall[..., _ALL, 0]),
        ar10=_mean(recall[..., _ALL, 1]),
        ar100=_mean(recall[..., _ALL, 2]),
        ar_small=_mean(recall[..., _SMALL, 2]),
        ar_medium=_mean(recall[..., _MEDIUM, 2]),
        ar_large=_mean(recall[..., _LARGE, 2]),
        ap_by_class=[_mean(best[:, :, label, _ALL]) for label in range(num_classes)],
        precision50=_curve(best[0, ..., _ALL]),
        precision75=_curve(best[5, ..., _ALL]),
        num_images=len(samples),
        num_objects=num_objects,
    )


class OperatingPoint(NamedTuple):
    """A confidence from which on boxes are shown, and what is then shown.

    Attributes:
        score: that confidence, in hundredths.
        precision: how many of the boxes are right.
        recall: how many of the objects have a right box.
    """

    score: float
    precision: float
    recall: float


def operating_point(samples: Sequence[DetectionSample], found: Mapping[int, Detections]) -> OperatingPoint | None:
    """The confidence at which F1, the harmonic mean of precision and recall over all classes together, is highest.

    Args:
        samples: the images; an image's number is its place here.
        found: what was found in each of them.

    Returns:
        None where no box is right.
    """
    answers = [found[number] for number in range(len(samples))]
    verdicts = [judged(sample, one) for sample, one in zip(samples, answers, strict=True)]
    verdict = np.concatenate([*verdicts, np.empty(0, np.int8)])
    scores = np.concatenate([*(one.scores for one in answers), np.empty(0, np.float32)])
    num_objects = sum(int((~sample.crowd).sum()) for sample in samples)
    best, point = 0.0, None
    for score in np.arange(1, 100) / 100:
        shown = verdict[scores >= score]
        right, wrong = int((shown == RIGHT).sum()), int((shown == WRONG).sum())
        f1 = 2 * right / max(1, right + wrong + num_objects)
        if f1 > best:
            best, point = f1, OperatingPoint(float(score), right / (right + wrong), right / num_objects)
    return point


def judged(sample: DetectionSample, found: Detections) -> npt.NDArray[np.int8]:
    """(N,) of each box whether it is RIGHT, WRONG or IN_A_GROUP of its class, which is neither.

    The surest box has the first choice, and takes the object of its class that it covers best, as COCO has it.
    """
    verdict = np.full(len(found), WRONG, dtype=np.int8)
    if not len(sample.boxes):
        return verdict
    common = _common(found.boxes, sample.boxes)  # (N, objects and groups) pixels
    areas = _areas(found.boxes)[:, None]
    same = found.labels[:, None] == sample.labels
    overlap = np.where(same, common / np.maximum(areas + _areas(sample.boxes) - common, 1e-9), 0)
    grouped = (same & sample.crowd & (common >= HIT * areas)).any(axis=1)
    left = ~sample.crowd
    for place in np.argsort(-found.scores, kind="stable"):
        best = int(np.where(left, overlap[place], 0).argmax())
        if left[best] and overlap[place, best] >= HIT:
            left[best], verdict[place] = False, RIGHT
        elif grouped[place]:
            verdict[place] = IN_A_GROUP
    return verdict


def _common(ours: npt.NDArray[np.float32], theirs: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """(N, M) pixels that boxes (N, 4) and (M, 4) have in common."""
    one, other = ours.astype(np.float64)[:, None], theirs.astype(np.float64)[None]
    sides = np.minimum(one[..., 2:], other[..., 2:]) - np.maximum(one[..., :2], other[..., :2])
    common: npt.NDArray[np.float64] = np.clip(sides, 0, None).prod(axis=-1)
    return common


def _areas(boxes: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    areas: npt.NDArray[np.float64] = np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).astype(np.float64).prod(axis=-1)
    return areas


def _check(samples: Sequence[DetectionSample], found: Mapping[int, Detections], num_classes: int, kind: Kind) -> None:
    if not samples:
        raise DataError("COCO figures: no image to count; check the split")
    lacking = [number for number in range(len(samples)) if number not in found]
    if lacking or len(found) != len(samples):
        what = f"{samples[lacking[0]].path}: not looked at" if lacking else f"{len(found)} answers"
        raise DataError(f"COCO figures: {what}; every one of {len(samples):,} images needs an answer, if an empty one")
    for number, sample in enumerate(samples):
        one = found[number]
        for name, labels in (("annotated", sample.labels), ("found", one.labels)):
            if labels.size and (labels.min() < 0 or labels.max() >= num_classes):
                raise DataError(f"{sample.path}: a class {name} is {labels.max()}, expected 0 to {num_classes - 1}")
        if kind == "masks" and (one.masks is None or (len(one.masks) and one.size != sample.size)):
            size = "no masks" if one.masks is None else f"masks of {one.size[1]} x {one.size[0]} pixels"
            raise DataError(f"{sample.path}: {size} were found, expected masks of {sample.size[1]} x {sample.size[0]}")
    if kind == "masks" and not any(sample.has_mask.any() for sample in samples):
        raise DataError("COCO figures: no object has a mask; the data can only be measured by boxes")


def _truth(samples: Sequence[DetectionSample], num_classes: int, kind: Kind) -> tuple[dict[str, Any], int]:
    """The images and their objects as a COCO data set, and the number of objects that count."""
    annotations: list[dict[str, Any]] = []
    counted = 0
    for number, sample in enumerate(samples):
        for place, (box, label) in enumerate(zip(sample.boxes.tolist(), sample.labels.tolist(), strict=True)):
            x0, y0, x1, y1 = box
            outline = sample.outlines[place] if sample.outlines else None
            crowd = bool(sample.crowd[place]) or (kind == "masks" and outline is None)
            counted += not crowd
            entry = {
                "id": len(annotations) + 1, "image_id": number + 1, "category_id": label + 1, "iscrowd": int(crowd),
                "bbox": [x0, y0, x1 - x0, y1 - y0], "area": float(sample.area[place]),
            }  # fmt: skip
            if kind == "masks":
                entry["segmentation"] = {"size": list(sample.size), "counts": _runs(outline, box, sample.size)}
            annotations.append(entry)
    images = [
        {"id": number + 1, "height": sample.size[0], "width": sample.size[1]} for number, sample in enumerate(samples)
    ]
    categories = [{"id": label + 1, "name": str(label)} for label in range(num_classes)]
    return {"images": images, "annotations": annotations, "categories": categories}, counted


def _runs(outline: Outline | None, box: Sequence[float], size: tuple[int, int]) -> str:
    if outline is not None:
        kept = outline.counts if outline.counts is not None and outline.turn == 1 else encode_counts(outline.mask())
        return counts_to_text(kept)
    mask = np.zeros(size, dtype=np.bool_)
    x0, y0, x1, y1 = (round(value) for value in box)
    mask[y0:y1, x0:x1] = True
    return counts_to_text(encode_counts(mask))


def _answers(image: int, one: Detections, kind: Kind) -> list[dict[str, Any]]:
    """The detections of an image as COCO's results; of masks, faster-coco-eval computes the area from the mask."""
    out: list[dict[str, Any]] = []
    for place, (box, score, label) in enumerate(
        zip(one.boxes.tolist(), one.scores.tolist(), one.labels.tolist(), strict=True)
    ):
        entry: dict[str, Any] = {"image_id": image, "category_id": label + 1, "score": score}
        if kind == "masks" and one.masks is not None:
            entry["segmentation"] = {"size": list(one.size), "counts": one.masks[place]}
        else:
            entry["bbox"] = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
        out.append(entry)
    return out


def _mean(values: npt.NDArray[np.floating]) -> float | None:
    """The mean of those that there are: -1 is COCO's mark of a class or size without an object."""
    known = values[values > -1]
    return float(known.mean()) if known.size else None


def _curve(precision: npt.NDArray[np.floating]) -> list[float]:
    """Precision (recall, class) as the mean over the classes that have an object."""
    known = precision[:, (precision > -1).all(axis=0)]
    return [round(float(value), 5) for value in known.mean(axis=1)] if known.size else []


def _nothing(*_: object, **__: object) -> None:
    return None
