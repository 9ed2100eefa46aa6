"""Semantic segmentation as a task of the engine: cross-entropy of pixels, mean intersection over union."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from cmtvision.artefact.card import Task as Kind
from cmtvision.artefact.dense import SegmentationPredictor, class_map
from cmtvision.data import SegmentationIndex, SegmentationSample
from cmtvision.data.annotations import read_segmentation
from cmtvision.data.training.dense_dataset import SegmentationDataset, collate_segmentation
from cmtvision.engine.build import BuiltModel
from cmtvision.engine.dense.task import DenseEvaluation, DenseTask, each_seen
from cmtvision.engine.distributed.processes import SINGLE, Processes
from cmtvision.engine.evaluation.outputs import Progress, eval_mode
from cmtvision.engine.plan import RunPlan
from cmtvision.engine.task import Judged, Objective, Place
from cmtvision.errors import ConfigError
from cmtvision.models.dense import is_detector
from cmtvision.models.dense_names import split_name
from cmtvision.models.segmenters import KINDS
from cmtvision.recipe import DataSection, Recipe
from cmtvision.segmentation.metrics import SegmentationCounts, SegmentationFigures, count, figures, no_counts


@dataclass(frozen=True, kw_only=True)
class SegmentationEvaluation(DenseEvaluation):
    """What an evaluation of a segmenter counted.

    Attributes:
        counts: pixels and boundary pixels, as integers.
        figures: what follows from them.
    """

    task: ClassVar[Kind] = "segmentation"
    score: ClassVar[str] = "IoU"

    counts: SegmentationCounts
    figures: SegmentationFigures

    def headline(self) -> str:
        """The mean IoU, in words."""
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

    def by_class(self) -> Sequence[float | None]:
        """IoU of each class."""
        return self.figures.iou

    def details(self) -> dict[str, Any]:
        """All figures, and what was counted."""
        return {
            "figures": asdict(self.figures),
            "confusion": self.counts.confusion.tolist(),
            "boundary": self.counts.boundary.tolist(),
            "regions": self.counts.regions.tolist(),
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


class SegmentationTask(DenseTask):
    """The class of each pixel."""

    kind: ClassVar[Kind] = "segmentation"
    command: str = "cmtvision segment train"
    figures: tuple[str, ...] = ("val_miou", "val_pixel_accuracy", "val_boundary_f1")
    predictor = SegmentationPredictor
    annotated = read_segmentation
    batched = collate_segmentation

    def check_network(self, name: str) -> None:
        """Raise ConfigError for a network that is no segmenter."""
        if is_detector(name):
            raise ConfigError(f"model.name: {name!r} is a detector; `cmtvision detect train` trains it")
        split_name(name, KINDS, "segmenter")

    def dataset(
        self,
        samples: Sequence[SegmentationSample],
        transform: Any,
        data: DataSection,
        seed: int = 0,
        network: nn.Module | None = None,
    ) -> SegmentationDataset:
        """The images with their masks."""
        limits = {"max_pixels": data.max_pixels, "max_bytes": data.max_bytes}
        return SegmentationDataset(samples, transform, seed=seed, **limits)

    def objective(self, recipe: Recipe, index: SegmentationIndex, built: BuiltModel, device: torch.device) -> Objective:
        """Cross-entropy of pixels."""
        assert index.void is not None
        return SegmentationObjective(index.void, recipe.train.channels_last)

    def judge(self, network: nn.Module, loader: Any, plan: RunPlan, device: torch.device) -> Judged:
        """Mean IoU, by which networks are chosen, the share of pixels right, and the F1 of boundaries."""
        with eval_mode(network):
            found = self.evaluated(network, loader, device, plan.processes)
        said = {f"val_{name}": value or 0.0 for name, value in found.summary().items() if name != "num_images"}
        return Judged(said, said["val_miou"])

    def said(self, row: dict[str, Any]) -> list[str]:
        """mIoU of the held-out images."""
        if row["val_miou"] is None:
            return []
        return [f"held-out mIoU {row['val_miou']:.1%}", f"pixels right {row['val_pixel_accuracy']:.1%}"]

    def evaluated(
        self,
        network: Any,
        loader: Any,
        device: torch.device,
        processes: Processes = SINGLE,
        progress: Progress | None = None,
        **how: Any,
    ) -> SegmentationEvaluation:
        """Label the pixels of a loader's images, and count.

        Args:
            network, loader, device, processes, progress: as of ``DenseTask.evaluated``.
            how: ``window``, see ``cmtvision.artefact.dense.class_map``.
        """
        own = no_counts(network.num_classes)
        for image, target, _ in each_seen(loader, processes, progress):
            found = class_map(network, image.to(device), target["original_size"], **how)
            own += count(target["mask"].numpy(), found, network.num_classes, target["void"])
        parts = processes.gather(own)
        total = sum(parts[1:], start=parts[0])
        samples = loader.dataset.samples
        return SegmentationEvaluation(counts=total, figures=figures(total), samples=samples)


SEGMENTATION = SegmentationTask()
