"""Evaluation with exact counts: every usable photo once, integers until the last division."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from cmtvision.artefact import Predictor, load
from cmtvision.data import DatasetIndex, Sample, Skipped, read_dataset
from cmtvision.engine.loaders import eval_loader
from cmtvision.engine.run_folder import RUN_FILE, SPLIT_FILE
from cmtvision.errors import DataError
from cmtvision.recipe import DataSection

Progress = Callable[[int, int], None]
Split = Literal["val", "train", "all"]


@dataclass(frozen=True)
class ClassScore:
    """One class: its photos, how many were recognised, recall and precision as fractions (None where undefined)."""

    name: str
    images: int
    correct: int
    recall: float | None
    precision: float | None


@dataclass(frozen=True)
class PhotoResult:
    """One photo: its file, true and predicted class numbers, and the predicted class's probability."""

    path: Path
    label: int
    predicted: int
    probability: float


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation counted.

    Attributes:
        classes: class names.
        split: which photos: 'val', 'train' or 'all'.
        num_images: photos evaluated.
        top1_correct, top5_correct: photos whose class was the first, or among the first five.
        loss: mean cross-entropy in nats.
        confusion: counts (true, predicted), int64.
        predictions: one result for each photo, in the order of the files.
        skipped: files left out, with reasons.
    """

    classes: list[str]
    split: str
    num_images: int
    top1_correct: int
    top5_correct: int
    loss: float
    confusion: npt.NDArray[np.int64]
    predictions: list[PhotoResult] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    @property
    def top1(self) -> float:
        """Share of photos recognised, 0 to 1."""
        return self.top1_correct / self.num_images

    @property
    def top5(self) -> float:
        """Share of photos whose class is among the first five, 0 to 1."""
        return self.top5_correct / self.num_images

    def per_class(self) -> list[ClassScore]:
        """Recall and precision of every class."""
        scores = []
        for i, name in enumerate(self.classes):
            images, claimed = int(self.confusion[i].sum()), int(self.confusion[:, i].sum())
            correct = int(self.confusion[i, i])
            recall = correct / images if images else None
            scores.append(ClassScore(name, images, correct, recall, correct / claimed if claimed else None))
        return scores

    def to_dict(self) -> dict[str, Any]:
        """Everything but the single predictions, ready for JSON."""
        return {
            "split": self.split,
            "num_images": self.num_images,
            "top1_correct": self.top1_correct,
            "top5_correct": self.top5_correct,
            "top1": self.top1,
            "top5": self.top5,
            "loss": self.loss,
            "classes": self.classes,
            "per_class": [vars(score) for score in self.per_class()],
            "confusion": self.confusion.tolist(),
            "skipped": [{"path": str(item.path), "reason": item.reason} for item in self.skipped],
        }


def evaluate(
    model: str | Path | Predictor,
    data: str | Path,
    *,
    split: Split = "val",
    batch_size: int = 128,
    workers: int | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate a trained model on a data set.

    Args:
        model: a run folder, an artefact, or a Predictor.
        data: a folder or CSV as for training. A run's own data is evaluated on the split of that run.
        split: 'val', 'train' or 'all'. Data without a held-out part is evaluated whole for 'val', and the result's
            ``split`` says so.
        batch_size: photos at a time.
        workers: loader processes; None chooses.
        device: 'auto', 'cpu', 'cuda' or 'mps', where a model is opened from a file.
        progress: called as progress(done, total).

    Raises:
        CheckpointError: the model cannot be opened.
        DataError: the data cannot be used, or has classes that the model does not know.
    """
    predictor = model if isinstance(model, Predictor) else load(model, device)
    chosen_by_run = None if isinstance(model, Predictor) else _run_split(model, data)
    source, root = chosen_by_run or (Path(data), None)
    index = read_dataset(source, root=root, classes=predictor.classes, val_fraction=0)
    samples, chosen = _choose(index, split)
    return evaluate_samples(
        predictor, samples, DataSection(workers=workers), batch_size, chosen, index.skipped, progress
    )


def evaluate_samples(
    predictor: Predictor,
    samples: Sequence[Sample],
    data: DataSection,
    batch_size: int,
    split: str,
    skipped: Sequence[Skipped] = (),
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate a Predictor on a list of photos whose labels are its class numbers."""
    loader = eval_loader(samples, predictor.preprocess, data, batch_size)
    count = len(predictor.classes)
    confusion = np.zeros((count, count), dtype=np.int64)
    predictions: list[PhotoResult] = []
    top5, loss = 0, 0.0
    for images, labels, indices in loader:
        logits = predictor.forward(images)
        loss += float(F.cross_entropy(logits.double(), labels, reduction="sum"))
        probability, predicted = logits.softmax(dim=1).max(dim=1)
        top5 += int((logits.topk(min(5, count)).indices == labels[:, None]).sum())
        np.add.at(confusion, (labels.numpy(), predicted.numpy()), 1)
        rows = zip(indices.tolist(), labels.tolist(), predicted.tolist(), probability.tolist(), strict=True)
        predictions += [PhotoResult(samples[i].path, y, p, q) for i, y, p, q in rows]
        if progress is not None:
            progress(len(predictions), len(samples))
    return Evaluation(
        classes=predictor.classes,
        split=split,
        num_images=len(predictions),
        top1_correct=int(confusion.trace()),
        top5_correct=top5,
        loss=loss / len(predictions),
        confusion=confusion,
        predictions=predictions,
        skipped=list(skipped),
    )


def _run_split(model: str | Path, data: str | Path) -> tuple[Path, Path] | None:
    """The split file and image root of a run, where the data is the run's own and the run chose its split."""
    run = Path(model)
    try:
        info = json.loads((run / RUN_FILE).read_text(encoding="utf-8"))
        chosen = info["split_source"] == "seeded" and Path(info["data"]) == Path(data).resolve()
        return (run / SPLIT_FILE, Path(info["root"])) if chosen else None
    except (OSError, ValueError, KeyError):
        return None


def _choose(index: DatasetIndex, split: Split) -> tuple[list[Sample], str]:
    if split == "all":
        return index.samples, "all"
    samples = index.val if split == "val" else index.train
    if not samples and split == "val":
        return index.samples, "all"
    if not samples:
        raise DataError(f"{index.root}: no {split} photos; evaluate another split")
    return samples, split


def top1_and_loss(
    model: torch.nn.Module, loader: Any, device: torch.device, channels_last: bool
) -> tuple[int, int, float, int]:
    """Counts of one pass in training: (top-1 correct, top-5 correct, summed cross-entropy, photos)."""
    correct, correct5, total = 0, 0, 0
    loss = 0.0
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for images, labels, _ in loader:
            memory_format = torch.channels_last if channels_last else torch.contiguous_format
            logits = model(images.to(device, memory_format=memory_format)).float().cpu()
            loss += float(F.cross_entropy(logits, labels, reduction="sum"))
            hits = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
            correct += int(hits[:, 0].sum())
            correct5 += int(hits.sum())
            total += len(labels)
    model.train(was_training)
    return correct, correct5, loss, total
