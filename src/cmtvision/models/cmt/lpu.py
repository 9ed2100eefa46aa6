"""The Local Perception Unit (CMT paper, section 3.2): positional information from the neighbours.

    LPU(x) = DWConv3x3(x) + x

Absolute position embeddings break translation invariance and carry no local structure; a depthwise
convolution at the start of every block restores both. Released code: the same; drop path is not applied to it.
"""

from typing import Any

import torch
from torch import nn


class LocalPerceptionUnit(nn.Module):
    """Depthwise 3x3 convolution plus identity. Input and output (B, dim, H, W)."""

    def __init__(self, dim: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, dim, H, W) -> map (B, dim, H, W)."""
        return self.conv(x) + x
