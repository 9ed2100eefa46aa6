"""Sample predictions: what the model says of held-out photos, with small pictures of them.

The surest right ones, the surest mistakes and random ones are picked from the held-out photos, or from a random part of
them where they are many: a report must not take longer than the training.
"""

import base64
import io
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from cmtvision.artefact import Predictor
from cmtvision.data import open_image
from cmtvision.errors import DataError
from cmtvision.report.run_folder import RunFolder, SplitRow

MAX_PHOTOS = 2000
MAX_SECONDS = 20.0
THUMBNAIL = 104  # pixels, the longer side
_BATCH = 64


class Seen(NamedTuple):
    """One photo and what the model says of it; probabilities are within 0..1."""

    path: Path
    true: str
    predicted: str
    probability: float
    true_probability: float


class Card(NamedTuple):
    """One photo of the page: what was seen, and its picture as a data: address ('' where it cannot be read)."""

    seen: Seen
    picture: str
    width: int
    height: int


class Group(NamedTuple):
    """A row of sample predictions with its heading."""

    title: str
    cards: list[Card]


@dataclass(frozen=True)
class Samples:
    """Sample predictions, or why there are none.

    Attributes:
        groups: the rows of pictures.
        looked_at, held_out: photos predicted here, of how many held out.
        missing: photos that could not be read any more.
        note: one sentence for the page on what was left out, '' where nothing was.
    """

    groups: list[Group] = field(default_factory=list)
    looked_at: int = 0
    held_out: int = 0
    missing: int = 0
    note: str = ""


def sample_predictions(run: RunFolder, predictor: Predictor, per_group: int = 12, seed: int = 0) -> Samples:
    """Predict held-out photos of a run and pick those worth a look.

    Args:
        run: the run, whose split.csv names the photos.
        predictor: its model.
        per_group: pictures in each group, at most.
        seed: decides which photos are picked at random.
    """
    held_out = [row for row in run.split if row.split == "val"]
    if not held_out:
        return Samples(note="No photos were held out in this run, so there are no sample predictions.")
    root = run.data_root
    if root is None or not root.is_dir():
        where = f"{root} is not there any more" if root else "the run does not say where they are"
        return Samples(held_out=len(held_out), note=f"The held-out photos could not be found ({where}).")
    chosen = random.Random(seed).sample(held_out, min(len(held_out), MAX_PHOTOS))
    seen, missing = _predict(chosen, root, predictor)
    note = ""
    if missing:
        verb = "photo has been moved or damaged" if missing == 1 else "photos have been moved or damaged"
        note = f"{missing:,} held-out {verb} since training (looked for in {root})."
    return Samples(_groups(seen, per_group), len(seen), len(held_out), missing, note)


def _predict(rows: Sequence[SplitRow], root: Path, predictor: Predictor) -> tuple[list[Seen], int]:
    index = {name: number for number, name in enumerate(predictor.classes)}
    rows = [row for row in rows if row.label in index]
    seen: list[Seen] = []
    missing, started = 0, time.monotonic()
    for start in range(0, len(rows), _BATCH):
        if time.monotonic() - started > MAX_SECONDS:
            break
        batch: list[tuple[SplitRow, npt.NDArray[np.float32]]] = []
        for row in rows[start : start + _BATCH]:
            try:
                batch.append((row, predictor.preprocess(root / row.path)))
            except DataError:
                missing += 1
        if not batch:
            continue
        pixels = torch.from_numpy(np.stack([image for _, image in batch]))
        for (row, _), probabilities in zip(batch, predictor.forward(pixels).softmax(dim=1), strict=True):
            best = int(probabilities.argmax())
            seen.append(
                Seen(
                    root / row.path,
                    row.label,
                    predictor.classes[best],
                    float(probabilities[best]),
                    float(probabilities[index[row.label]]),
                )
            )
    return seen, missing


def _groups(seen: list[Seen], per_group: int) -> list[Group]:
    surest = sorted(seen, key=lambda one: -one.probability)
    wrong = [one for one in surest if one.predicted != one.true][:per_group]
    right = list(_spread((one for one in surest if one.predicted == one.true), per_group))
    shown = {one.path for one in [*wrong, *right]}
    others = [one for one in seen if one.path not in shown][:per_group]  # their order is already random
    picked = [("Surest mistakes", wrong), ("Surest right", right), ("Picked at random", others)]
    return [Group(title, [_card(one) for one in ones]) for title, ones in picked if ones]


def _spread(ones: Iterator[Seen], most: int) -> Iterator[Seen]:
    """The first of each class in turn, so that one easy class does not fill the row; then the first ones left."""
    waiting = list(ones)
    given = 0
    while waiting and given < most:
        classes: set[str] = set()
        left = []
        for one in waiting:
            if one.true in classes or given == most:
                left.append(one)
                continue
            classes.add(one.true)
            given += 1
            yield one
        waiting = left


def _card(seen: Seen) -> Card:
    try:
        picture = open_image(seen.path)
    except DataError:
        return Card(seen, "", THUMBNAIL, THUMBNAIL)
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    picture.save(out, "PNG", optimize=True)
    address = "data:image/png;base64," + base64.b64encode(out.getvalue()).decode("ascii")
    return Card(seen, address, picture.width, picture.height)
