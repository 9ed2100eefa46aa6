"""``batch_size: auto``: the largest power of two whose activations fit, from what one small batch keeps."""

import torch
import torch.nn.functional as F
from torch import nn

SHARE_OF_MEMORY = 0.6
LARGEST = 512


def largest_batch(model: nn.Module, input_size: tuple[int, int, int], device: torch.device, num_train: int) -> int:
    """The largest power of two, up to 512, that fits in 60% of the free memory and leaves ten batches an epoch.

    Args:
        model: the network, on the device, in train mode.
        input_size: (C, H, W) of its input.
        device: where it will train.
        num_train: photos of an epoch.
    """
    per_image = _kept_bytes(model, input_size, device)
    limit = min(LARGEST, max(1, num_train // 10), int(SHARE_OF_MEMORY * _free_bytes(device) / per_image))
    return int(2 ** (max(2, limit).bit_length() - 1))


def _kept_bytes(model: nn.Module, input_size: tuple[int, int, int], device: torch.device, batch: int = 2) -> int:
    """Bytes that the backward pass needs for each image: what autograd saves, parameters aside."""
    parameters = {p.data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in parameters:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    buffers = {name: value.clone() for name, value in model.named_buffers()}  # BN statistics must not see the probe
    with torch.random.fork_rng(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        images = torch.zeros(batch, *input_size, device=device)
        loss = F.cross_entropy(model(images).float(), torch.zeros(batch, dtype=torch.long, device=device))
    del loss
    with torch.no_grad():
        for name, value in model.named_buffers():
            value.copy_(buffers[name])
    return max(1, sum(kept.values()) // batch)


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as file:  # noqa: PTH123
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return 4 * 1024**3  # no such file outside Linux: a cautious laptop
