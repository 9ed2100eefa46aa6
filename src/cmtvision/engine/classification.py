"""Classification as a task of the engine: labelled images, cross-entropy and its relatives, top-1 accuracy or mAP."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cmtvision.artefact import Artefact, Predictor
from cmtvision.artefact.files import Task as Kind
from cmtvision.artefact.predictor import pick_device
from cmtvision.data import DatasetIndex
from cmtvision.data.training.augment import mixer
from cmtvision.engine.batch_size import choose_batch_size
from cmtvision.engine.build import BuiltModel, build_model
from cmtvision.engine.calibrate import fit_recorded
from cmtvision.engine.distillation.distill import Distiller, build_distiller
from cmtvision.engine.distributed.processes import SINGLE, Processes
from cmtvision.engine.evaluation.evaluate import evaluate_samples
from cmtvision.engine.evaluation.multilabel import mean_average_precision
from cmtvision.engine.evaluation.outputs import eval_mode, gather_logits, network_forward
from cmtvision.engine.evaluation.recorder import Recorder
from cmtvision.engine.held_out import read_photos
from cmtvision.engine.loaders import TrainLoader, class_counts, eval_loader, train_loader
from cmtvision.engine.losses import build_loss
from cmtvision.engine.plan import RunPlan
from cmtvision.engine.task import Final, Judged, Objective, Place
from cmtvision.errors import DataError
from cmtvision.recipe import Recipe


class ClassifierObjective:
    """The loss of labelled images: they are mixed, and learned from the labels and from a teacher where there is one.

    Args:
        recipe: what the run is.
        class_counts: training images of each class, whose number is the width of the logits.
        distiller: the teacher; None to learn from the labels alone.
    """

    def __init__(self, recipe: Recipe, class_counts: Sequence[int], distiller: Distiller | None = None) -> None:
        self.recipe = recipe
        self.teacher = distiller
        self.distiller: nn.Module | None = distiller
        self.mixer = mixer(recipe.augment, len(class_counts))
        self.loss = build_loss(recipe, class_counts)

    def __call__(self, network: Any, batch: Any, place: Place) -> torch.Tensor:
        """The loss of a batch (images (B, C, H, W), targets (B,) or (B, classes), their numbers)."""
        images, targets, _ = batch
        if self.mixer is not None:
            images, targets = self.mixer(
                images, targets, seed=self.recipe.seed, epoch=place.epoch, step=place.step, scheduled=place.scheduled
            )
        if self.recipe.train.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        if self.teacher is None:
            return self.loss(network(images).float(), targets)
        logits, features = self.teacher.student_forward(network, images)
        own = self.loss(logits.float(), targets)
        share = self.recipe.distill.alpha
        return (1 - share) * own + share * self.teacher(images, logits.float(), features)


class Classification:
    """Images of one class each, or of several (``data.multi_label``); see ``engine.task.Task``."""

    command: str = "cmtvision train"
    figures: tuple[str, ...] = ("val_loss", "val_top1", "val_top5", "val_map")
    smaller: str = "train.batch_size=auto, model.grad_checkpointing=true or a smaller model.img_size"

    def read(self, recipe: Recipe, data: str | Path) -> DatasetIndex:
        """See ``cmtvision.data.read_dataset``."""
        return read_photos(recipe, data)

    def listing(self, index: DatasetIndex) -> DatasetIndex:
        """The same."""
        return index

    def in_parts(self, index: DatasetIndex, listing: DatasetIndex) -> DatasetIndex:
        """The listing, which is an index of labelled images itself."""
        return listing

    def build(self, recipe: Recipe, index: DatasetIndex, resume: bool) -> BuiltModel:
        """The recipe's network, with a logit for each class."""
        return build_model(recipe, len(index.classes), resume=resume)

    def batch_size(
        self,
        recipe: Recipe,
        built: BuiltModel,
        device: torch.device,
        index: DatasetIndex,
        processes: Processes = SINGLE,
    ) -> int:
        """What the recipe asks for, or what fits."""
        return choose_batch_size(recipe, built.model, built.input_size, device, len(index.train), processes)

    def train_loader(
        self,
        index: DatasetIndex,
        built: BuiltModel,
        recipe: Recipe,
        batch_size: int,
        processes: Processes = SINGLE,
    ) -> TrainLoader:
        """The training images, changed at random as the recipe says."""
        return train_loader(index, built.preprocess, recipe, batch_size, processes)

    def val_loader(
        self, index: DatasetIndex, built: BuiltModel, recipe: Recipe, batch_size: int, processes: Processes
    ) -> Any:
        """The held-out images as evaluation sees them."""
        return eval_loader(
            index.val,
            built.preprocess,
            recipe.data,
            batch_size,
            cache=recipe.data.cache,
            share=processes.share(len(index.val)),
            num_classes=len(index.classes),
            local_world_size=processes.local_world_size,
        )

    def objective(self, recipe: Recipe, index: DatasetIndex, built: BuiltModel, device: torch.device) -> Objective:
        """The recipe's loss, with its teacher."""
        distiller = build_distiller(recipe, index.classes, built.model, built.input_size, device)
        return ClassifierObjective(recipe, class_counts(index.train, len(index.classes)), distiller)

    def judge(self, network: nn.Module, loader: Any, plan: RunPlan, device: torch.device) -> Judged:
        """Loss and top-1 and top-5 accuracy; of several labels an image, loss and mAP."""
        forward = network_forward(network, device, plan.recipe.train.channels_last)
        with eval_mode(network):
            seen = gather_logits(forward, loader, plan.processes)
        count, figures = len(seen.targets), {"val_loss": seen.mean_loss()}
        if plan.recipe.data.multi_label:
            score = figures["val_map"] = mean_average_precision(seen.logits, seen.targets)
        else:
            score = figures["val_top1"] = seen.correct() / count
            figures["val_top5"] = seen.correct_among_five() / count
        return Judged(figures, score)

    def said(self, row: dict[str, Any]) -> list[str]:
        """Held-out loss, and top-1 accuracy or mAP."""
        parts = []
        if row["val_top1"] is not None:
            parts += [f"held-out loss {row['val_loss']:.4f}", f"top-1 {row['val_top1']:.2%}"]
        if row["val_map"] is not None:
            parts += [f"held-out loss {row['val_loss']:.4f}", f"mAP {row['val_map']:.2%}"]
        return parts

    def finish(self, plan: RunPlan, index: DatasetIndex, built: BuiltModel, network: nn.Module) -> Final:
        """Evaluate the network on the held-out images, and calibrate it on them."""
        recipe, processes = plan.recipe, plan.processes
        kind: Kind = "multi-label" if index.multi_label else "single-label"
        artefact = Artefact(
            built.architecture, built.arguments, index.classes, built.preprocess, task=kind, model=network
        )
        if not index.val:
            return Final(artefact)
        predictor = Predictor(artefact, processes.device(pick_device(recipe.train.device)))
        recorder = None if index.multi_label else Recorder(predictor, len(index.val))
        evaluation = evaluate_samples(
            predictor, index.val, recipe.data, 128, "val", index.skipped, processes=processes, recorder=recorder
        )
        trust, bank = None, None
        if recorder is not None:
            with suppress(DataError):  # logits that are no numbers: a run without a calibration
                trust, bank = fit_recorded(
                    recorder,
                    "val",
                    chose_epoch=recipe.train.early_stop_patience is not None,
                    arithmetic=predictor.runtime.arithmetic,
                    processes=processes,
                )
        network.cpu()
        return Final(artefact, evaluation, trust, bank)


CLASSIFICATION = Classification()
