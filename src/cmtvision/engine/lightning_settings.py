"""How a recipe meets the machine: Lightning's settings for devices and processes, precision, seeds, and silence."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_lightning.strategies import DDPStrategy

from cmtvision.artefact.runtimes.torch import set_threads
from cmtvision.engine.distributed.fsdp import ShardedStrategy
from cmtvision.engine.distributed.processes import Processes
from cmtvision.errors import ConfigError
from cmtvision.recipe import Recipe


def trainer_place(recipe: Recipe, device: torch.device, processes: Processes) -> dict[str, Any]:
    """Lightning's settings for the machine: one process, or those that torchrun or SLURM started."""
    place: dict[str, Any] = {"accelerator": {"cuda": "gpu"}.get(device.type, device.type), "devices": 1}
    if processes.world_size == 1:
        return place
    # while the classifier alone warms up, the rest gets no gradients, and the others' must not be waited for
    unused = recipe.optim.head_warmup_epochs > 0 and recipe.model.freeze == "none"
    strategy = (
        ShardedStrategy(processes.world_size)
        if recipe.train.strategy == "fsdp"
        else DDPStrategy(find_unused_parameters=unused, gradient_as_bucket_view=True)
    )
    return place | {
        "devices": processes.local_world_size,
        "num_nodes": processes.num_nodes,
        "strategy": strategy,
        "plugins": [processes.environment],
    }


def trainer_precision(recipe: Recipe, device: torch.device) -> str:
    """Lightning's name for the recipe's precision.

    Raises:
        ConfigError: the device does not have it.
    """
    wanted = recipe.train.precision
    if wanted == "auto":
        wanted = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if wanted == "fp16" and device.type == "cpu":
        raise ConfigError("train.precision fp16 needs a GPU; use bf16 or fp32 on a CPU")
    return {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}[wanted]


@contextmanager
def run_settings(recipe: Recipe) -> Iterator[None]:
    """Seed, threads and determinism of a run; what the process had before comes back after."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    cuda = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(recipe.seed)
        set_threads(recipe.train.threads)
        if recipe.train.deterministic:
            torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Lightning's advice is for programmers; the person who trains sees our own messages."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"pytorch_lightning\..*|lightning_fabric\..*")
            warnings.filterwarnings("ignore", message=r".*(lr_scheduler\.step|does not have many workers|LeafSpec).*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
