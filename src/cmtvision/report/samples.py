"""Sample predictions: the model's output for held-out images, with thumbnails.

The most confident correct ones, the most confident mistakes and random ones are picked from the held-out images, or
from a random part of a large set: a report must not take longer than the training. Where an image has several labels,
how sure the model is of it is read from single statements ("there is a dog", "there is no cat"): of a right answer the
least sure one, of a wrong answer the surest of those that are wrong.
"""

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from cmtvision.artefact import Predictor
from cmtvision.artefact.predictor import THRESHOLD
from cmtvision.artefact.run.read import RunFolder, SplitRow
from cmtvision.data import read_dataset
from cmtvision.data.photos import PhotoPath, StoredPhoto
from cmtvision.errors import CmtvisionError, DataError
from cmtvision.report.answers import deciding, joined
from cmtvision.report.pictures import Answer, Group, cards_of

MAX_PHOTOS = 2000
MAX_SECONDS = 20.0
_BATCH = 64


@dataclass(frozen=True)
class Samples:
    """Sample predictions, or why there are none.

    Attributes:
        groups: the rows of pictures.
        looked_at, held_out: images predicted here, of how many held out.
        missing: images that could not be read any more.
        note: one sentence for the page on what was left out, '' where nothing was.
    """

    groups: list[Group] = field(default_factory=list)
    looked_at: int = 0
    held_out: int = 0
    missing: int = 0
    note: str = ""


def sample_predictions(run: RunFolder, predictor: Predictor, per_group: int = 12, seed: int = 0) -> Samples:
    """Predict held-out images of a run and pick those worth showing.

    Args:
        run: the run, whose split.csv names the images.
        predictor: its model.
        per_group: pictures in each group, at most.
        seed: decides which images are picked at random.
    """
    held_out = [row for row in run.split if row.split == "val"]
    if not held_out:
        return Samples(note="No images were held out in this run, so there are no sample predictions.")
    chosen = random.Random(seed).sample(held_out, min(len(held_out), MAX_PHOTOS))
    places, note = _places(run, chosen)
    if not places:
        return Samples(held_out=len(held_out), note=note)
    seen, missing = _predict(chosen, places, predictor)
    if missing:
        verb = "image has been moved or damaged" if missing == 1 else "images have been moved or damaged"
        where = run.data if note else run.data_root
        note = f"{missing:,} held-out {verb} since training (looked for in {where}). {note}".rstrip()
    return Samples(_groups(seen, per_group), len(seen), len(held_out), missing, note)


def _places(run: RunFolder, rows: Sequence[SplitRow]) -> tuple[dict[str, PhotoPath], str]:
    """Where each image named in the split is, and a note; no places where they cannot be found any more."""
    root = run.data_root
    if root is not None and root.is_dir() and any((root / row.path).is_file() for row in rows):
        return {row.path: root / row.path for row in rows}, ""
    stored = _stored(run)
    if stored:
        return stored, f"The held-out images are no files of their own: they were read from {run.data}."
    if root is not None and root.is_dir():
        return {row.path: root / row.path for row in rows}, ""
    where = f"{root} is not there any more" if root else "the run does not say where they are"
    return {}, f"The held-out images could not be found ({where})."


def _stored(run: RunFolder) -> dict[str, PhotoPath]:
    """The images of a run whose data is no folder of files (shards, a table with the images in it), by their names."""
    recipe = run.recipe.get("data")
    section = recipe if isinstance(recipe, dict) else {}
    try:
        index = read_dataset(
            run.data,
            val_fraction=0,
            verify=False,
            image_column=section.get("image_column"),
            label_column=section.get("label_column"),
            multi_label=bool(section.get("multi_label")),
        )
    except (CmtvisionError, OSError):  # moved, or on another machine: the page says so
        return {}
    return {index.relative(one.path): one.path for one in index.samples if isinstance(one.path, StoredPhoto)}


def _predict(rows: Sequence[SplitRow], places: dict[str, PhotoPath], predictor: Predictor) -> tuple[list[Answer], int]:
    judge = _judge_several if predictor.task == "multi-label" else _judge_one
    seen: list[Answer] = []
    missing, started = 0, time.monotonic()
    for start in range(0, len(rows), _BATCH):
        if time.monotonic() - started > MAX_SECONDS:
            break
        batch: list[tuple[SplitRow, npt.NDArray[np.float32]]] = []
        for row in rows[start : start + _BATCH]:
            try:
                batch.append((row, predictor.preprocess(places[row.path])))
            except (DataError, KeyError):
                missing += 1
        if not batch:
            continue
        pixels = torch.from_numpy(np.stack([image for _, image in batch]))
        for (row, _), probabilities in zip(batch, predictor.probabilities(predictor.forward(pixels)), strict=True):
            one = judge(row, places[row.path], probabilities, predictor.classes)
            seen += [one] if one is not None else []
    return seen, missing


def _judge_one(row: SplitRow, path: PhotoPath, probabilities: torch.Tensor, classes: list[str]) -> Answer | None:
    """What is said of an image with one label; None where the model does not know its class."""
    if row.label not in classes:
        return None
    best = int(probabilities.argmax())
    own = float(probabilities[classes.index(row.label)])
    return Answer(path, row.label, classes[best], float(probabilities[best]), own)


def _judge_several(row: SplitRow, path: PhotoPath, probabilities: torch.Tensor, classes: list[str]) -> Answer | None:
    """What is said of an image with any number of labels; None where the model does not know one of them."""
    labels = set(filter(None, row.label.split("|")))
    if not labels <= set(classes):
        return None
    true = tuple(i for i, name in enumerate(classes) if name in labels)
    claimed = (probabilities >= THRESHOLD).nonzero()[:, 0].tolist()
    said = joined(classes[i] for i in claimed)
    return Answer(path, joined(classes[i] for i in true), said, deciding(true, probabilities.numpy()), None)


def _groups(seen: list[Answer], per_group: int) -> list[Group]:
    surest = sorted(seen, key=lambda one: -one.probability)
    wrong = [one for one in surest if one.predicted != one.true][:per_group]
    right = list(_spread((one for one in surest if one.predicted == one.true), per_group))
    shown = {one.path for one in [*wrong, *right]}
    others = [one for one in seen if one.path not in shown][:per_group]  # their order is already random
    picked = [("Surest mistakes", wrong), ("Surest right", right), ("Picked at random", others)]
    return [Group(title, cards_of(ones)) for title, ones in picked if ones]


def _spread(ones: Iterator[Answer], most: int) -> Iterator[Answer]:
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
