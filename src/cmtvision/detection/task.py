"""Detection and instance segmentation as tasks of the engine: torchvision's losses, COCO's figures."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cmtvision.artefact import Artefact
from cmtvision.artefact.detections import Detections
from cmtvision.artefact.predictor import pick_device
from cmtvision.data import DatasetIndex, DetectionIndex, DetectionSample, Skipped
from cmtvision.data.annotations import read_detection
from cmtvision.data.annotations.splits import as_in, images_of
from cmtvision.data.training.dense_dataset import DetectionDataset, collate_detection
from cmtvision.detection.found import found_in
from cmtvision.detection.metrics import DetectionFigures, coco_figures
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
from cmtvision.models.dense import is_detector
from cmtvision.models.detectors import Detector
from cmtvision.recipe import Recipe


@dataclass(frozen=True)
class DetectionEvaluation:
    """What an evaluation counted.

    Attributes:
        classes: class names.
        split: which images.
        boxes, masks: COCO's figures by boxes, and by masks where the network finds them.
        found: what was found in each image, by its place.
        samples: the images.
        skipped: files left out, with reasons.
        notes: what a person should know of the images, a sentence each.
    """

    classes: list[str]
    split: str
    boxes: DetectionFigures
    masks: DetectionFigures | None
    found: Mapping[int, Detections]
    samples: Sequence[DetectionSample] = ()
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def num_images(self) -> int:
        """Images evaluated."""
        return self.boxes.num_images

    def headline(self) -> str:
        """The figure to look at first, in words."""
        said = f"AP {_percent(self.boxes.ap)} (AP50 {_percent(self.boxes.ap50)}"
        said += f", {self.boxes.num_objects:,} objects in {self.num_images:,} images)"
        return said + (f", of masks {_percent(self.masks.ap)}" if self.masks is not None else "")

    def summary(self) -> dict[str, Any]:
        """The figures that an artefact carries."""
        figures = {"num_images": self.num_images, "ap": self.boxes.ap, "ap50": self.boxes.ap50, "ap75": self.boxes.ap75}
        return figures | ({"mask_ap": self.masks.ap} if self.masks is not None else {})

    def to_dict(self) -> dict[str, Any]:
        """Everything but what was found in single images, ready for JSON."""
        return {
            "task": "detection",
            "split": self.split,
            "classes": self.classes,
            **self.summary(),
            "boxes": asdict(self.boxes),
            "masks": None if self.masks is None else asdict(self.masks),
            "skipped": [{"path": str(item.path), "reason": item.reason} for item in self.skipped],
            "notes": self.notes,
        }


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


class DetectionObjective:
    """The sum of torchvision's losses. Groups that nobody separated are no object to learn, nor is one without a mask
    where masks are learned.
    """

    distiller: nn.Module | None = None

    def __init__(self, masks: bool) -> None:
        self.masks = masks

    def __call__(self, network: Any, batch: Any, place: Place) -> torch.Tensor:
        """The loss of images (B, C, H, W) and what is in each."""
        images, targets, _ = batch
        losses: dict[str, torch.Tensor] = network(list(images), [self._objects(one) for one in targets])
        return torch.stack([loss.float() for loss in losses.values()]).sum()

    def _objects(self, target: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        wanted = ~target["crowd"]
        if self.masks:
            wanted &= target["has_mask"]
        objects = {"boxes": target["boxes"][wanted], "labels": target["labels"][wanted]}
        return objects | ({"masks": target["masks"][wanted].to(torch.uint8)} if self.masks else {})


class Detection:
    """Boxes around objects, and their masks with a Mask R-CNN; see ``engine.task.Task``."""

    command: str = "cmtvision detect train"
    figures: tuple[str, ...] = ("val_ap", "val_ap50", "val_ap75", "val_mask_ap")

    def read(self, recipe: Recipe, data: str | Path) -> DetectionIndex:
        """See ``cmtvision.data.annotations.read_detection``."""
        if not is_detector(recipe.model.name):
            raise ConfigError(f"model.name: {recipe.model.name!r} finds no objects; name a detector: cmt_s_retinanet")
        section = recipe.data
        index = read_detection(
            data,
            val_fraction=section.val_fraction,
            split_seed=section.split_seed,
            max_pixels=section.max_pixels,
            max_bytes=section.max_bytes,
        )
        if recipe.model.name.endswith("_maskrcnn") and not index.has_masks:
            raise ConfigError(f"{data}: has no outlines for {recipe.model.name} to learn; take a detector of boxes")
        return index

    def listing(self, index: DetectionIndex) -> DatasetIndex:
        """The images as the run folder lists them."""
        return images_of(index)

    def in_parts(self, index: DetectionIndex, listing: DatasetIndex) -> DetectionIndex:
        """The index in a listing's parts."""
        return as_in(index, listing)

    def build(self, recipe: Recipe, index: DetectionIndex, resume: bool) -> BuiltModel:
        """The recipe's detector."""
        return build_dense(recipe, len(index.classes), resume)

    def batch_size(
        self, recipe: Recipe, built: BuiltModel, device: torch.device, index: DetectionIndex, processes: Processes
    ) -> int:
        """What the recipe says."""
        if recipe.train.batch_size == "auto":
            raise ConfigError("train.batch_size: auto is for classifiers; give a number")
        return min(recipe.train.batch_size, len(index.train) // processes.world_size)

    def train_loader(
        self, index: DetectionIndex, built: BuiltModel, recipe: Recipe, batch_size: int, processes: Processes
    ) -> TrainLoader:
        """The training images, changed at random as the recipe says."""
        transform = train_transform(recipe, built.preprocess)
        dataset = self._dataset(index.train, transform, recipe, masks=_detector(built.model).has_masks)
        return dense_train_loader(dataset, recipe, batch_size, processes, collate_detection)

    def val_loader(
        self, index: DetectionIndex, built: BuiltModel, recipe: Recipe, batch_size: int, processes: Processes
    ) -> Any:
        """The held-out images, whole."""
        dataset = self._dataset(index.val, whole_image(built), recipe)
        return dense_eval_loader(dataset, recipe.data, batch_size, processes, list)

    def objective(self, recipe: Recipe, index: DetectionIndex, built: BuiltModel, device: torch.device) -> Objective:
        """torchvision's losses."""
        return DetectionObjective(_detector(built.model).has_masks)

    def judge(self, network: nn.Module, loader: Any, plan: RunPlan, device: torch.device) -> Judged:
        """COCO's AP, by boxes and by masks; chosen by masks where there are some."""
        detector, samples = _detector(network), loader.dataset.samples
        found = found_in(detector, loader, device, plan.processes)
        boxes = coco_figures(samples, found, detector.num_classes, "boxes")
        figures = {"val_ap": boxes.ap or 0.0, "val_ap50": boxes.ap50 or 0.0, "val_ap75": boxes.ap75 or 0.0}
        if not detector.has_masks:
            return Judged(figures, figures["val_ap"])
        figures["val_mask_ap"] = coco_figures(samples, found, detector.num_classes, "masks").ap or 0.0
        return Judged(figures, figures["val_mask_ap"])

    def said(self, row: dict[str, Any]) -> list[str]:
        """AP of the held-out images."""
        if row["val_ap"] is None:
            return []
        said = [f"held-out AP {row['val_ap']:.1%}", f"AP50 {row['val_ap50']:.1%}"]
        return said + ([f"masks {row['val_mask_ap']:.1%}"] if row["val_mask_ap"] is not None else [])

    def finish(self, plan: RunPlan, index: DetectionIndex, built: BuiltModel, network: nn.Module) -> Final:
        """Evaluate the network on the held-out images."""
        artefact = Artefact(
            built.architecture, built.arguments, index.classes, built.preprocess, task="detection", sides=built.sides,
            model=network,
        )  # fmt: skip
        if not index.val:
            return Final(artefact)
        device = torch.device(plan.processes.device(pick_device(plan.recipe.train.device)))
        loader = self.val_loader(index, built, plan.recipe, plan.recipe.train.eval_batch_size or 4, plan.processes)
        detector = _detector(network).to(device)
        evaluation = evaluated(detector, index.classes, "val", loader, device, plan.processes, index.skipped)
        network.cpu()
        return Final(artefact, evaluation)

    def _dataset(
        self, samples: Sequence[DetectionSample], transform: Any, recipe: Recipe, masks: bool = False
    ) -> DetectionDataset:
        data = recipe.data
        return DetectionDataset(
            samples, transform, seed=recipe.seed, masks=masks, max_pixels=data.max_pixels, max_bytes=data.max_bytes
        )


def evaluated(
    detector: Detector,
    classes: list[str],
    split: str,
    loader: Any,
    device: torch.device,
    processes: Processes = SINGLE,
    skipped: Sequence[Skipped] = (),
) -> DetectionEvaluation:
    """Find objects in a loader's images, and count; every process must call it."""
    samples = loader.dataset.samples
    with eval_mode(detector):
        found = found_in(detector, loader, device, processes)
    boxes = coco_figures(samples, found, len(classes), "boxes")
    annotated = any(sample.has_mask.any() for sample in samples)
    masks = coco_figures(samples, found, len(classes), "masks") if detector.has_masks and annotated else None
    return DetectionEvaluation(classes, split, boxes, masks, found, samples, list(skipped))


def _detector(network: nn.Module) -> Detector:
    assert isinstance(network, Detector)
    return network


DETECTION = Detection()
