"""The Inverted Residual Feed-Forward Network (CMT paper, section 3.2).

    IRFFN(x) = Conv1x1(F(Conv1x1(x))),   F(y) = DWConv3x3(y) + y
    in full:  1x1 conv -> GELU -> BN -> (DWConv3x3 + identity) -> GELU -> BN -> 1x1 conv -> BN

The expansion of a transformer's MLP with a depthwise convolution between the layers, and the shortcut around that
convolution. Released code: the same; hidden width int(dim * ratio).
"""

from typing import Any

import torch
from torch import nn


class InvertedResidualFFN(nn.Module):
    """Expand, convolve locally, project. Input and output (B, dim, H, W); inside (B, hidden_dim, H, W)."""

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        proj_drop_rate: float = 0.0,
        norm_layer: Any = nn.BatchNorm2d,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.expand = nn.Conv2d(dim, hidden_dim, 1, **dd)
        self.expand_norm = norm_layer(hidden_dim, **dd)
        self.conv = nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim, **dd)
        self.conv_norm = norm_layer(hidden_dim, **dd)
        self.project = nn.Conv2d(hidden_dim, dim, 1, **dd)
        self.project_norm = norm_layer(dim, **dd)
        self.act = nn.GELU()
        self.drop = nn.Dropout(proj_drop_rate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, dim, H, W) -> map (B, dim, H, W)."""
        x = self.expand_norm(self.act(self.expand(x)))  # (B, hidden_dim, H, W)
        x = self.conv_norm(self.act(self.neighbours(x)))
        return self.drop(self.project_norm(self.project(x)))  # (B, dim, H, W)

    def neighbours(self, x: torch.Tensor) -> torch.Tensor:
        """F of the paper, map (B, hidden_dim, H, W) -> map (B, hidden_dim, H, W)."""
        return self.conv(x) + x
