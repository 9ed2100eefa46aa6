"""The training step: network, objective, optimiser and learning rate."""

from copy import deepcopy
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from cmtvision.engine.distributed.fsdp import is_sharded, shard_network, whole_state, whole_tensor
from cmtvision.engine.optim import (
    build_optimizer,
    build_scheduler,
    learns_head_only,
    peak_lr,
    set_head_only,
    step_epoch,
)
from cmtvision.engine.pace import Pace
from cmtvision.engine.task import Objective, Place
from cmtvision.recipe import Recipe

_NORM_EVERY = 20  # steps between looks at the gradients' norm where nothing clips it


class TrainingModule(pl.LightningModule):
    """A network in training, as a recipe describes it.

    Args:
        model: the network; ``compile`` in the recipe wraps it, not this module.
        recipe: what the run is.
        objective: the loss of a batch.
        steps_per_epoch: optimiser steps in an epoch.
        effective_batch: images that one optimiser step sees, over all processes and accumulated batches.
        rank: of the process, so that no two of a run change a batch alike.
        pace: where the run stands in its schedule; None for one step of the schedule a step.

    Attributes:
        gradient_norm: of the last step that looked, a scalar tensor; None before.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        objective: Objective,
        steps_per_epoch: int,
        effective_batch: int,
        rank: int = 0,
        pace: Pace | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.recipe = recipe
        self.steps_per_epoch = steps_per_epoch
        self.rank = rank
        self.pace = pace or Pace(recipe.schedule.total_epochs * steps_per_epoch, steps_per_epoch)
        self.peak_lr = peak_lr(recipe, effective_batch)
        self.objective = objective
        self.distiller = objective.distiller  # in the module tree: what it learns is saved
        self.gradient_norm: torch.Tensor | None = None
        # kept out of the module tree, so that the names of saved weights do not depend on compiling
        self._run: list[Any] = [torch.compile(model, dynamic=False) if recipe.train.compile else model]
        self._head_only, self._rate_epoch = False, 0
        self._plain: list[nn.Module] = []  # the network before it was spread over processes

    def configure_model(self) -> None:
        """Spread the network over the processes where the strategy is fsdp."""
        if self.device_mesh is not None and not self._plain:
            self._plain.append(deepcopy(self.model).cpu())
            shard_network(self.model, self.device_mesh["data_parallel"])

    def whole(self, network: nn.Module) -> nn.Module:
        """A network like ``model``, to be evaluated and saved: itself, or with fsdp a plain copy on the CPU.

        All processes must call it. They evaluate different numbers of batches, which a network spread over them could
        not. Norms that are not synchronised have other statistics in each process: all take the first one's.
        """
        if not is_sharded(network):
            if dist.is_initialized():
                for buffer in network.buffers():
                    dist.broadcast(buffer, src=0)
            return network
        plain = deepcopy(self._plain[0])
        plain.load_state_dict(whole_state(network))
        return plain

    def forward(self, images: torch.Tensor) -> Any:
        """What the network makes of images (B, C, H, W)."""
        if self.recipe.train.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return self._run[0](images)

    def on_train_start(self) -> None:
        """Freeze what the epoch that training begins or goes on with wants frozen."""
        self._choose_what_learns()
        self._rate_epoch = self.pace.epoch

    def on_train_epoch_start(self) -> None:
        """Freeze what the epoch wants frozen."""
        self._choose_what_learns()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Follow the schedule where a time limit takes it to another of its epochs within one of training."""
        if learns_head_only(self.recipe, self.pace.epoch) != self._head_only:
            self._choose_what_learns()
        if self.recipe.schedule.step == "epoch" and self.pace.epoch != self._rate_epoch:
            self.lr_scheduler_step(self.lr_schedulers(), None)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """The loss of one batch."""
        # a process's own number of batches, so that no two of a run are changed alike
        step = batch_idx + self.rank * self.steps_per_epoch * self.recipe.train.accumulate
        return self.objective(self._run[0], batch, Place(self.current_epoch, step, self.pace.epoch))

    def new_optimizer(self, lr: float, device: torch.device) -> Optimizer:
        """The recipe's optimiser over the network, and over what the objective learns beside it."""
        optimizer = build_optimizer(self.model, self.recipe, lr, device)
        if self.distiller is not None and list(self.distiller.parameters()):
            optimizer.add_param_group({"params": list(self.distiller.parameters()), "lr": lr})
        return optimizer

    def configure_optimizers(self) -> Any:
        """The recipe's optimiser and learning-rate schedule."""
        optimizer = self.new_optimizer(self.peak_lr, self.device)
        scheduler = build_scheduler(optimizer, self.recipe, self.steps_per_epoch)
        interval = "epoch" if self.recipe.schedule.step == "epoch" else "step"
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": interval}}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip the norm of all gradients, and remember it; Lightning's own refuses fused optimisers under autocast."""
        if gradient_clip_val:
            self.gradient_norm = whole_tensor(nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val))
        elif self.global_step % _NORM_EVERY == 0:
            gradients = [p.grad for p in self.parameters() if p.grad is not None]
            self.gradient_norm = whole_tensor(nn.utils.get_total_norm(gradients))

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Move timm's scheduler to where the run stands."""
        self.pace.advance(self.global_step)
        if self.recipe.schedule.step == "epoch":
            step_epoch(scheduler, self.recipe, max(0, self.pace.epoch - 1))
            self._rate_epoch = self.pace.epoch
        else:
            scheduler.step_update(self.pace.position)

    def _choose_what_learns(self) -> None:
        self._head_only = learns_head_only(self.recipe, self.pace.epoch)
        set_head_only(self.model, self._head_only)
