"""The report of a detector or a segmenter: figures with curves, every class, and the images with most mistakes, drawn.

The page is self-contained, as that of a classifier is. ``write_dense_report`` measures the run's images once more,
unless training hands it what it found.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from cmtvision.artefact.card import DENSE, Card
from cmtvision.artefact.dense import MIN_SCORE, SegmentationPredictor
from cmtvision.artefact.detections import Detections
from cmtvision.artefact.run.data import check_local, limits_of
from cmtvision.artefact.run.names import REPORT_FILE
from cmtvision.artefact.run.read import read_run
from cmtvision.data import DetectionSample, SegmentationSample, open_image
from cmtvision.data.annotations.outlines import counts_to_text, encode_counts
from cmtvision.data.annotations.samples import BACKGROUND
from cmtvision.detection.metrics import RIGHT, WRONG, judged
from cmtvision.detection.task import DETECTION, DetectionEvaluation
from cmtvision.engine.dense.task import DenseEvaluation, DenseTask
from cmtvision.engine.evaluation.evaluate import Split
from cmtvision.errors import CheckpointError, ConfigError, DataError
from cmtvision.files import write_text
from cmtvision.report.drawn import colour_of, with_boxes, with_classes
from cmtvision.report.evaluated import Stage, silent
from cmtvision.report.figures import Chart, curves, precision_recall
from cmtvision.report.folder_facts import duration
from cmtvision.report.html import render
from cmtvision.report.pictures import address
from cmtvision.report.whole_page import WholeReport
from cmtvision.segmentation.metrics import confusion_counts
from cmtvision.segmentation.task import SEGMENTATION

PICTURES = 6
_LOOKED_AT = 200  # images of a segmentation run that are looked at for the worst
_SIDE = 420  # pixels of a picture on the page, the longer side
Opened = Callable[[Path], Image.Image]
_SIZES = {"below 32 x 32 px": "small", "32 to 96 px": "medium", "larger": "large"}


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
    split: Split = "val",
    *,
    out: Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    measured: DenseEvaluation | None = None,
    stage: Stage = silent,
) -> WholeReport:
    """Write the report of a detector or a segmenter.

    Args:
        run: the run folder.
        data: its images; by default where they were in training. What a run's record names is never fetched.
        split: which of them.
        out: the page; by default RUN/report.html, which is replaced, as it always is made from the run.
        overwrite: replace that file, too.
        device: 'auto', 'cpu', 'cuda' or 'mps'.
        measured: the held-out images as training has just measured them, which are then not measured again.
        stage: gives a progress callback for each long piece of work, by its name.

    Raises:
        CheckpointError: not such a run, a model that cannot be loaded, or a page that cannot be written.
        ConfigError: a file that is there already and was named.
        DataError: a damaged file in the run folder, or data that was named and cannot be used.
    """
    if out is not None and out.exists() and not overwrite:
        raise ConfigError(f"{out}: already exists; choose another name, or use --overwrite")
    content = read_run(run)
    card = Card.read(content.folder)
    if card.task not in DENSE:
        raise CheckpointError(f"{run}: a classifier; its page is that of `cmtvision report`")
    notes: list[str] = []
    pictured: list[Pictured] = []
    where = data if data is not None else content.data
    try:
        if measured is None:
            if data is None:
                check_local(content.data)
            task: DenseTask = DETECTION if card.task == "detection" else SEGMENTATION
            with stage("predicting") as progress:  # alone: of a run's processes only the first writes the page
                measured = task.measure(
                    task.predictor.open(content.folder, device), content.folder, where, split, progress=progress
                )
        limits = limits_of(content.folder)

        def opened(path: Path) -> Image.Image:
            return open_image(path, *limits)

        if isinstance(measured, DetectionEvaluation):
            pictured = _worst_detections(measured, opened)
        else:
            pictured = _worst_maps(measured.samples, SegmentationPredictor.open(content.folder, device), opened)
    except DataError as error:
        if data is not None:
            raise
        notes.append(f"Made from the run folder alone, without its images: {error}.")
    evaluation = content.evaluation if measured is None else measured.to_dict()
    page = render(
        "dense.html.j2",
        run=content,
        card=card,
        task=card.task,
        data_name=Path(where).name or "unknown data",
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
    path = out or content.folder / REPORT_FILE
    write_text(path, page)
    return WholeReport(path, None, notes, evaluation)


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
    which = {"val": "Held-out ", "train": "Training ", "test": "Test "}.get(evaluation.get("split", "val"), "")
    named = {
        "ap": ("AP", "mean over classes and overlaps of 50% to 95%, as COCO has it"),
        "ap50": ("AP50", "a box counts from half of its area on"),
        "mask_ap": ("AP of masks", "the same by outlines"),
        "miou": ("mIoU", "intersection over union, the mean over classes"),
        "pixel_accuracy": ("pixels right", "of all pixels that belong to a class"),
        "boundary_f1": ("boundary F1", "edges within 2 pixels"),
    }
    found = [(name, evaluation[key], said) for key, (name, said) in named.items() if key in evaluation]
    tiles = [(_capital(which + name), _percent(value), said) for name, value, said in found]
    point = evaluation.get("operating_point")
    if isinstance(point, dict):
        said = (
            f"{_percent(point['precision'])} of these boxes are right, {_percent(point['recall'])} of objects are found"
        )
        tiles.append(("Confidence from which F1 is best", f"{point['score']:.0%}", said))
    return tiles


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


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


def _worst_detections(found: DetectionEvaluation, opened: Opened) -> list[Pictured]:
    """The images with most objects missed and wrong boxes, of those that a person is shown."""
    shown_from = MIN_SCORE if found.point is None else found.point.score
    judgements = []
    for place, sample in enumerate(found.samples):
        answer = found.found[place].above(shown_from)
        verdict = judged(sample, answer)
        missed, wrong = int((~sample.crowd).sum() - (verdict == RIGHT).sum()), int((verdict == WRONG).sum())
        judgements.append((missed + wrong, missed, wrong, sample, answer))
    judgements.sort(key=lambda one: -one[0])
    pictured = []
    for total, missed, wrong, sample, answer in judgements[:PICTURES]:
        if not total:
            break
        picture = opened(sample.path)
        truth = with_boxes(picture, _as_found(sample), found.classes, scores=False)
        drawn = with_boxes(picture, answer, found.classes)
        boxes = "1 wrong box" if wrong == 1 else f"{wrong} wrong boxes"
        said = f"{missed} of {int((~sample.crowd).sum())} objects missed, {boxes}"
        pictured.append(Pictured(sample.path.name, said, _small(truth), _small(drawn)))
    return pictured


def _as_found(sample: DetectionSample) -> Detections:
    """The annotated objects as if they had been found."""
    masks = None
    if sample.has_mask.any():
        masks = tuple(counts_to_text(encode_counts(mask)) for mask in sample.masks())
    sure = np.ones(len(sample.boxes), np.float32)
    return Detections(sample.boxes, sure, sample.labels, masks, sample.size if masks is not None else (0, 0))


def _worst_maps(
    samples: Sequence[SegmentationSample], predictor: SegmentationPredictor, opened: Opened
) -> list[Pictured]:
    """Of some images those with the largest share of wrong pixels."""
    chosen = samples[:: max(1, len(samples) // _LOOKED_AT)][:_LOOKED_AT]
    judged = []
    for sample in chosen:
        truth, answer = sample.mask.read(), predictor.predict(opened(sample.path))[0]
        counts = confusion_counts(truth, answer, len(predictor.classes), sample.void)
        right = float(np.trace(counts)) / max(1, int(counts.sum()))
        judged.append((right, sample, truth, answer))
    judged.sort(key=lambda one: one[0])
    pictured = []
    for right, sample, truth, answer in judged[:PICTURES]:
        picture = opened(sample.path)
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
