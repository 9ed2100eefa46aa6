"""Optimiser and learning rate as a recipe describes them, from timm, and which parameters learn at all."""

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any
from weakref import WeakKeyDictionary

import torch
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from cmtvision.errors import ConfigError
from cmtvision.recipe import OptimSection, Recipe

# What set_head_only has changed in a network: the parameters it froze and the batch norms it stopped.
_HELD: "WeakKeyDictionary[nn.Module, tuple[list[nn.Parameter], list[nn.Module]]]" = WeakKeyDictionary()


def peak_lr(recipe: Recipe, effective_batch: int) -> float:
    """The highest learning rate: the recipe's, times effective batch / lr_base_batch where it names one.

    Args:
        recipe: what the run is.
        effective_batch: photos of one optimiser step, over all processes and accumulated batches.
    """
    optim = recipe.optim
    return optim.lr * (effective_batch / optim.lr_base_batch if optim.lr_base_batch else 1.0)


def build_optimizer(model: nn.Module, recipe: Recipe, peak_lr: float, device: torch.device) -> Optimizer:
    """The recipe's optimiser over the parameters that learn (freeze=backbone: the classifier's).

    Biases and one-dimensional parameters are not decayed, nor what the model's ``no_weight_decay`` names; CMT names
    nothing, so its position bias tables are decayed. With layer_decay each layer is a group with its ``lr_scale``.
    Build it before ``set_head_only``: what is frozen at this moment never gets a place in it.

    Raises:
        ConfigError: no such optimiser, a setting that it does not have, or a classifier alone without parameters.
    """
    optim = recipe.optim
    freeze(model, recipe)
    kwargs = _own_settings(optim)
    # a fused step unscales fp16 gradients itself, after the clipping
    if optim.name == "adamw" and recipe.train.precision != "fp16" and device.type in ("cpu", "cuda"):
        kwargs["fused"] = True
    return create_optimizer_v2(
        model,
        opt=optim.name,
        lr=peak_lr,
        weight_decay=optim.weight_decay,
        layer_decay=optim.layer_decay,
        **kwargs,
    )


def freeze(model: nn.Module, recipe: Recipe) -> None:
    """Carry out model.freeze for the rest of the run: 'backbone' leaves only the classifier's parameters to learn.

    Raises:
        ConfigError: the classifier has no parameters.
    """
    if recipe.model.freeze == "backbone":
        for parameter in _backbone_parameters(model):
            parameter.requires_grad_(False)


def learns_head_only(recipe: Recipe, epoch: int) -> bool:
    """Whether the classifier alone learns in an epoch, counted from 0: a frozen backbone, or head warm-up."""
    return recipe.model.freeze == "backbone" or epoch < recipe.optim.head_warmup_epochs


def set_head_only(model: nn.Module, head_only: bool) -> None:
    """Let the classifier alone learn, or undo that.

    Everything but ``model.get_classifier()`` stops getting gradients, and its batch norms use their running
    statistics and leave them as they are. ``model.train()`` starts batch norms again, so call this after it, as often
    as needed. Undoing restores what this function has changed and no more: what was frozen before stays frozen.

    Raises:
        ConfigError: the classifier has no parameters.
    """
    if not head_only:
        parameters, norms = _HELD.pop(model, ([], []))
        for parameter in parameters:
            parameter.requires_grad_(True)
        for norm in norms:
            norm.train(model.training)
        return
    parameters, norms = _HELD.setdefault(model, ([], []))
    for parameter in _backbone_parameters(model):
        if parameter.requires_grad:
            parameter.requires_grad_(False)
            parameter.grad = None  # an old gradient would go on moving it
            parameters.append(parameter)
    held = set(map(id, norms))
    inside = {id(module) for part in _classifier(model) for module in part.modules()}
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.training and id(module) not in inside:
            module.eval()
            if id(module) not in held:
                norms.append(module)


def build_scheduler(optimizer: Optimizer, recipe: Recipe, steps_per_epoch: int) -> Scheduler:
    """Linear warm-up, cosine, cool-down; the optimiser stands at the rate of the first step when this returns.

    The cosine spans all ``schedule.epochs``, the warm-up's included (its rates hide the cosine's beginning), and the
    rate stays at min_lr after it. Warm-up and min rates of a layer are scaled as its peak is.
    """
    schedule = recipe.schedule
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=schedule.epochs,
        warmup_epochs=schedule.warmup_epochs,  # type: ignore[arg-type]  # timm takes fractions too
        warmup_lr=schedule.warmup_lr,
        min_lr=schedule.min_lr,
        cooldown_epochs=schedule.cooldown_epochs,
        step_on_epochs=schedule.step == "epoch",
        updates_per_epoch=steps_per_epoch,
    )
    assert scheduler is not None  # only sched='none' gives none
    return scheduler


def step_epoch(scheduler: Scheduler, recipe: Recipe, finished_epoch: int) -> None:
    """Set the rate of the epoch after ``finished_epoch`` (from 0); does nothing where the schedule goes by the step.

    ``schedule.late`` gives the scheduler the finished epoch's number instead of the next one's, as the released code
    does: epochs 0 and 1 both run at warmup_lr, and every later one at the rate meant for the epoch before.
    """
    scheduler.step(finished_epoch if recipe.schedule.late else finished_epoch + 1)


def lr_curve(recipe: Recipe, effective_batch: int, steps_per_epoch: int) -> list[float]:
    """The learning rate at the beginning of every epoch, cool-down included, of the classifier where layers differ."""
    peak = peak_lr(recipe, effective_batch)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler = build_scheduler(optimizer, recipe, steps_per_epoch)
    rates = []
    for epoch in range(recipe.schedule.total_epochs):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        step_epoch(scheduler, recipe, epoch)
        scheduler.step_update((epoch + 1) * steps_per_epoch)
    return rates


def _own_settings(optim: OptimSection) -> dict[str, Any]:
    """betas and eps for an optimiser that has them; given to one that has not, they would be read by nothing."""
    try:
        info = get_optimizer_info(optim.name)
    except ValueError:
        close = get_close_matches(optim.name, list_optimizers(), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"optim.name: timm has no optimiser {optim.name!r}{hint}") from None
    settings: dict[str, Any] = {}
    for key, has in (("betas", info.has_betas and info.num_betas == 2), ("eps", info.has_eps)):
        value = getattr(optim, key)
        if has:
            settings[key] = value
        elif value != OptimSection.model_fields[key].default:
            raise ConfigError(f"optim.{key}: {optim.name} has no such setting; leave it out")
    return settings


def _classifier(model: nn.Module) -> list[nn.Module]:
    """The classifier's modules; distilled networks of timm have two."""
    found: Any = model.get_classifier() if hasattr(model, "get_classifier") else None  # type: ignore[operator]
    candidates: list[Any] = list(found) if isinstance(found, tuple | list) else [found]
    parts = [part for part in candidates if isinstance(part, nn.Module)]
    if not any(True for part in parts for _ in part.parameters()):
        raise ConfigError(
            f"{type(model).__name__}: no classifier with parameters, so it cannot learn alone; "
            "set model.freeze=none optim.head_warmup_epochs=0"
        )
    return parts


def _backbone_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    inside = {id(parameter) for part in _classifier(model) for parameter in part.parameters()}
    return (parameter for parameter in model.parameters() if id(parameter) not in inside)
