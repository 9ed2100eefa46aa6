"""DWConv3x3(x) + x as one convolution, with 1 added to the kernel's centre."""

import torch
import torch.nn.functional as F


def merges_identity(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether training computes DWConv(x) + x as one convolution.

    With 1 added, a bfloat16 kernel would round its centre weight to steps of 1/128, and evaluation would use another
    one.
    """
    return not (torch.is_autocast_enabled(x.device.type) or weight.dtype.itemsize < 4)


def merged_convolution(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """DWConv3x3(x) + x of a map (B, C, H, W) as one convolution; weight (C, 1, 3, 3), bias (C,)."""
    middle = F.pad(weight.new_ones((1, 1, 1, 1)), (1, 1, 1, 1))  # (1, 1, 3, 3)
    return F.conv2d(x, weight + middle, bias, padding=1, groups=weight.shape[0])
