"""The report of a detector or a segmenter: figures with curves, every class, and the images with most mistakes, drawn.

The page is self-contained, as that of a classifier is; for the pictures ``write_dense_report`` looks
at the run's held-out images once more, unless training hands it what it found.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from cmtvision.artefact.card import Card
from cmtvision.artefact.dense import MIN_SCORE, DetectionPredictor, SegmentationPredictor, open_model
from cmtvision.artefact.detections import Detections
from cmtvision.artefact.run.data import check_local, read_annotated_as_the_run
from cmtvision.artefact.run.names import REPORT_FILE
from cmtvision.artefact.run.read import RunFolder, read_run
from cmtvision.data import DetectionSample, SegmentationSample, open_image
from cmtvision.data.annotations.outlines import counts_to_text, encode_counts
from cmtvision.detection.task import DETECTION, DetectionEvaluation
from cmtvision.engine.dense.task import DenseEvaluation, part_of
from cmtvision.errors import CheckpointError, DataError
from cmtvision.files import write_text
from cmtvision.report.drawn import BACKGROUND, colour_of, with_boxes, with_classes
from cmtvision.report.figures import Chart, curves, precision_recall
from cmtvision.report.folder_facts import duration
from cmtvision.report.html import render
from cmtvision.report.pictures import address
from cmtvision.segmentation.metrics import confusion_counts

PICTURES = 6
_LOOKED_AT = 200  # images of a segmentation run that are looked at for the worst
_SIDE = 420  # pixels of a picture on the page, the longer side
_SIZES = {"below 32 x 32 px": "small", "32 to 96 px": "medium", "larger": "large"}
_HIT = 0.5  # overlap (IoU) from which on a box is found


class Pictured(NamedTuple):
    """An image of the page: its name, what is wrong in words, truth and answer drawn, as data: addresses."""

    name: str
    said: str
    truth: str
    answer: str


@dataclass(frozen=True)
class Row:
    """A line of a table: its name and its values as text."""

    name: str
    values: tuple[str, ...]


def write_dense_report(
    run: str | Path,
    data: str | Path | None = None,
    device: str = "auto",
    measured: DenseEvaluation | None = None,
) -> Path:
    """Write RUN/report.html of a detector or a segmenter.

    Args:
        run: the run folder.
        data: its images; by default where they were in training. What a run's record names is never fetched.
        device: 'auto', 'cpu', 'cuda' or 'mps'.
        measured: the held-out images as training has just measured them; a detector's are not looked at again then.

    Raises:
        CheckpointError: not such a run, a model that cannot be loaded, or a page that cannot be written.
        DataError: a damaged file in the run folder, or data that was named and cannot be used.
    """
    content = read_run(run)
    card = Card.read(content.folder)
    if card.task not in ("detection", "segmentation"):
        raise CheckpointError(f"{run}: a classifier; its page is that of `cmtvision report`")
    notes: list[str] = []
    pictured: list[Pictured] = []
    where = data if data is not None else content.data
    try:
        if data is None:
            check_local(content.data)
        if isinstance(measured, DetectionEvaluation):
            pictured = _worst_detections(measured)
        else:
            predictor = open_model(content.folder, device)
            if isinstance(predictor, DetectionPredictor):  # alone: of a run's processes only the first writes the page
                pictured = _worst_detections(DETECTION.measure(predictor, content.folder, where))
            elif isinstance(predictor, SegmentationPredictor):
                pictured = _worst_maps(content, predictor, where)
    except DataError as error:
        if data is not None:
            raise
        notes.append(f"Made from the run folder alone, without its images: {error}.")
    evaluation = content.evaluation
    page = render(
        "dense.html.j2",
        run=content,
        card=card,
        task=card.task,
        data_name=Path(content.data).name or "unknown data",
        duration=duration(content),
        charts=curves(content.metrics),
        precision=_precision(evaluation),
        other_loss="",
        augmented=False,
        multi_label=False,
        headlines=_headlines(evaluation),
        tables=list(_tables(evaluation, card.classes)),
        pictured=pictured,
        legend=_legend(card) if card.task == "segmentation" and pictured else [],
        notes=notes,
    )
    path = content.folder / REPORT_FILE
    write_text(path, page)
    return path


def _precision(evaluation: dict[str, Any]) -> Chart | None:
    """Precision over recall, of boxes; None where there is no object."""
    boxes = evaluation.get("boxes")
    if not isinstance(boxes, dict) or not boxes.get("precision50"):
        return None
    return precision_recall({"overlap of 50%": boxes["precision50"], "overlap of 75%": boxes["precision75"]})


def _legend(card: Card) -> list[tuple[str, str]]:
    """(class, its colour in CSS) of a segmenter; nothing is drawn over a background."""
    return [
        (name, "#{:02x}{:02x}{:02x}".format(*colour_of(place)))
        for place, name in enumerate(card.classes)
        if name != BACKGROUND
    ]


def _headlines(evaluation: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Figures for the cards on top: name, value, and what it means."""
    named = {
        "ap": ("AP", "mean over classes and overlaps of 50% to 95%, as COCO has it"),
        "ap50": ("AP50", "a box counts from half of its area on"),
        "mask_ap": ("AP of masks", "the same by outlines"),
        "miou": ("mIoU", "intersection over union, the mean over classes"),
        "pixel_accuracy": ("Pixels right", "of all pixels that belong to a class"),
        "boundary_f1": ("Boundary F1", "edges within 2 pixels"),
    }
    found = [(name, evaluation[key], said) for key, (name, said) in named.items() if key in evaluation]
    return [(name, _percent(value), said) for name, value, said in found]


