"""The batch size of a run. ``auto``: the largest power of two that fits, from what autograd would keep for a photo."""

import torch
from torch import nn

from cmtvision.engine.distributed.processes import SINGLE, Processes
from cmtvision.engine.lightning_settings import trainer_precision
from cmtvision.engine.memory import saved_bytes
from cmtvision.errors import ConfigError
from cmtvision.machine import memory
from cmtvision.recipe import Recipe

SHARE_OF_MEMORY = 0.6
LARGEST = 512
_FALLBACK = 32  # for a network whose memory cannot be told from shapes


def choose_batch_size(
    recipe: Recipe,
    model: nn.Module,
    input_size: tuple[int, int, int],
    device: torch.device,
    num_train: int,
    processes: Processes = SINGLE,
) -> int:
    """Photos at a time in each process: what the recipe asks for, or what fits, and never more than there are.

    Args:
        recipe: ``train.batch_size`` and ``train.precision`` decide.
        model: the network; moved to the device where the recipe says 'auto'.
        input_size: (C, H, W) of its input.
        device: where it will train.
        num_train: photos of an epoch, over all processes.
        processes: those of the run; all must call it.

    Raises:
        ConfigError: fewer than two photos at a time.
    """
    own = num_train // processes.world_size
    if recipe.train.batch_size == "auto":
        precision = {"32-true": "fp32"}.get(trainer_precision(recipe, device), "bf16")
        own_limit = largest_batch(model.to(device).train(), input_size, device, own, precision=precision)
        # every process counts with its own memory; all take what the smallest allows
        fitting: int = min(processes.gather(own_limit))
    else:
        fitting = recipe.train.batch_size
    wanted = min(fitting, own)
    if wanted < 2:
        shared = f" for {processes.world_size} processes" if processes.world_size > 1 else ""
        raise ConfigError(
            f"{num_train} training photo(s){shared}, batch size {wanted}: batch norm needs at least two at a time"
        )
    return wanted


def largest_batch(
    model: nn.Module,
    input_size: tuple[int, int, int],
    device: torch.device,
    num_train: int,
    precision: str = "fp32",
) -> int:
    """The largest power of two, up to 512, that fits in 60% of the free memory and leaves ten batches an epoch.

    Args:
        model: the network, on the device, in train mode.
        input_size: (C, H, W) of its input.
        device: where it will train.
        num_train: photos of an epoch.
        precision: 'fp32', 'bf16' or 'fp16' (see ``cmtvision.engine.memory.saved_bytes``).
    """
    per_image = saved_bytes(model, input_size, precision)
    room = _FALLBACK if per_image is None else int(SHARE_OF_MEMORY * free_bytes(device) / max(1, per_image))
    limit = min(LARGEST, max(1, num_train // 10), room)
    return int(2 ** (max(2, limit).bit_length() - 1))


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device now, within the limits of a container."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return memory()[1]
