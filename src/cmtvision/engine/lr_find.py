"""A learning rate from one short sweep (Smith, 'Cyclical learning rates', 2017): the real training step, lr growing.

The rate of step i of n is start * (end / start)^(i / (n - 1)). The losses l_i are smoothed with bias correction,

    s_i = b s_(i-1) + (1 - b) l_i,    L_i = s_i / (1 - b^(i+1))

and the sweep ends early where L_i is no number or over four times the lowest so far. With m the place of the lowest L,
the suggestion is the smaller of two rules of thumb: where L falls steepest against log lr in front of m, and a tenth of
the rate at m. Smith's article trains with SGD and reads the plot by eye; the two rules are common practice since.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cmtvision.artefact.predictor import pick_device
from cmtvision.engine.build import build_model
from cmtvision.engine.classification import CLASSIFICATION
from cmtvision.engine.held_out import read_photos
from cmtvision.engine.lightning_settings import run_settings, trainer_precision
from cmtvision.engine.loaders import Batch, TrainLoader
from cmtvision.engine.module import TrainingModule
from cmtvision.engine.optim import set_head_only
from cmtvision.errors import ConfigError
from cmtvision.recipe import Recipe

SMOOTHING = 0.9
DIVERGED = 4.0
SHARE_OF_MINIMUM = 0.1
_SETTLE = 5  # the first losses: of single batches, not yet smooth
_FALL = 0.05  # share of its first value that the loss must fall by, for a suggestion to mean anything

_AUTOCAST = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class LrCurve:
    """What a sweep saw. Rates are those of a step; ``setting`` turns one into the recipe's ``optim.lr``.

    Attributes:
        lrs, losses, smoothed: of each step.
        suggestion: the rate to train with, None where the loss never fell.
        steepest, minimum: the rates where the smoothed loss fell steepest and where it was lowest.
        diverged: whether the sweep ended because the loss grew.
        effective_batch: photos of a step.
        lr_base_batch: the recipe's.
        recipe_lr: the peak rate that the recipe has now.
    """

    lrs: list[float]
    losses: list[float]
    smoothed: list[float]
    suggestion: float | None
    steepest: float | None
    minimum: float
    diverged: bool
    effective_batch: int
    lr_base_batch: int | None
    recipe_lr: float

    def setting(self, lr: float) -> float:
        """The value of ``optim.lr`` with which training peaks at a rate."""
        return lr * self.lr_base_batch / self.effective_batch if self.lr_base_batch else lr


def find_lr(
    recipe: Recipe,
    data: str | Path,
    *,
    start: float = 1e-6,
    end: float = 1.0,
    steps: int = 100,
    progress: Progress | None = None,
) -> LrCurve:
    """Sweep the learning rate over the training photos. Nothing is written, and random states come back as they were.

    The network, its weights, augmentation, mixing, loss, teacher, optimiser and clipping are the recipe's; schedule,
    EMA and ``train.compile`` play no part. Held-out photos are not looked at. Where layers have rates of their own
    (``optim.layer_decay``) the rate is the classifier's.

    Args:
        recipe: what would be trained.
        data: the photos, as for ``fit``.
        start, end: the rates to begin and to end with.
        steps: optimiser steps of the whole sweep.
        progress: called as progress(done, total).

    Raises:
        ConfigError: a range that is none, too few steps, or a loss that is no number from the beginning.
        DataError: photos that cannot be used.
    """
    if not 0 < start < end:
        raise ConfigError(f"lr range: got {start:g} to {end:g}, expected two rates above 0, the smaller first")
    if steps < 4 * _SETTLE:
        raise ConfigError(f"steps: got {steps}, expected {4 * _SETTLE} at least")
    device = torch.device(pick_device(recipe.train.device))
    index = read_photos(recipe, data)
    with run_settings(recipe):
        built = build_model(recipe, len(index.classes))
        if recipe.train.channels_last:
            built.model.to(memory_format=torch.channels_last)
        model = built.model.to(device).train()
        batch_size = CLASSIFICATION.batch_size(recipe, built, device, index)
        effective = batch_size * recipe.train.accumulate
        loader = CLASSIFICATION.train_loader(index, built, recipe, batch_size)
        eager = recipe.model_copy(update={"train": recipe.train.model_copy(update={"compile": False})})
        objective = CLASSIFICATION.objective(recipe, index, built, device)
        module = TrainingModule(model, eager, objective, len(loader), effective)
        lrs = np.geomspace(start, end, steps).tolist()
        losses, smoothed, diverged = _sweep(module, recipe, loader, lrs, device, progress)
    steepest, minimum = read_curve(lrs[: len(smoothed)], smoothed)
    suggestion = None if steepest is None else min(steepest, minimum * SHARE_OF_MINIMUM)
    return LrCurve(
        lrs=lrs[: len(losses)],
        losses=losses,
        smoothed=smoothed,
        suggestion=suggestion,
        steepest=steepest,
        minimum=minimum,
        diverged=diverged,
        effective_batch=effective,
        lr_base_batch=recipe.optim.lr_base_batch,
        recipe_lr=module.peak_lr,
    )


def smooth(losses: list[float]) -> list[float]:
    """Exponential averages of the losses so far, corrected for beginning at 0."""
    smoothed, average = [], 0.0
    for place, loss in enumerate(losses):
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        smoothed.append(average / (1 - SMOOTHING ** (place + 1)))
    return smoothed


def read_curve(lrs: list[float], smoothed: list[float]) -> tuple[float | None, float]:
    """The rate where the smoothed loss falls steepest (None where it never falls), and where it is lowest."""
    values = np.asarray(smoothed)
    lowest = int(values.argmin())
    if lowest <= _SETTLE or values[lowest] > values[: _SETTLE + 1].min() * (1 - _FALL):
        return None, lrs[lowest]
    slope = np.gradient(values, np.log(np.asarray(lrs)))
    return lrs[_SETTLE + int(slope[_SETTLE:lowest].argmin())], lrs[lowest]


def _sweep(
    module: TrainingModule,
    recipe: Recipe,
    loader: TrainLoader,
    lrs: list[float],
    device: torch.device,
    progress: Progress | None,
) -> tuple[list[float], list[float], bool]:
    optimizer = module.new_optimizer(1.0, device)
    learned = list(module.parameters())
    # as timm's scheduler does it: a group's own share of the rate
    shares = [float(group.get("lr_scale", 1.0)) for group in optimizer.param_groups]
    kind = _AUTOCAST[trainer_precision(recipe, device)]
    scaler = torch.amp.GradScaler(device.type, enabled=kind is torch.float16)
    if recipe.model.freeze == "backbone":
        set_head_only(module.model, True)
    batches = _endless(loader)
    losses: list[float] = []
    smoothed: list[float] = []
    for place, lr in enumerate(lrs):
        for group, share in zip(optimizer.param_groups, shares, strict=True):
            group["lr"] = lr * share
        loss = 0.0
        optimizer.zero_grad(set_to_none=True)
        for part in range(recipe.train.accumulate):
            images, targets, indices = next(batches)
            batch = (images.to(device), targets.to(device), indices)
            with torch.autocast(device.type, kind or torch.bfloat16, enabled=kind is not None):
                step_loss = module.training_step(batch, place * recipe.train.accumulate + part)
            scaler.scale(step_loss / recipe.train.accumulate).backward()
            loss += float(step_loss.detach()) / recipe.train.accumulate
        if not np.isfinite(loss):
            break
        losses.append(loss)
        smoothed = smooth(losses)
        if progress is not None:
            progress(place + 1, len(lrs))
        if smoothed[-1] > DIVERGED * min(smoothed):
            break
        scaler.unscale_(optimizer)
        if recipe.optim.clip_grad_norm:
            nn.utils.clip_grad_norm_(learned, recipe.optim.clip_grad_norm)
        scaler.step(optimizer)
        scaler.update()
    else:
        return losses, smoothed, False
    if len(losses) <= 2 * _SETTLE:
        raise ConfigError(
            f"the loss grew or was no number within {len(losses) + 1} steps of lr {lrs[0]:g}; begin lower, or see "
            "whether photos, weights and optim.clip_grad_norm are as they should be"
        )
    return losses, smoothed, True


def _endless(loader: TrainLoader) -> Iterator[Batch]:
    epoch = 0
    while True:
        loader.begin_epoch(epoch)
        yield from loader
        epoch += 1
