"""Evaluation with exact counts: every usable photo once, integers until the last division."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cmtvision.artefact import Predictor, load
from cmtvision.artefact.card import Card, model_folder
from cmtvision.artefact.confusion import Confusion
from cmtvision.artefact.run.data import read_as_the_run
from cmtvision.artefact.runtimes.open import device_for
from cmtvision.data import DatasetIndex, PhotoPath, Sample, Skipped, read_dataset
from cmtvision.engine.distributed.processes import SINGLE, Processes, join_processes
from cmtvision.engine.evaluation.multilabel import MultiLabelEvaluation, multilabel_evaluation
from cmtvision.engine.evaluation.outputs import Progress, gather_logits
from cmtvision.engine.evaluation.recorder import Recorder
from cmtvision.engine.loaders import eval_loader
from cmtvision.errors import DataError
from cmtvision.recipe import DataSection

Split = Literal["val", "train", "test", "all"]


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
    """One photo: its file, true and predicted class numbers, and how sure the model was; probabilities are 0 to 1.

    Attributes:
        path, label, predicted: the file, the true class and the most probable one.
        probability, true_probability: of the predicted and of the true class.
        margin: by how much the predicted class leads the second most probable one, 0 to 1.
        in_five: whether the true class is among the five most probable.
    """

    path: PhotoPath
    label: int
    predicted: int
    probability: float
    true_probability: float
    margin: float
    in_five: bool


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation counted.

    Attributes:
        classes: class names.
        split: which photos: 'val', 'train', 'test' or 'all'.
        num_images: photos evaluated.
        top1_correct, top5_correct: photos whose class was the first, or among the first five.
        loss: mean cross-entropy in nats.
        counts: which class was taken for which.
        predictions: one result for each photo, in the order of the files.
        skipped: files left out, with reasons.
        notes: what a person should know of which photos these are, a sentence each.
    """

    classes: list[str]
    split: str
    num_images: int
    top1_correct: int
    top5_correct: int
    loss: float
    counts: Confusion
    predictions: list[PhotoResult] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def top1(self) -> float:
        """Share of photos recognised, 0 to 1."""
        return self.top1_correct / self.num_images

    @property
    def top5(self) -> float:
        """Share of photos whose class is among the first five, 0 to 1."""
        return self.top5_correct / self.num_images

    @property
    def confusion(self) -> npt.NDArray[np.int64]:
        """Counts (C, C) of (true, predicted); of thousands of classes rather ask ``counts``."""
        return self.counts.matrix()

    def per_class(self) -> list[ClassScore]:
        """Recall and precision of every class."""
        scores = []
        columns = (column.tolist() for column in (self.counts.images, self.counts.claimed, self.counts.correct))
        for name, images, claimed, correct in zip(self.classes, *columns, strict=True):
            recall = correct / images if images else None
            scores.append(ClassScore(name, images, correct, recall, correct / claimed if claimed else None))
        return scores

    def headline(self) -> str:
        """The figure to look at first, in words."""
        said = f"accuracy: {self.top1:.2%} ({self.top1_correct}/{self.num_images})"
        return said + (f", among the first five: {self.top5:.2%}" if len(self.classes) > 5 else "")

    def summary(self) -> dict[str, Any]:
        """The figures that an artefact carries."""
        return {key: getattr(self, key) for key in ("num_images", "top1_correct", "top1", "top5", "loss")}

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
            "confusion": self.counts.to_json(),
            "skipped": [{"path": str(item.path), "reason": item.reason} for item in self.skipped],
            "notes": self.notes,
        }


def evaluate(
    model: str | Path | Predictor,
    data: str | Path,
    *,
    split: Split = "val",
    batch_size: int = 128,
    workers: int | None = None,
    device: str = "auto",
    threads: int | None = None,
    streams: int | None = None,
    progress: Progress | None = None,
) -> Evaluation | MultiLabelEvaluation:
    """Evaluate a trained model on a data set; with several processes (torchrun, SLURM) each photo is seen by one.

    Args:
        model: a run folder, an artefact, an export, or a Predictor.
        data: a folder or CSV as for training. A run's own photos are in the parts that the run had them in, wherever
            they lie now.
        split: 'val', 'train', 'test' or 'all'. For 'val', data without a held-out part is evaluated whole, and data of
            test photos alone on these; the result's ``split`` says so.
        batch_size: photos at a time.
        workers: loader processes; None chooses.
        device: 'auto', 'cpu', 'cuda' or 'mps' ('gpu' for OpenVINO on Intel's), where a model is opened from a file.
        threads, streams: of the runtime, where a model is opened from a file; see ``cmtvision.load``.
        progress: called as progress(done, total).

    Raises:
        CheckpointError: the model cannot be opened.
        DataError: the data cannot be used, has classes that the model does not know, or no photos of that split; for
            'val' also where there are none but photos that the run was trained on, or test photos beside training
            photos, since those are looked at on purpose only.
    """
    kind = _device_kind(model, device)
    with join_processes(kind) as processes:
        # each process has a GPU of its own; all else, 'auto' too, is for the runtime to decide
        place = processes.device(kind) if kind == "cuda" and processes.world_size > 1 else device
        predictor = model if isinstance(model, Predictor) else load(model, place, threads, streams)
        multi_label = predictor.task == "multi-label"
        how: dict[str, Any] = {"classes": predictor.classes, "multi_label": multi_label}
        fingerprint = predictor.card.data_fingerprint
        index = processes.first(
            lambda: (
                read_dataset(data, val_fraction=0, **how)
                if isinstance(model, Predictor)
                else read_as_the_run(model, data, fingerprint, **how)
            )
        )
        samples, chosen = choose_samples(index, split)
        section = DataSection(workers=workers, multi_label=multi_label)
        found = evaluate_samples(predictor, samples, section, batch_size, chosen, index.skipped, progress, processes)
        return replace(found, notes=evaluation_notes(index, chosen))


