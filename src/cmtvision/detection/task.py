"""Detection and instance segmentation as tasks of the engine: torchvision's losses, COCO's figures."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from cmtvision.artefact.card import Task as Kind
from cmtvision.artefact.dense import MIN_SCORE_FIGURE, DetectionPredictor, find
from cmtvision.artefact.detections import Detections, merged
from cmtvision.data import DetectionIndex, DetectionSample
from cmtvision.data.annotations import read_detection
from cmtvision.data.training.dense_dataset import DetectionDataset, collate_detection
from cmtvision.detection.metrics import DetectionFigures, OperatingPoint, coco_figures, coco_library, operating_point
from cmtvision.engine.build import BuiltModel
from cmtvision.engine.dense.task import DenseEvaluation, DenseTask, each_seen
from cmtvision.engine.distributed.processes import SINGLE, Processes
from cmtvision.engine.evaluation.outputs import Progress, eval_mode
from cmtvision.engine.plan import RunPlan
from cmtvision.engine.task import Judged, Objective, Place
from cmtvision.errors import ConfigError
from cmtvision.models.dense import is_segmenter
from cmtvision.models.dense_names import split_name
from cmtvision.models.detectors import KINDS, Detector
from cmtvision.recipe import DataSection, Recipe


@dataclass(frozen=True, kw_only=True)
class DetectionEvaluation(DenseEvaluation):
    """What an evaluation of a detector counted.

    Attributes:
        boxes, masks: COCO's figures by boxes, and by masks where the network finds them and the images have some.
        found: what was found in each image, by its place in ``samples``.
    """

    task: ClassVar[Kind] = "detection"
    score: ClassVar[str] = "AP"

    boxes: DetectionFigures
    masks: DetectionFigures | None = None
    found: Mapping[int, Detections] = field(default_factory=dict)

    @cached_property
    def point(self) -> OperatingPoint | None:
        """From which confidence on boxes are best shown; None where none is right."""
        return operating_point(self.samples, self.found)

    def headline(self) -> str:
        """AP, of boxes and of masks, in words."""
        said = f"AP {_percent(self.boxes.ap)} (AP50 {_percent(self.boxes.ap50)}"
        said += f", {self.boxes.num_objects:,} objects in {self.num_images:,} images)"
        said += f", of masks {_percent(self.masks.ap)}" if self.masks is not None else ""
        return said + (f"; F1 is best from a confidence of {self.point.score:.0%}" if self.point is not None else "")

    def summary(self) -> dict[str, Any]:
        """The figures that an artefact carries."""
        figures = {"num_images": self.num_images, "ap": self.boxes.ap, "ap50": self.boxes.ap50, "ap75": self.boxes.ap75}
        figures |= {"mask_ap": self.masks.ap} if self.masks is not None else {}
        return figures | ({MIN_SCORE_FIGURE: self.point.score} if self.point is not None else {})

    def by_class(self) -> Sequence[float | None]:
        """AP of boxes of each class."""
        return self.boxes.ap_by_class

    def details(self) -> dict[str, Any]:
        """All of COCO's figures, and the best confidence to show boxes from."""
        return {
            "boxes": asdict(self.boxes),
            "masks": None if self.masks is None else asdict(self.masks),
            "operating_point": None if self.point is None else self.point._asdict(),
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


class DetectionTask(DenseTask):
    """Boxes around objects, and their masks with a Mask R-CNN."""

    kind: ClassVar[Kind] = "detection"
    command: str = "cmtvision detect train"
    figures: tuple[str, ...] = ("val_ap", "val_ap50", "val_ap75", "val_mask_ap")
    predictor = DetectionPredictor
    annotated = read_detection
    batched = collate_detection

    def check_network(self, name: str) -> None:
        """Raise ConfigError for a network that is no detector."""
        if is_segmenter(name):
            raise ConfigError(f"model.name: {name!r} is a segmenter; `cmtvision segment train` trains it")
        split_name(name, KINDS, "detector")

    def check(self, recipe: Recipe) -> None:
        """As of ``DenseTask``; a ConfigError as well where faster-coco-eval is not installed."""
        super().check(recipe)
        coco_library()

    def evaluate(self, *args: Any, **how: Any) -> Any:
        """See ``DenseTask.evaluate``; a ConfigError before anything is read where faster-coco-eval is not installed."""
        coco_library()
        return super().evaluate(*args, **how)

    def read(self, recipe: Recipe, data: str | Path) -> DetectionIndex:
        """See ``cmtvision.data.annotations.read_detection``."""
        index: DetectionIndex = super().read(recipe, data)
        if recipe.model.name.endswith("_maskrcnn") and not index.has_masks:
            raise ConfigError(f"{data}: has no outlines for {recipe.model.name} to learn; take a detector of boxes")
        return index

    def dataset(
        self,
        samples: Sequence[DetectionSample],
        transform: Any,
        data: DataSection,
        seed: int = 0,
        network: nn.Module | None = None,
    ) -> DetectionDataset:
        """The images with their boxes, and their masks where the network learns them."""
        masks = network is not None and _detector(network).has_masks
        limits = {"max_pixels": data.max_pixels, "max_bytes": data.max_bytes}
        return DetectionDataset(samples, transform, seed=seed, masks=masks, **limits)

    def objective(self, recipe: Recipe, index: DetectionIndex, built: BuiltModel, device: torch.device) -> Objective:
        """torchvision's losses."""
        return DetectionObjective(_detector(built.model).has_masks)

    def judge(self, network: nn.Module, loader: Any, plan: RunPlan, device: torch.device) -> Judged:
        """COCO's AP, by boxes and by masks; chosen by masks where there are some."""
        with eval_mode(network):
            found = self.evaluated(network, loader, device, plan.processes)
        figures = {f"val_{name}": getattr(found.boxes, name) or 0.0 for name in ("ap", "ap50", "ap75")}
        if not _detector(network).has_masks:
            return Judged(figures, figures["val_ap"])
        figures["val_mask_ap"] = (found.masks.ap if found.masks is not None else None) or 0.0
        return Judged(figures, figures["val_mask_ap"])

    def said(self, row: dict[str, Any]) -> list[str]:
        """AP of the held-out images."""
        if row["val_ap"] is None:
            return []
        said = [f"held-out AP {row['val_ap']:.1%}", f"AP50 {row['val_ap50']:.1%}"]
        return said + ([f"masks {row['val_mask_ap']:.1%}"] if row["val_mask_ap"] is not None else [])

    def evaluated(
        self,
        network: Any,
        loader: Any,
        device: torch.device,
        processes: Processes = SINGLE,
        progress: Progress | None = None,
        **how: Any,
    ) -> DetectionEvaluation:
        """Find objects in a loader's images, and count."""
        samples = loader.dataset.samples
        own: dict[int, Detections] = {}
        for image, target, place in each_seen(loader, processes, progress):
            own[int(place)] = find(network, image.to(device), target["scale"], target["original_size"])
        found = merged(processes.gather(own))
        boxes = coco_figures(samples, found, network.num_classes, "boxes")
        annotated = any(sample.has_mask.any() for sample in samples)
        masks = None
        if network.has_masks and annotated:
            masks = coco_figures(samples, found, network.num_classes, "masks")
        return DetectionEvaluation(boxes=boxes, masks=masks, found=found, samples=samples)


def _detector(network: nn.Module) -> Detector:
    assert isinstance(network, Detector)
    return network


DETECTION = DetectionTask()
