"""What detection and segmentation share as tasks of the engine: annotated images in, figures of held-out images out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.data import DataLoader

from cmtvision.artefact import Artefact
from cmtvision.artefact.card import Task as Kind
from cmtvision.artefact.dense import DetectionPredictor, SegmentationPredictor
from cmtvision.artefact.predictor import pick_device
from cmtvision.artefact.run.data import limits_of, read_annotated_as_the_run
from cmtvision.data import DatasetIndex, EpochSampler, Skipped
from cmtvision.data.annotations.samples import NO_CLASS, AnnotationIndex
from cmtvision.data.annotations.splits import as_in, images_of
from cmtvision.data.training.dense_augment import DenseAugment, DenseTransform
from cmtvision.data.whole_image import WholeImage
from cmtvision.engine.build import BuiltModel
from cmtvision.engine.dense.build import build_dense, scene_of
from cmtvision.engine.distributed.processes import SINGLE, Processes, join_processes
from cmtvision.engine.evaluation.evaluate import Split, choose_samples, evaluation_notes
from cmtvision.engine.evaluation.outputs import Progress, eval_mode
from cmtvision.engine.loaders import TrainLoader, loader_settings
from cmtvision.engine.plan import RunPlan
from cmtvision.engine.task import Final, Judged, Objective
from cmtvision.errors import ConfigError
from cmtvision.recipe import DataSection, Recipe
from cmtvision.recipe.other_tasks import check_no_classifier_settings


@dataclass(frozen=True, kw_only=True)
class DenseEvaluation(ABC):
    """What an evaluation counted.

    Attributes:
        classes: class names.
        split: which images.
        samples: the images.
        skipped: files left out, with reasons.
        notes: what a person should know of the images, a sentence each.
    """

    task: ClassVar[Kind]
    score: ClassVar[str]  # the figure of a class, in words

    classes: list[str] = field(default_factory=list)
    split: str = ""
    samples: Sequence[Any] = ()
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def num_images(self) -> int:
        """Images evaluated."""
        return len(self.samples)

    @abstractmethod
    def headline(self) -> str:
        """The figure to look at first, in words."""

    @abstractmethod
    def summary(self) -> dict[str, Any]:
        """The figures that an artefact carries."""

    @abstractmethod
    def by_class(self) -> Sequence[float | None]:
        """The score of each class, 0 to 1; None of a class that no image has."""

    @abstractmethod
    def details(self) -> dict[str, Any]:
        """All other figures, ready for JSON."""

    def to_dict(self) -> dict[str, Any]:
        """Everything but what was found in single images, ready for JSON."""
        return {
            "task": self.task,
            "split": self.split,
            "classes": self.classes,
            **self.summary(),
            **self.details(),
            "skipped": [{"path": str(item.path), "reason": item.reason} for item in self.skipped],
            "notes": self.notes,
        }


class DenseTask(ABC):
    """A task about places in an image; see ``engine.task.Task``. Images are evaluated whole, one by one.

    Attributes:
        kind: the task of its artefacts.
        predictor: what opens them.
        annotated: reads a folder of images with annotations.
        batched: makes a batch of (image, target, number).
    """

    kind: ClassVar[Kind]
    command: str
    figures: tuple[str, ...]
    smaller: str = (
        "a smaller train.batch_size and a larger train.accumulate, model.grad_checkpointing=true or a smaller "
        "scene.size (with scene.short_sides, shorter ones and a smaller scene.longest)"
    )
    predictor: type[DetectionPredictor] | type[SegmentationPredictor]
    annotated: Callable[..., Any]
    batched: Callable[..., Any]

    @abstractmethod
    def check_network(self, name: str) -> None:
        """Raise ConfigError for the name of a network that has another task."""

    def check(self, recipe: Recipe) -> None:
        """What can be refused before any image is read.

        Raises:
            ConfigError: a network that has another task, or a setting that only classifiers have.
        """
        self.check_network(recipe.model.name)
        check_no_classifier_settings(recipe)
        _batch_size(recipe)

    @abstractmethod
    def dataset(
        self, samples: Sequence[Any], transform: Any, data: DataSection, seed: int = 0, network: nn.Module | None = None
    ) -> Any:
        """The images and what is in them; ``network`` is the one that learns from them, None where none does."""

    @abstractmethod
    def objective(self, recipe: Recipe, index: Any, built: BuiltModel, device: torch.device) -> Objective:
        """What is minimised."""

    @abstractmethod
    def judge(self, network: nn.Module, loader: Any, plan: RunPlan, device: torch.device) -> Judged:
        """What the held-out images say of a network, which is on the device; every process must call it."""

    @abstractmethod
    def said(self, row: dict[str, Any]) -> Sequence[str]:
        """The figures of a row of metrics.csv, for a person."""

    @abstractmethod
    def evaluated(
        self,
        network: Any,
        loader: Any,
        device: torch.device,
        processes: Processes,
        progress: Progress | None = None,
        **how: Any,
    ) -> DenseEvaluation:
        """What a network in eval mode makes of a loader's images, and how good it is; every process must call it.

        The names of the classes, the split and what was left out are the caller's to fill in.
        """

    def read(self, recipe: Recipe, data: str | Path) -> Any:
        """See ``cmtvision.data.annotations``.

        Raises:
            ConfigError: what ``check`` refuses.
            DataError: data that cannot be used.
        """
        self.check(recipe)
        section = recipe.data
        return type(self).annotated(
            data,
            val_fraction=section.val_fraction,
            split_seed=section.split_seed,
            max_pixels=section.max_pixels,
            max_bytes=section.max_bytes,
        )

    def listing(self, index: AnnotationIndex[Any]) -> DatasetIndex:
        """The images as the run folder lists them."""
        return images_of(index)

    def in_parts(self, index: AnnotationIndex[Any], listing: DatasetIndex) -> AnnotationIndex[Any]:
        """The index in a listing's parts."""
        return as_in(index, listing)

    def build(self, recipe: Recipe, index: AnnotationIndex[Any], resume: bool) -> BuiltModel:
        """The recipe's network."""
        return build_dense(recipe, len(index.classes), resume)

    def batch_size(
        self, recipe: Recipe, built: BuiltModel, device: torch.device, index: Any, processes: Processes
    ) -> int:
        """What the recipe says, and no more than there are images.

        Raises:
            ConfigError: it is to be found out, which is for classifiers.
        """
        return min(_batch_size(recipe), len(index.train) // processes.world_size)

    def train_loader(
        self, index: Any, built: BuiltModel, recipe: Recipe, batch_size: int, processes: Processes
    ) -> TrainLoader:
        """The training images: order and changes depend on seed, epoch and image alone."""
        scene = scene_of(recipe)
        augment = DenseAugment(
            scene.size, scene.scale, scene.short_sides, scene.longest, scene.hflip, scene.photometric
        )
        transform = DenseTransform(built.preprocess, augment, NO_CLASS if index.void is None else index.void)
        dataset = self.dataset(index.train, transform, recipe.data, recipe.seed, built.model)
        sampler = EpochSampler(
            len(dataset.samples), recipe.seed, rank=processes.rank, num_replicas=processes.world_size,
            repeats=recipe.data.repeated_aug,
        )  # fmt: skip
        settings = loader_settings(recipe.data, processes.local_world_size)
        settings["collate_fn"] = type(self).batched
        return TrainLoader(dataset, sampler, batch_size=batch_size, drop_last=True, **settings)

    def val_loader(self, index: Any, built: BuiltModel, recipe: Recipe, batch_size: int, processes: Processes) -> Any:
        """This process's share of the held-out images, whole."""
        return self.eval_loader(index.val, WholeImage(built.preprocess, *built.sides), recipe.data, processes)

    def eval_loader(self, samples: Sequence[Any], inputs: WholeImage, data: DataSection, processes: Processes) -> Any:
        """A process's share of the images to evaluate, in order, whole."""
        settings = loader_settings(data, processes.local_world_size)
        share: Any = processes.share(len(samples))
        dataset = self.dataset(samples, inputs, data)
        return DataLoader(dataset, batch_size=1, sampler=share, shuffle=False, collate_fn=list, **settings)

    def finish(self, plan: RunPlan, index: Any, built: BuiltModel, network: nn.Module) -> Final:
        """Evaluate the network on the held-out images."""
        artefact = Artefact(
            built.architecture, built.arguments, index.classes, built.preprocess, task=self.kind, sides=built.sides,
            model=network,
        )  # fmt: skip
        if not index.val:
            return Final(artefact)
        device = torch.device(plan.processes.device(pick_device(plan.recipe.train.device)))
        loader = self.val_loader(index, built, plan.recipe, 1, plan.processes)
        with eval_mode(network.to(device)):
            found = self.evaluated(network, loader, device, plan.processes)
        network.cpu()
        return Final(artefact, replace(found, classes=index.classes, split="val", skipped=index.skipped))

    def evaluate(
        self,
        model: str | Path,
        data: str | Path,
        *,
        split: Split = "val",
        device: str = "auto",
        workers: int | None = None,
        progress: Progress | None = None,
        **how: Any,
    ) -> Any:
        """Measure a trained network; with several processes (torchrun, SLURM) each image is seen by one.

        Args:
            model: its run folder, or an export.
            data: annotated images (see ``cmtvision.data.annotations``). A run's own images are in the parts that the
                run had them in, wherever they are now.
            split: 'val', 'train', 'test' or 'all'.
            device: 'auto', 'cpu', 'cuda' or 'mps'.
            workers: loader processes; None chooses.
            progress: called as progress(done, total).
            how: for segmentation ``window``, see ``cmtvision.artefact.dense.class_map``.

        Raises:
            CheckpointError: the model cannot be opened, or has another task.
            DataError: the data cannot be used, or has no images of that split.
        """
        with join_processes(pick_device(device)) as processes:
            place = processes.device(pick_device(device))
            predictor = self.predictor.open(model, place)
            return self.measure(predictor, model, data, split, workers, processes, progress, **how)

    def measure(
        self,
        predictor: DetectionPredictor | SegmentationPredictor,
        model: str | Path,
        data: str | Path,
        split: Split = "val",
        workers: int | None = None,
        processes: Processes = SINGLE,
        progress: Progress | None = None,
        **how: Any,
    ) -> Any:
        """Measure an opened network, in processes that have been joined or in this one alone; see ``evaluate``."""
        index = processes.first(lambda: read_annotated_as_the_run(model, data, predictor.card))
        samples, chosen = part_of(index, split)
        section = DataSection(workers=workers, **limits_of(model)._asdict())
        loader = self.eval_loader(samples, predictor.inputs_for(how.get("window")), section, processes)
        found = self.evaluated(predictor.network, loader, predictor.device, processes, progress, **how)
        notes = evaluation_notes(images_of(index), chosen)  # with the index's own
        return replace(found, classes=predictor.classes, split=chosen, skipped=index.skipped, notes=notes)


def _batch_size(recipe: Recipe) -> int:
    size = recipe.train.batch_size
    if size == "auto":
        raise ConfigError("train.batch_size: auto is for classifiers; give a number")
    return size


def part_of(index: AnnotationIndex[Any], split: Split) -> tuple[list[Any], str]:
    """The images of a split, and which these are: for 'val', data without a held-out part is taken whole.

    Raises:
        DataError: there are none, or for 'val' none but images that the run was trained on.
    """
    chosen, said = choose_samples(images_of(index), split)
    wanted = {one.path for one in chosen}
    return [one for one in index.samples if one.path in wanted], said


def each_seen(loader: Any, processes: Processes = SINGLE, progress: Progress | None = None) -> Any:
    """(image, target, number) of a loader's images, one by one, and how far it is said to be."""
    total, done = len(loader.dataset.samples), 0
    for batch in loader:
        for one in batch:
            yield one
            done += 1
            if progress is not None:
                progress(min(total, done * processes.world_size), total)
