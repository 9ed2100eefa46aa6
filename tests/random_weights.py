"""Weights that hide nothing: every tensor random, BatchNorm statistics too, so that a swapped or unused one shows."""

import torch
from torch import nn


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Fill every parameter and buffer of a module with seeded random values of a moderate size; returns the module."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if not tensor.is_floating_point():
                continue
            values = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            if name.endswith("running_var"):
                values = 0.5 + values.abs()
            elif tensor.ndim == 1 and name.endswith("weight"):
                values = 1 + 0.2 * values
            elif tensor.ndim == 1:
                values = 0.2 * values
            elif not name.endswith("position_bias.table"):
                values = values / (tensor[0].numel() ** 0.5)
            tensor.copy_(values.to(tensor.dtype))
    return module