def _tables(evaluation: dict[str, Any], classes: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...], list[Row]]]:
    """(heading, columns, rows) of the tables."""
    boxes, masks = evaluation.get("boxes"), evaluation.get("masks")
    if isinstance(boxes, dict):
        kinds = {"boxes": boxes, **({"masks": masks} if isinstance(masks, dict) else {})}
        columns = tuple(f"AP of {kind}" for kind in kinds)
        by_class = zip(*(one["ap_by_class"] for one in kinds.values()), strict=True)
        rows = [Row(name, tuple(map(_percent, values))) for name, values in zip(classes, by_class, strict=True)]
        yield "Class by class", ("Class", *columns), rows
        rows = [
            Row(said, tuple(_percent(one[f"ap_{size}"]) for one in kinds.values())) for said, size in _SIZES.items()
        ]
        yield "By size of the object", ("Area", *columns), rows
    figures = evaluation.get("figures")
    if isinstance(figures, dict):
        parts = zip(classes, figures["iou"], figures["boundary_f1"], figures["pixels"], strict=True)
        rows = [Row(name, (_percent(iou), _percent(edge), f"{pixels:,}")) for name, iou, edge, pixels in parts]
        yield "Class by class", ("Class", "IoU", "Boundary F1", "Pixels"), rows
        by_size = figures.get("right_by_size") or []
        rows = [Row(said, (_percent(share),)) for said, share in zip(_SIZES, by_size, strict=False)]
        if rows:
            yield "By size of the region", ("Area", "Pixels right"), rows


def _percent(value: float | None) -> str:
    return "n/a" if value is None or not math.isfinite(value) else f"{value:.1%}"


def _worst_detections(found: DetectionEvaluation) -> list[Pictured]:
    """The held-out images with most objects missed and boxes that are none."""
    judged = []
    for place, sample in enumerate(found.samples):
        answer = found.found[place].above(MIN_SCORE)
        missed, wrong = _mistakes(sample, answer)
        judged.append((missed + wrong, missed, wrong, sample, answer))
    judged.sort(key=lambda one: -one[0])
    pictured = []
    for total, missed, wrong, sample, answer in judged[:PICTURES]:
        if not total:
            break
        picture = open_image(sample.path)
        truth = with_boxes(picture, _as_found(sample), found.classes, scores=False)
        drawn = with_boxes(picture, answer, found.classes)
        said = f"{missed} of {len(sample.boxes)} objects missed, {wrong} boxes that are none"
        pictured.append(Pictured(sample.path.name, said, _small(truth), _small(drawn)))
    return pictured


def _mistakes(sample: DetectionSample, answer: Detections) -> tuple[int, int]:
    """Objects that no box of their class covers by half, and boxes that cover no object of theirs; groups are left."""
    open_ = {place for place in range(len(sample.boxes)) if not sample.crowd[place]}
    wrong = 0
    for box, label in zip(answer.boxes, answer.labels, strict=True):
        overlaps = {place: _overlap(box, sample.boxes[place]) for place in open_ if sample.labels[place] == label}
        best = max(overlaps, key=overlaps.__getitem__, default=None)
        if best is not None and overlaps[best] >= _HIT:
            open_.discard(best)
        else:
            wrong += 1
    return len(open_), wrong


def _overlap(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> float:
    low, high = np.maximum(one[:2], other[:2]), np.minimum(one[2:], other[2:])
    common = float(np.prod(np.clip(high - low, 0, None)))
    areas = float(np.prod(one[2:] - one[:2]) + np.prod(other[2:] - other[:2]))
    return common / max(areas - common, 1e-9)


def _as_found(sample: DetectionSample) -> Detections:
    """The annotated objects as if they had been found."""
    masks = None
    if sample.has_mask.any():
        masks = tuple(counts_to_text(encode_counts(mask)) for mask in sample.masks())
    sure = np.ones(len(sample.boxes), np.float32)
    return Detections(sample.boxes, sure, sample.labels, masks, sample.size if masks is not None else (0, 0))


def _worst_maps(run: RunFolder, predictor: SegmentationPredictor, data: str | Path) -> list[Pictured]:
    """Of some held-out images those with the largest share of wrong pixels."""
    index = read_annotated_as_the_run(run.folder, data, predictor.card)
    samples, _ = part_of(index, "val")
    chosen: list[SegmentationSample] = samples[:: max(1, len(samples) // _LOOKED_AT)][:_LOOKED_AT]
    judged = []
    for sample in chosen:
        truth, answer = sample.mask.read(), predictor.predict(sample.path)[0]
        counts = confusion_counts(truth, answer, len(predictor.classes), sample.void)
        right = float(np.trace(counts)) / max(1, int(counts.sum()))
        judged.append((right, sample, truth, answer))
    judged.sort(key=lambda one: one[0])
    pictured = []
    for right, sample, truth, answer in judged[:PICTURES]:
        picture = open_image(sample.path)
        shown = np.where(truth == sample.void, len(predictor.classes), truth)
        pictured.append(
            Pictured(
                sample.path.name,
                f"{right:.1%} of the pixels right",
                _small(with_classes(picture, shown, predictor.classes)),
                _small(with_classes(picture, answer, predictor.classes)),
            )
        )
    return pictured


def _small(picture: Image.Image) -> str:
    picture.thumbnail((_SIDE, _SIDE))
    return address(picture)
