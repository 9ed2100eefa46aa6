"""Semantic segmentation as a task of the engine: cross-entropy of pixels, mean intersection over union."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from cmtvision.artefact import Artefact
from cmtvision.artefact.dense import class_map
from cmtvision.artefact.predictor import pick_device
from cmtvision.data import DatasetIndex, SegmentationIndex, SegmentationSample, Skipped
from cmtvision.data.annotations import read_segmentation
from cmtvision.data.annotations.splits import as_in, images_of
from cmtvision.data.training.dense_dataset import SegmentationDataset, collate_segmentation
from cmtvision.engine.build import BuiltModel
from cmtvision.engine.dense import (
    build_dense,
    dense_eval_loader,
    dense_train_loader,
    train_transform,
    whole_image,
)
from cmtvision.engine.distributed.processes import SINGLE, Processes
from cmtvision.engine.evaluation.outputs import eval_mode
from cmtvision.engine.loaders import TrainLoader
from cmtvision.engine.plan import RunPlan
from cmtvision.engine.task import Final, Judged, Objective, Place
from cmtvision.errors import ConfigError
from cmtvision.models.dense import is_segmenter
from cmtvision.models.segmenters import Segmenter
from cmtvision.recipe import Recipe
from cmtvision.segmentation.metrics import SegmentationCounts, SegmentationFigures, count, figures, no_counts


@dataclass(frozen=True)
class SegmentationEvaluation:
    """What an evaluation counted.

    Attributes:
        classes: class names.
        split: which images.
        num_images: images evaluated.
        counts: pixels and boundary pixels, as integers.
        figures: what follows from them.
        skipped: files left out, with reasons.
        notes: what a person should know of the images, a sentence each.
    """

    classes: list[str]
    split: str
    num_images: int
    counts: SegmentationCounts
    figures: SegmentationFigures
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def headline(self) -> str:
        """The figure to look at first, in words."""
        named = {"pixels right": self.figures.pixel_accuracy, "boundary F1": self.figures.mean_boundary_f1}
        more = ", ".join(f"{name} {_percent(value)}" for name, value in named.items())
        return f"mIoU {_percent(self.figures.mean_iou)} ({more}, {self.num_images:,} images)"

    def summary(self) -> dict[str, Any]:
        """The figures that an artefact carries."""
        found = self.figures
        return {
            "num_images": self.num_images,
            "miou": found.mean_iou,
            "pixel_accuracy": found.pixel_accuracy,
            "boundary_f1": found.mean_boundary_f1,
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "task": "segmentation",
            "split": self.split,
            "classes": self.classes,
            **self.summary(),
            "figures": asdict(self.figures),
            "confusion": self.counts.confusion.tolist(),
            "boundary": self.counts.boundary.tolist(),
            "skipped": [{"path": str(item.path), "reason": item.reason} for item in self.skipped],
            "notes": self.notes,
        }


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


class SegmentationObjective:
    """Cross-entropy, the mean over the pixels of a batch that belong to a class."""

    distiller: nn.Module | None = None

    def __init__(self, void: int, channels_last: bool) -> None:
        self.void, self.channels_last = void, channels_last

    def __call__(self, network: Any, batch: Any, place: Place) -> torch.Tensor:
        """The loss of images (B, C, H, W) and class numbers (B, H, W)."""
        images, masks, _ = batch
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        logits = network(images).float()  # (B, K, H, W)
        total = F.cross_entropy(logits, masks, ignore_index=self.void, reduction="sum")
        loss: torch.Tensor = total / (masks != self.void).sum().clamp(min=1)
        return loss


class Segmentation:
    """The class of each pixel; see ``engine.task.Task``."""

    command: str = "cmtvision segment train"
    figures: tuple[str, ...] = ("val_miou", "val_pixel_accuracy", "val_boundary_f1")

    def read(self, recipe: Recipe, data: str | Path) -> SegmentationIndex:
        """See ``cmtvision.data.annotations.read_segmentation``."""
        if not is_segmenter(recipe.model.name):
            raise ConfigError(f"model.name: {recipe.model.name!r} labels no pixels; name a segmenter: cmt_s_fpn")
        section = recipe.data
        return read_segmentation(
            data,
            val_fraction=section.val_fraction,
            split_seed=section.split_seed,
            max_pixels=section.max_pixels,
            max_bytes=section.max_bytes,
        )

    def listing(self, index: SegmentationIndex) -> DatasetIndex:
        """The images as the run folder lists them."""
        return images_of(index)

    def in_parts(self, index: SegmentationIndex, listing: DatasetIndex) -> SegmentationIndex:
        """The index in a listing's parts."""
        return as_in(index, listing)

    def build(self, recipe: Recipe, index: SegmentationIndex, resume: bool) -> BuiltModel:
        """The recipe's segmenter."""
        return build_dense(recipe, len(index.classes), resume)

    def batch_size(
        self, recipe: Recipe, built: BuiltModel, device: torch.device, index: SegmentationIndex, processes: Processes
    ) -> int:
        """What the recipe says."""
        if recipe.train.batch_size == "auto":
            raise ConfigError("train.batch_size: auto is for classifiers; give a number")
        return min(recipe.train.batch_size, len(index.train) // processes.world_size)

    def train_loader(
        self, index: SegmentationIndex, built: BuiltModel, recipe: Recipe, batch_size: int, processes: Processes
    ) -> TrainLoader:
        """The training images, changed at random as the recipe says."""
        transform = train_transform(recipe, built.preprocess, _void(index))
        dataset = self._dataset(index.train, transform, recipe)
        return dense_train_loader(dataset, recipe, batch_size, processes, collate_segmentation)

    def val_loader(
        self, index: SegmentationIndex, built: BuiltModel, recipe: Recipe, batch_size: int, processes: Processes
    ) -> Any:
        """The held-out images, whole."""
        dataset = self._dataset(index.val, whole_image(built), recipe)
        return dense_eval_loader(dataset, recipe.data, batch_size, processes, list)

    def objective(self, recipe: Recipe, index: SegmentationIndex, built: BuiltModel, device: torch.device) -> Objective:
        """Cross-entropy of pixels."""
        return SegmentationObjective(_void(index), recipe.train.channels_last)

    def judge(self, network: nn.Module, loader: Any, plan: RunPlan, device: torch.device) -> Judged:
        """Mean IoU, by which networks are chosen, the share of pixels right, and the F1 of boundaries."""
        found = figures(counted(_segmenter(network), loader, device, plan.processes))
        said = {
            "val_miou": found.mean_iou or 0.0,
            "val_pixel_accuracy": found.pixel_accuracy or 0.0,
            "val_boundary_f1": found.mean_boundary_f1 or 0.0,
        }
        return Judged(said, said["val_miou"])

    def said(self, row: dict[str, Any]) -> list[str]:
        """mIoU of the held-out images."""
        if row["val_miou"] is None:
            return []
        return [f"held-out mIoU {row['val_miou']:.1%}", f"pixels right {row['val_pixel_accuracy']:.1%}"]

    def finish(self, plan: RunPlan, index: SegmentationIndex, built: BuiltModel, network: nn.Module) -> Final:
        """Evaluate the network on the held-out images."""
        artefact = Artefact(
            built.architecture,
            built.arguments,
            index.classes,
            built.preprocess,
            task="segmentation",
            sides=built.sides,
            model=network,
        )
        if not index.val:
            return Final(artefact)
        device = torch.device(plan.processes.device(pick_device(plan.recipe.train.device)))
        loader = self.val_loader(index, built, plan.recipe, plan.recipe.train.eval_batch_size or 4, plan.processes)
        segmenter = _segmenter(network).to(device)
        evaluation = evaluated(segmenter, index.classes, "val", loader, device, plan.processes, index.skipped)
        network.cpu()
        return Final(artefact, evaluation)

    def _dataset(self, samples: Sequence[SegmentationSample], transform: Any, recipe: Recipe) -> SegmentationDataset:
        data = recipe.data
        return SegmentationDataset(
            samples, transform, seed=recipe.seed, max_pixels=data.max_pixels, max_bytes=data.max_bytes
        )


def counted(
    segmenter: Segmenter,
    loader: Any,
    device: torch.device,
    processes: Processes = SINGLE,
    window: int | None = None,
) -> SegmentationCounts:
    """Pixels of a loader's images by true class and the one found; every process must call it, all get the same.

    Each image is looked at alone, so that nothing depends on which others are beside it.
    """
    total = no_counts(segmenter.num_classes)
    with eval_mode(segmenter):
        for batch in loader:
            for image, target, _ in batch:
                found = class_map(segmenter, image.to(device), target["original_size"], window)
                total += count(target["mask"].numpy(), found, segmenter.num_classes, target["void"])
    parts = processes.gather(total)
    return sum(parts[1:], start=parts[0])


def evaluated(
    segmenter: Segmenter,
    classes: list[str],
    split: str,
    loader: Any,
    device: torch.device,
    processes: Processes = SINGLE,
    skipped: Sequence[Skipped] = (),
    window: int | None = None,
) -> SegmentationEvaluation:
    """Label the pixels of a loader's images, and count; every process must call it."""
    counts = counted(segmenter, loader, device, processes, window)
    return SegmentationEvaluation(classes, split, len(loader.dataset.samples), counts, figures(counts), list(skipped))


def _void(index: SegmentationIndex) -> int:
    assert index.void is not None
    return index.void


def _segmenter(network: nn.Module) -> Segmenter:
    assert isinstance(network, Segmenter)
    return network


SEGMENTATION = Segmentation()
