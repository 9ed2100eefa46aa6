"""The training step: network, loss, mixing of images, optimiser and learning rate."""

from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn

from cmtvision.data.augment import mixer
from cmtvision.engine.loaders import Batch
from cmtvision.recipe import Recipe


class TrainingModule(pl.LightningModule):
    """A classifier in training, as a recipe describes it.

    Args:
        model: the network; ``compile`` in the recipe wraps it, not this module.
        recipe: what the run is.
        num_classes: width of the logits.
        steps_per_epoch: optimiser steps in an epoch.
        effective_batch: images that one optimiser step sees, over all devices and accumulated batches.
    """

    def __init__(
        self, model: nn.Module, recipe: Recipe, num_classes: int, steps_per_epoch: int, effective_batch: int
    ) -> None:
        super().__init__()
        self.model = model
        self.recipe = recipe
        self.steps_per_epoch = steps_per_epoch
        self.peak_lr = recipe.optim.lr * (
            effective_batch / recipe.optim.lr_base_batch if recipe.optim.lr_base_batch else 1.0
        )
        self.mixer = mixer(recipe.augment, num_classes)
        # kept out of the module tree, so that the names of saved weights do not depend on compiling
        self._run = [torch.compile(model, dynamic=False) if recipe.train.compile else model]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) -> logits (B, num_classes)."""
        if self.recipe.train.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        logits: torch.Tensor = self._run[0](images)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """The loss of one batch."""
        images, labels, _ = batch
        if self.mixer is not None:
            images, targets = self.mixer(
                images, labels, seed=self.recipe.seed, epoch=self.current_epoch, step=batch_idx
            )
            return F.cross_entropy(self(images).float(), targets)
        return F.cross_entropy(self(images).float(), labels, label_smoothing=self.recipe.augment.label_smoothing)

    def configure_optimizers(self) -> Any:
        """The recipe's optimiser, without weight decay on biases and norms, and its learning-rate schedule."""
        optim, schedule = self.recipe.optim, self.recipe.schedule
        kwargs: dict[str, Any] = {"betas": optim.betas, "eps": optim.eps} if "adam" in optim.name else {}
        # a fused step unscales fp16 gradients itself, behind the clipping
        if optim.name == "adamw" and self.recipe.train.precision != "fp16" and self.device.type in ("cpu", "cuda"):
            kwargs["fused"] = True
        optimizer = create_optimizer_v2(
            self.model, opt=optim.name, lr=self.peak_lr, weight_decay=optim.weight_decay, **kwargs
        )
        per_epoch = schedule.step == "epoch"
        scheduler, _ = create_scheduler_v2(
            optimizer,
            sched="cosine",
            num_epochs=schedule.epochs,
            warmup_epochs=schedule.warmup_epochs,  # type: ignore[arg-type]  # timm takes fractions too
            warmup_lr=schedule.warmup_lr,
            min_lr=schedule.min_lr,
            cooldown_epochs=schedule.cooldown_epochs,
            step_on_epochs=per_epoch,
            updates_per_epoch=self.steps_per_epoch,
        )
        interval = "epoch" if per_epoch else "step"
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": interval}}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip the norm of all gradients; Lightning's own clipping refuses fused optimisers under autocast."""
        if gradient_clip_val:
            nn.utils.clip_grad_norm_(self.model.parameters(), gradient_clip_val)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Move timm's scheduler to where the run stands."""
        if self.recipe.schedule.step == "epoch":
            scheduler.step(self.current_epoch + 1)
        else:
            scheduler.step_update(self.global_step)
