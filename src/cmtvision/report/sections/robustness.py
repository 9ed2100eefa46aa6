"""Robustness: accuracy on pictures that noise, blur, weather or software has spoiled, fifteen kinds at five severities.

Measured on a random part of the images: each costs 75 forward passes. A corruption is applied to what the network sees,
after resize and crop, as ImageNet-C does. N images.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from cmtvision.artefact import Predictor
from cmtvision.data.corruptions import CORRUPTIONS, SEVERITIES, Corruption, corrupted
from cmtvision.data.photos import PhotoPath
from cmtvision.errors import DataError
from cmtvision.report.answers import Answers, joined
from cmtvision.report.intervals import Interval, mean_interval
from cmtvision.report.pictures import address

NUM_IMAGES = 500
SHOWN_SEVERITY = 3
_BATCH = 64
_SHOWN_SIDE = 96  # pixels
Progress = Callable[[int, int], None]


class Harm(NamedTuple):
    """One corruption: its name and family, accuracy at severities 1 to 5, their mean, and an example of severity 3."""

    name: str
    family: str
    accuracy: list[float]
    mean: float
    picture: str


class Robustness(NamedTuple):
    """The section.

    Attributes:
        num_images: N, how many were looked at.
        clean: accuracy on them clean.
        mean: accuracy over all corruptions and severities, with its interval over the images.
        rows: one for each corruption.
        families: the mean of each family.
        note: a sentence where something is missing, else ''.
    """

    num_images: int
    clean: float
    mean: Interval | None
    rows: list[Harm]
    families: list[tuple[str, float]]
    note: str = ""


def robustness(
    answers: Answers,
    predictor: Predictor,
    num_images: int = NUM_IMAGES,
    progress: Progress | None = None,
    seed: int = 0,
) -> Robustness:
    """Measure it on at most ``num_images`` of the images, chosen at random by the seed."""
    preprocess = predictor.preprocess
    if preprocess.channels not in (1, 3):
        return Robustness(0, 0.0, None, [], [], "Corruptions are defined for images of 1 or 3 channels only.")
    order = np.random.default_rng(seed).permutation(len(answers))[:num_images]
    pixels, places = _read(predictor, [answers.paths[i] for i in order.tolist()])
    if not pixels:
        return Robustness(0, 0.0, None, [], [], "None of the chosen images can be read any more.")
    chosen = order[places]
    truth = [answers.true[i] for i in chosen.tolist()]
    total = len(CORRUPTIONS) * len(SEVERITIES)
    right = np.zeros((len(CORRUPTIONS), len(SEVERITIES), len(pixels)), bool)
    for kind, corruption in enumerate(CORRUPTIONS):
        for level, severity in enumerate(SEVERITIES):
            right[kind, level] = _right(predictor, pixels, truth, corruption, severity, seed)
            if progress is not None:
                progress(kind * len(SEVERITIES) + level + 1, total)
    shown = _colour(pixels[0])
    rows = [
        Harm(
            corruption.name,
            corruption.family,
            right[kind].mean(axis=1).tolist(),
            float(right[kind].mean()),
            _picture(corrupted(shown, corruption, SHOWN_SEVERITY, _generator(seed, 0, kind, SHOWN_SEVERITY))),
        )
        for kind, corruption in enumerate(CORRUPTIONS)
    ]
    families = {row.family: [other.mean for other in rows if other.family == row.family] for row in rows}
    means = [(family, float(np.mean(values))) for family, values in families.items()]
    # an image's harmed copies are no images of their own: the interval is over images
    interval = mean_interval(right.mean(axis=(0, 1)))
    return Robustness(len(pixels), float(answers.right[chosen].mean()), interval, rows, means)


def _read(predictor: Predictor, paths: Sequence[PhotoPath]) -> tuple[list[npt.NDArray[np.uint8]], list[int]]:
    pixels, places = [], []
    for place, path in enumerate(paths):
        try:
            pixels.append(predictor.preprocess.prepare(path))
        except DataError:  # moved while we were looking
            continue
        places.append(place)
    return pixels, places


def _right(
    predictor: Predictor,
    pixels: list[npt.NDArray[np.uint8]],
    truth: list[str],
    corruption: Corruption,
    severity: int,
    seed: int,
) -> npt.NDArray[np.bool_]:
    """Whether each image is recognised with a corruption, (N,)."""
    finish, gray = predictor.inputs.finish, predictor.preprocess.channels == 1
    kind = CORRUPTIONS.index(corruption)
    right: list[bool] = []
    for start in range(0, len(pixels), _BATCH):
        batch = []
        for place, one in enumerate(pixels[start : start + _BATCH], start):
            harmed = corrupted(
                one if gray else _colour(one), corruption, severity, _generator(seed, place, kind, severity)
            )
            batch.append(finish(harmed))
        said = predictor.decide(predictor.forward(torch.from_numpy(np.stack(batch))), 1)
        for own, answer in zip(truth[start : start + _BATCH], said, strict=True):
            named = set(answer.labels)
            right.append(joined(name for name in predictor.classes if name in named) == own)
    return np.array(right, bool)


def _generator(seed: int, place: int, kind: int, severity: int) -> np.random.Generator:
    return np.random.default_rng([seed, place, kind, severity])


def _colour(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Three planes, so that noise has colours."""
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def _picture(pixels: npt.NDArray[np.uint8]) -> str:
    picture = Image.fromarray(pixels)
    picture.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE))
    return address(picture)
