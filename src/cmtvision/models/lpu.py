"""The Local Perception Unit (CMT paper, section 3.2): position by looking at the neighbours.

    LPU(x) = DWConv3x3(x) + x

Absolute position embeddings break translation invariance and know nothing of local structure; a depthwise
convolution in front of every block gives both back. Released code: the same; drop path is not applied to it.
"""

from typing import Any

import torch
from torch import nn

from cmtvision.models.kernels import depthwise_by_kernel
from cmtvision.models.training_speed import depthwise_with_identity


class LocalPerceptionUnit(nn.Module):
    """Depthwise 3x3 convolution plus identity. Input and output (B, dim, H, W)."""

    def __init__(self, dim: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, dim, H, W) -> map (B, dim, H, W)."""
        if not torch.jit.is_scripting():
            out = depthwise_by_kernel(x, self.conv)
            if out is not None:
                return out
        if self.training and not torch.jit.is_scripting():
            return depthwise_with_identity(x, self.conv)
        return self.conv(x) + x
