"""Predictors of the tasks that are about places in an image: detectors and segmenters, from image to answer.

B batch, C channels, H W height and width in pixels, K classes, N findings.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from cmtvision.artefact.card import DENSE, Card, Task, model_folder
from cmtvision.artefact.dense_graphs import open_graph
from cmtvision.artefact.detections import Detections, detections
from cmtvision.artefact.files import artefact_of
from cmtvision.artefact.predictor import Predictor, load_card, read_named_card
from cmtvision.artefact.runtimes.open import check_options
from cmtvision.artefact.runtimes.torch import pick_device, set_threads
from cmtvision.data import ImageSource
from cmtvision.data.decode import each_image
from cmtvision.data.whole_image import WholeImage, original_boxes
from cmtvision.errors import CheckpointError, ConfigError

MASK_LEVEL = 0.5
"""Probability from which on a pixel belongs to an object."""
MIN_SCORE = 0.5
"""Confidence from which on a person is shown a finding, where the card knows no better one."""
MIN_SCORE_FIGURE = "min_score"
"""The figure of a card that is a better one: F1 on the held-out images was highest with it."""
LEAST_WINDOW = 32
OVERLAP = 0.5
"""Share of a window that it has in common with the next."""


class _DensePredictor:
    """What detectors and segmenters have in common: images are prepared whole, and looked at one by one.

    Attributes:
        card: all that is known of the model but its weights.
        inputs: how an image becomes the network's input.
        network: the ``Detector`` or ``Segmenter``, or a graph that behaves like one.
        device: that its tensors are on.
    """

    task: Task

    def __init__(self, card: Card, network: Any, device: str = "cpu") -> None:
        _check_task(card, self.task, "this")
        self.card, self.classes = card, card.classes
        self.inputs = WholeImage(card.preprocess, *card.sides, None if card.export is None else card.export.img_size)
        self.device = torch.device(device)
        self.network = network

    def inputs_for(self, window: int | None) -> WholeImage:
        """How an image becomes the network's input: as usual, or at its own size to be looked at in windows.

        Raises:
            ConfigError: windows that are too small, or larger than the only size that an export takes.
        """
        if window is None:
            return self.inputs
        most = None if self.card.export is None else min(self.card.export.img_size)
        if window < LEAST_WINDOW or (most is not None and window > most):
            room = f"at least {LEAST_WINDOW} pixels"
            room = room if most is None else f"{LEAST_WINDOW} to {most} pixels, which this export takes"
            raise ConfigError(f"window: got {window}, expected {room}")
        return replace(self.inputs, short_side=None, longest=None, fit=None)

    @classmethod
    def open(cls, path: str | Path, device: str = "auto", threads: int | None = None) -> Self:
        """Open a run folder, an artefact or an export.

        Raises:
            CheckpointError: nothing there that this version can open, or a model of another task.
            ConfigError: a runtime that is not installed, or a device that is not there.
        """
        folder, card = model_folder(path), read_named_card(path)
        _check_task(card, cls.task, path)
        if card.export is None:
            set_threads(threads)
            device = pick_device(device)
            return cls(card, artefact_of(card, folder).model.eval().to(device), device)
        return cls(card, open_graph(folder, card, device, threads))  # it takes and gives tensors of the processor


def _check_task(card: Card, wanted: Task, where: object) -> None:
    if card.task != wanted:
        kind, command = f"a model for {card.task}", card.command
        if card.task not in DENSE:
            kind, command = "a classifier", "cmtvision predict"
        raise CheckpointError(f"{where}: {kind}, not a model for {wanted}; use `{command}` with it")


class DetectionPredictor(_DensePredictor):
    """Finds objects in images: a trained detector, opened by ``cmtvision.load``."""

    task: Task = "detection"

    @property
    def min_score(self) -> float:
        """Confidence from which on findings are shown unless the caller says otherwise."""
        known = self.card.metrics.get(MIN_SCORE_FIGURE)
        return known if isinstance(known, float) and 0 <= known <= 1 else MIN_SCORE

    def predict(self, images: ImageSource | Iterable[ImageSource], min_score: float | None = None) -> list[Detections]:
        """What is in each image, the surest first; see ``stream``."""
        return list(self.stream(images, min_score))

    def stream(
        self, images: ImageSource | Iterable[ImageSource], min_score: float | None = None
    ) -> Iterator[Detections]:
        """What is in one image after another.

        Args:
            images: as ``Predictor.predict`` takes them.
            min_score: findings that the network is less sure of are left out; ``self.min_score`` where None.

        Raises:
            ConfigError: no such confidence.
            DataError: an image that cannot be read, by name.
        """
        min_score = self.min_score if min_score is None else min_score
        if not 0 <= min_score <= 1:
            raise ConfigError(f"min_score: got {min_score}, expected a confidence from 0 to 1")
        for one in each_image(images):
            prepared = self.inputs(one)
            image = torch.from_numpy(prepared.image).to(self.device)
            yield find(self.network, image, prepared.scale, prepared.original, min_score).above(min_score)


class SegmentationPredictor(_DensePredictor):
    """Says of each pixel of an image which class it is: a trained segmenter, opened by ``cmtvision.load``."""

    task: Task = "segmentation"

    def predict(
        self, images: ImageSource | Iterable[ImageSource], window: int | None = None
    ) -> list[npt.NDArray[np.int64]]:
        """The class numbers (H, W) of each image; see ``stream``."""
        return list(self.stream(images, window))

    def stream(
        self, images: ImageSource | Iterable[ImageSource], window: int | None = None
    ) -> Iterator[npt.NDArray[np.int64]]:
        """The class numbers (H, W) of one image after another.

        Args:
            images: as ``Predictor.predict`` takes them.
            window: see ``class_map``; the image is then not resized.

        Raises:
            ConfigError: a window that does not fit.
            DataError: an image that cannot be read, by name.
        """
        inputs = self.inputs_for(window)
        for one in each_image(images):
            prepared = inputs(one)
            image = torch.from_numpy(prepared.image).to(self.device)
            yield class_map(self.network, image, prepared.original, window)


AnyPredictor = Predictor | DetectionPredictor | SegmentationPredictor


def open_model(
    path: str | Path,
    device: str = "auto",
    threads: int | None = None,
    streams: int | None = None,
    plain: bool = False,
) -> AnyPredictor:
    """Open a model for prediction, whatever its task: a run folder, an artefact, an export, a bundle.

    Args:
        path: the folder, or the model's file in it.
        device, threads, streams: see ``cmtvision.artefact.runtimes.open.open_runtime``.
        plain: compute a classifier's run as it was trained, layer by layer, not in the fastest form that gives the same
            numbers to 1e-5 of the largest (see ``cmtvision.artefact.runtimes.fast``). Detectors and segmenters always
            are.

    Returns:
        A ``Predictor`` of a classifier, a ``DetectionPredictor`` or a ``SegmentationPredictor``.

    Raises:
        CheckpointError: nothing there that this version can open.
        ConfigError: a runtime that is not installed, a device that is not there, or an option that it does not have.
    """
    folder = model_folder(path)
    card = read_named_card(path)
    kinds: dict[Task, type[DetectionPredictor] | type[SegmentationPredictor]] = {
        "detection": DetectionPredictor,
        "segmentation": SegmentationPredictor,
    }
    if card.task not in kinds:
        return load_card(card, folder, device, threads, streams, plain)
    check_options(card, threads, streams)
    return kinds[card.task].open(path, device, threads)


def find(
    detector: Any,
    image: torch.Tensor,
    scale: tuple[float, float],
    original: tuple[int, int],
    min_score: float = 0.0,
) -> Detections:
    """What a detector in eval mode finds in one image.

    Args:
        detector: a ``Detector``, or a graph that behaves like one.
        image: (C, H, W), prepared, on its device.
        scale: (x, y) pixels of it for each of the original's.
        original: (height, width) of the original image.
        min_score: findings that the network is less sure of are left out.
    """
    with torch.inference_mode():
        answer = detector([image])[0]
        sure = ~(answer["scores"] < min_score)  # what is no number stays, for the check below
        answer = {name: values[sure] for name, values in answer.items()}
    boxes = original_boxes(answer["boxes"].float().cpu().numpy(), scale, original)
    scores, labels = answer["scores"].float().cpu().numpy(), answer["labels"].cpu().numpy()
    masks = None if "masks" not in answer else _masks(answer["masks"].float().cpu(), original)
    return detections(boxes, scores, labels, masks)


def _masks(masks: torch.Tensor, original: tuple[int, int]) -> Iterator[npt.NDArray[np.bool_]]:
    """Probabilities (N, 1, H, W) of the input's pixels as masks (height, width) of the original's, one by one."""
    for mask in masks:
        whole = F.interpolate(mask[None], size=original, mode="bilinear", align_corners=False)[0, 0]
        yield (whole >= MASK_LEVEL).numpy()


def class_map(
    segmenter: Any, image: torch.Tensor, original: tuple[int, int], window: int | None = None
) -> npt.NDArray[np.int64]:
    """The class of each pixel, (height, width) of the original image.

    Args:
        segmenter: a ``Segmenter`` in eval mode, or a graph that behaves like one.
        image: (C, H, W), prepared, on its device; of the original's size where it is looked at in windows.
        original: (height, width) of the original image.
        window: pixels on a side of the windows that an image is looked at in, whose probabilities are averaged where
            they overlap; None for the whole image at once.
    """
    with torch.inference_mode():
        if window is not None:
            return _in_windows(segmenter, image, window)
        scores = _scores(segmenter, image)
        found = np.empty(original, dtype=np.int64)
        # rows of the original in turn: K maps of a large photo in floats would fill the memory
        rows = max(1, 4_000_000 // (original[1] * scores.shape[0]))
        for start in range(0, original[0], rows):
            found[start : start + rows] = _resized(scores, original, start, min(rows, original[0] - start))
    return found


def _scores(segmenter: Any, image: torch.Tensor) -> torch.Tensor:
    """Probabilities (K, H, W)."""
    probabilities: torch.Tensor = segmenter(image[None])[0].float().softmax(dim=0)
    return probabilities


def _in_windows(segmenter: Any, image: torch.Tensor, window: int) -> npt.NDArray[np.int64]:
    """The classes (H, W) of an image (C, H, W). Only the rows of one window after another have scores in memory."""
    height, width = image.shape[1:]
    found = np.empty((height, width), dtype=np.int64)
    tops = _starts(height, window)
    # sums, whose largest is that of the averages
    scores = torch.zeros(segmenter.num_classes, min(window, height), width, device=image.device)
    for top, following in zip(tops, [*tops[1:], height], strict=True):
        for left in _starts(width, window):
            part = image[:, top : top + window, left : left + window]
            scores[:, :, left : left + window] += _scores(segmenter, part)
        done = following - top  # rows that no later window sees
        found[top:following] = scores[:, :done].argmax(dim=0).cpu().numpy()
        scores = torch.cat([scores[:, done:], torch.zeros_like(scores[:, :done])], dim=1)
    return found


def _starts(length: int, window: int) -> list[int]:
    """Where windows begin: evenly, the first at one end, the last at the other."""
    if length <= window:
        return [0]
    count = -(-(length - window) // max(1, round(window * (1 - OVERLAP)))) + 1
    return [round(place * (length - window) / (count - 1)) for place in range(count)]


def _resized(scores: torch.Tensor, original: tuple[int, int], start: int, rows: int) -> npt.NDArray[np.int64]:
    """The classes of some rows of the original, its scores interpolated between the input's pixel centres."""
    height, width = scores.shape[1:]
    if (height, width) == original:
        best: npt.NDArray[np.int64] = scores[:, start : start + rows].argmax(dim=0).cpu().numpy()
        return best
    y = (torch.arange(start, start + rows, device=scores.device) + 0.5) * 2 / original[0] - 1
    x = (torch.arange(original[1], device=scores.device) + 0.5) * 2 / original[1] - 1
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)  # (rows, columns, 2)
    sampled = F.grid_sample(scores[None], grid[None], padding_mode="border", align_corners=False)[0]
    resized: npt.NDArray[np.int64] = sampled.argmax(dim=0).cpu().numpy()
    return resized