def choose_samples(index: DatasetIndex, split: Split) -> tuple[list[Sample], str]:
    """The photos of an index that an evaluation of ``split`` is about, and what they are; see ``evaluate``.

    Raises:
        DataError: there are none of that split; for 'val' also as ``evaluate`` says.
    """
    _refuse_trained(index, split)
    return _choose(index, split)


def evaluation_notes(index: DatasetIndex, split: str) -> list[str]:
    """What a person should know of which photos of an index were evaluated, a sentence each."""
    return [*index.notes, *_trained_on(index, split)]


def evaluate_samples(
    predictor: Predictor,
    samples: Sequence[Sample],
    data: DataSection,
    batch_size: int,
    split: str,
    skipped: Sequence[Skipped] = (),
    progress: Progress | None = None,
    processes: Processes = SINGLE,
    recorder: Recorder | None = None,
) -> Evaluation | MultiLabelEvaluation:
    """Evaluate a Predictor on a list of photos whose labels are its class numbers.

    With several processes each photo is seen by exactly one of them, and all get the same result. A recorder keeps the
    logits of this process's photos.
    """
    classes = predictor.classes
    mine = processes.share(len(samples))
    loader = eval_loader(samples, predictor.inputs, data, batch_size, share=mine, num_classes=len(classes))
    forward, keep = (predictor.forward, None) if recorder is None else (recorder.forward, recorder.keep)
    seen = gather_logits(
        forward, loader, processes, progress, len(samples), keep=keep, temperature=predictor.card.temperature
    )
    if data.multi_label:
        paths = [samples[i].path for i in seen.indices.tolist()]
        return multilabel_evaluation(classes, seen.logits, seen.targets, split, paths, skipped)
    columns = [seen.indices, seen.targets, seen.predicted]
    columns += [seen.probability, seen.true_probability, seen.margin, seen.in_five]
    rows = zip(*(column.tolist() for column in columns), strict=True)
    counts = Confusion.of(seen.targets.numpy(), seen.predicted.numpy(), len(classes))
    return Evaluation(
        classes=classes,
        split=split,
        num_images=len(seen.targets),
        top1_correct=int(counts.correct.sum()),
        top5_correct=seen.correct_among_five(),
        loss=seen.mean_loss(),
        counts=counts,
        predictions=[PhotoResult(samples[place].path, *said) for place, *said in rows],
        skipped=list(skipped),
    )


def _device_kind(model: str | Path | Predictor, device: str) -> str:
    """What the processes of an evaluation compute on, before any opens the model. Raises as ``load`` does."""
    if isinstance(model, Predictor):
        return model.device.type if device == "auto" else device_for(model.card, device)
    folder = model_folder(model)
    return device_for(Card.read(folder), device)


def _refuse_trained(index: DatasetIndex, split: Split) -> None:
    """Refuse to measure a run on the photos that it was trained on, unless they were asked for. Raises DataError."""
    if split != "val" or index.split_source != "run" or index.val:
        return
    many = (
        f"the run trained on all {len(index.train):,} of these photos"
        if len(index.train) > 1
        else "the run trained on it"
    )
    why = "".join(f" ({note})" for note in index.notes)
    raise DataError(
        f"{index.source}: {many}, none was held out{why}; evaluate photos that it has not seen, or measure how well it "
        "learned these with --split train"
    )


def _trained_on(index: DatasetIndex, split: str) -> list[str]:
    """What must be said of a figure that counts photos which the run was trained on."""
    if index.split_source != "run" or split not in ("train", "all"):
        return []
    return [f"the run trained on {len(index.train):,} of these photos: no measure of how it does on new ones"]


def _choose(index: DatasetIndex, split: Split) -> tuple[list[Sample], str]:
    """The photos of a split, and which these are (see ``evaluate``). Raises DataError where there are none."""
    if split == "all":
        return index.samples, "all"
    samples: list[Sample] = getattr(index, split)
    if samples:
        return samples, split
    if split == "val" and not index.test:
        return index.samples, "all"
    if split == "val" and not index.train:
        return index.test, "test"  # whoever gives nothing but test photos means these
    others = [f"{len(found):,} for {name}" for name in ("train", "val", "test") if (found := getattr(index, name))]
    raise DataError(
        f"{index.root}: no photos for {split}, but {' and '.join(others)}; choose one of these with --split"
    )
