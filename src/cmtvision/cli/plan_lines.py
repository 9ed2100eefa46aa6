"""The lines of a training plan: batch, steps, learning rate, memory and all other special settings.

They are computed by the code that training itself uses: the epoch's sampler, the learning-rate schedule, the network's
shapes.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmtvision.cli.output import can_show
from cmtvision.recipe.choices import TUNED

if TYPE_CHECKING:
    from cmtvision.data import DatasetIndex
    from cmtvision.engine.choosing.choose import Chosen
    from cmtvision.recipe import Recipe

_BLOCKS, _PLAIN = "▁▂▃▄▅▆▇█", "_.-:=+*#"  # the latter where the terminal has no blocks


def plan_lines(
    chosen: "Chosen", index: "DatasetIndex", data: str | Path, out: Path, resume: bool = False, processes: int = 1
) -> list[str]:
    """The plan, at most ten lines, each a keyword and its text."""
    import torch

    from cmtvision.artefact.predictor import pick_device

    recipe = chosen.recipe
    device = torch.device(pick_device(recipe.train.device))
    model, input_size = _shapes_only(recipe, len(index.classes))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    source = {"seeded": "split by seed", "none": "nothing held out"}.get(index.split_source, "split as the data says")
    test = f"{len(index.test):,} set apart for test, " if index.test else ""
    steps = planned_steps(recipe, len(index.train), processes)
    lines = {
        "data": f"{data}: {len(index.train):,} to train on, {len(index.val):,} held out ({source}), {test}"
        f"{len(index.classes)} classes{_sizes(chosen)}",
        "model": f"{recipe.model.name}, {parameters:,} parameters, {_size(input_size)}, "
        f"from {recipe.model.weights or 'random weights'}{_why(chosen)}",
        "weights": _about_weights(chosen),
        "recipe": _duration(chosen, steps),
        "batch": _batch(recipe, steps, processes),
        "lr": _rates(recipe, steps),
        "memory": _memory(recipe, model, input_size, steps, processes, device),
        "also": ", ".join(extras(recipe, processes)),
        "expect": _expectation(chosen, index),
        "out": f"{out}{' (resumed)' if resume else ''}",
    }
    return [f"{word:<8} {text}" for word, text in lines.items() if text]


def _sizes(chosen: "Chosen") -> str:
    seen = chosen.seen
    if seen is None:
        return ""
    blurred = f", {seen.detail} px of detail" if seen.detail < seen.side else ""
    return f", half of them {seen.side} px or smaller{blurred}"


def _why(chosen: "Chosen") -> str:
    """The reasons for network and size."""
    reasons = [chosen.reason(key) for key in ("model.name", "model.img_size")]
    said = "; ".join(dict.fromkeys(reason for reason in reasons if reason))
    return f": {said}" if said else ""


def _about_weights(chosen: "Chosen") -> str:
    """Why the run starts from released weights, or why it does not and how it could."""
    reason = chosen.reason("model.weights")
    if not reason or chosen.seen is None or reason != chosen.seen.no_weights:
        return reason
    from cmtvision.models.weight_sources import where_released

    name = chosen.recipe.model.name
    if chosen.reason("model.name"):  # with weights, it would be another network
        name = TUNED[0].name
    elif name not in (rung.name for rung in TUNED):
        return reason
    address, folder = where_released(name)
    return (
        f"none to start from ({reason}); with ImageNet weights, few photos are enough: put {address} into {folder}, "
        "or give --weights FILE"
    )


def _expectation(chosen: "Chosen", index: "DatasetIndex") -> str:
    """How long it takes, and how certain its final figure can be."""
    from cmtvision.cli.output import duration

    parts = []
    if chosen.seconds:
        measured = f"{chosen.images_per_second:,.0f} photos/s measured here"
        limit = " at most" if chosen.recipe.train.max_minutes else ""
        parts.append(f"about {duration(chosen.seconds)}{limit} ({measured})")
    if chosen.is_long:
        parts.append("--minutes 30 would fit it into half an hour")
    if index.val and not index.multi_label:
        counts = Counter(sample.label for sample in index.val)
        guess, total = max(counts.values()) / len(index.val), len(index.val)
        half = 98 / math.sqrt(total)  # of a 95% interval, in points, where it is widest
        sign = "±" if can_show("±") else "+-"
        parts.append(f"always guessing the commonest class scores {guess:.1%}")
        parts.append(f"the held-out accuracy will be known to {sign}{half:.2g} points or better")
    return ", ".join(parts)


@dataclass(frozen=True)
class PlannedSteps:
    """Images and steps of a run.

    Attributes:
        batch: images at a time in each process; None if it is chosen at the start, and then the rest is unknown.
        effective: images of one optimiser step, over all processes and accumulated batches.
        per_epoch: optimiser steps in an epoch.
        total: steps of the whole run, cool-down included.
    """

    batch: int | None = None
    effective: int = 0
    per_epoch: int = 0
    total: int = 0


def planned_steps(recipe: "Recipe", num_train: int, processes: int = 1) -> PlannedSteps:
    """How the images of an epoch become steps, counted by the sampler that training uses.

    Raises:
        ConfigError: fewer images than processes.
    """
    from cmtvision.data import EpochSampler

    train, schedule = recipe.train, recipe.schedule
    photos = EpochSampler(num_train, repeats=recipe.data.repeated_aug, num_replicas=processes).without_fill
    if train.batch_size == "auto":
        return PlannedSteps()
    batch = min(train.batch_size, num_train // processes)
    per_epoch = -(-(photos // batch) // train.accumulate)
    total = per_epoch * schedule.total_epochs
    total = min(total, train.max_steps or total)
    return PlannedSteps(
        batch,
        batch * train.accumulate * processes,
        per_epoch,
        total,
    )


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """Values as a row of block characters, the highest a full block; at most ``width`` of them, evenly chosen."""
    count = min(width, len(values))
    chosen = [values[round(i * (len(values) - 1) / max(1, count - 1))] for i in range(count)]
    top, marks = max(chosen), _BLOCKS if can_show(_BLOCKS) else _PLAIN
    return "".join(marks[round(value / top * (len(marks) - 1)) if top else 0] for value in chosen)


def _shapes_only(recipe: "Recipe", num_classes: int) -> tuple[Any, tuple[int, int, int]]:
    """The network on the meta device, in train mode, with the parameters that will be trained requiring gradients."""
    from cmtvision.engine.build import shapes_of
    from cmtvision.engine.optim import freeze, set_head_only

    section = recipe.model
    model, input_size = shapes_of(section, num_classes)
    model.train()
    if section.grad_checkpointing:
        model.set_grad_checkpointing()
    freeze(model, recipe)
    if section.freeze == "backbone":
        set_head_only(model, True)
    return model, input_size


def _size(input_size: tuple[int, int, int]) -> str:
    channels, height, width = input_size
    return f"{height} x {width} px" + ("" if channels == 3 else f" of {channels} channels")


def _duration(chosen: "Chosen", steps: PlannedSteps) -> str:
    recipe = chosen.recipe
    schedule, train = recipe.schedule, recipe.train
    epochs = schedule.total_epochs
    parts = [f"warm-up {schedule.warmup_epochs:g}"]
    if schedule.cooldown_epochs:
        parts.append(f"cool-down {schedule.cooldown_epochs}")
    said = f"{recipe.name}: {epochs} epoch{'' if epochs == 1 else 's'} ({', '.join(parts)})"
    if steps.batch is not None:
        said += f", {steps.total:,} steps of {steps.effective:,} photos"
    if train.early_stop_patience:
        said += f", or until {train.early_stop_patience} bring nothing better"
    if train.max_minutes:
        said += f", or what fits into {train.max_minutes:g} minutes"
    return f"{said}, seed {recipe.seed}"


def _batch(recipe: "Recipe", steps: PlannedSteps, processes: int) -> str:
    if steps.batch is None:
        return "chosen at the start by free memory (train.batch_size: auto)"
    factors = [f"{steps.batch}"]
    if recipe.train.accumulate > 1:
        factors.append(f"{recipe.train.accumulate} accumulated")
    if processes > 1:
        factors.append(f"{processes} processes")
    product = f" = {' x '.join(factors)}" if len(factors) > 1 else ""
    repeated = recipe.data.repeated_aug
    if len(factors) == 1 and repeated == 1:
        return ""  # a word in the line before is enough
    return f"{steps.effective:,} photos a step{product}, {steps.per_epoch:,} steps an epoch" + (
        f", each photo {repeated} times" if repeated > 1 else ""
    )


def _rates(recipe: "Recipe", steps: PlannedSteps) -> str:
    from cmtvision.engine.optim import lr_curve, peak_lr

    optim, schedule = recipe.optim, recipe.schedule
    base = optim.lr_base_batch
    curve = lr_curve(recipe, steps.effective or base or 1, steps.per_epoch or 1)
    if steps.batch is None and base:
        peak = f"{optim.lr:g} for each {base} photos a step"
    else:
        scaled = f" ({optim.lr:g} x {steps.effective:,} / {base})" if base and base != steps.effective else ""
        peak = f"{peak_lr(recipe, steps.effective):.3g}{scaled}"
    late = ", an epoch late as released" if schedule.late else ""
    return (
        f"{sparkline(curve)} from {curve[0]:.3g} up to {peak}, last epoch {curve[-1]:.3g}; "
        f"{optim.name}, by the {schedule.step}{late}"
    )


def _memory(
    recipe: "Recipe",
    model: Any,
    input_size: tuple[int, int, int],
    steps: PlannedSteps,
    processes: int,
    device: Any,
) -> str:
    import torch

    from cmtvision.engine.batch_size import free_bytes
    from cmtvision.engine.memory import training_memory

    precision = recipe.train.precision
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    settled = recipe.model_copy(update={"train": recipe.train.model_copy(update={"precision": precision})})
    need = training_memory(model, settled, input_size, processes)
    kept = {"weights": need.weights, "gradients": need.gradients, "optimizer": need.optimizer, "EMA": need.ema}
    parts = [f"{name} {_bytes(size)}" for name, size in kept.items() if size]
    if need.per_photo is None:
        parts.append("activations unknown")
    elif steps.batch is None:
        parts.append(f"activations {_bytes(need.per_photo)} a photo")
    else:
        parts.append(f"activations {_bytes(need.per_photo * steps.batch)} ({steps.batch} photos, {precision})")
    total = need.total(steps.batch) if steps.batch is not None else None
    said = f"about {_bytes(total)}{' a process' if processes > 1 else ''}: " if total is not None else ""
    free = free_bytes(device)
    short = total is not None and total > free and (processes == 1 or device.type == "cuda")
    warning = f"; only {_bytes(free)} are free: train.batch_size=auto or a smaller one" if short else ""
    return said + ", ".join(parts) + warning


def _bytes(size: float) -> str:
    for unit in ("KB", "MB"):
        size /= 1000
        if size < 999.5:
            return f"{size:.3g} {unit}"
    return f"{size / 1000:.3g} GB"


def extras(recipe: "Recipe", processes: int) -> Iterator[str]:
    """All special settings, in a few words each."""
    model, data, optim, train, distill = recipe.model, recipe.data, recipe.optim, recipe.train, recipe.distill
    if model.freeze == "backbone":
        yield "backbone frozen"
    elif optim.head_warmup_epochs:
        yield f"classifier alone for {optim.head_warmup_epochs} epochs"
    if optim.layer_decay is not None:
        yield f"layer decay {optim.layer_decay:g}"
    if recipe.ema.enabled:
        yield f"EMA {recipe.ema.decay:g}{' with warm-up' if recipe.ema.warmup else ''}"
    if distill.teacher is not None:
        yield f"{distill.kind} distillation from {distill.teacher} (its memory is not counted)"
    if data.multi_label:
        yield "several labels a photo"
    if recipe.loss.name != "cross_entropy":
        yield f"{recipe.loss.name} loss"
    if data.class_balance != "none":
        yield f"classes balanced by {data.class_balance}"
    if processes > 1:
        yield train.strategy + (" with sync BN" if train.sync_bn else "")
    if model.grad_checkpointing:
        yield "activations recomputed"
    if train.compile:
        yield "compiled"
