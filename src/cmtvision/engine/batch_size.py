"""``batch_size: auto``: the largest power of two whose activations fit, from what autograd would keep for a photo."""

import torch
from torch import nn

from cmtvision.engine.memory import saved_bytes

SHARE_OF_MEMORY = 0.6
LARGEST = 512
_FALLBACK = 32  # for a network whose memory cannot be told from shapes


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
    """Memory that is free on a device now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as file:  # noqa: PTH123
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return 4 * 1024**3  # no such file outside Linux: a cautious laptop
