"""Locally-enhanced feed-forward network, LeFF ("Incorporating Convolution Designs into Visual Transformers", CeiT).

    LeFF(patches) = BN(Conv1x1(GELU(BN(DWConv3x3(GELU(BN(Conv1x1(patches))))))));  LeFF(class token) = class token

The patch tokens are laid out on their grid, so that the depthwise convolution sees neighbours; the class token has no
position on it and bypasses it unchanged. CMT's IRFFN is the same idea with GELU before BN and an identity around the
depthwise convolution.

Shapes: B batch, D channels, H W grid of tokens, N = H*W patch tokens.
"""

from typing import Any

import torch
from torch import nn

Grid = tuple[int, int]


class LocallyEnhancedFFN(nn.Module):
    """LeFF. Input and output (B, 1+N, D), class token first.

    Args:
        dim: D, channels of the tokens.
        hidden_dim: channels between the two 1x1 convolutions.
        proj_drop_rate: dropout of the output patch tokens.
        device: where parameters are made.
        dtype: their type.
    """

    def __init__(
        self, dim: int, hidden_dim: int, proj_drop_rate: float = 0.0, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.conv1 = nn.Conv2d(dim, hidden_dim, 1, **dd)
        self.conv2 = nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim, **dd)
        self.conv3 = nn.Conv2d(hidden_dim, dim, 1, **dd)
        self.bn1 = nn.BatchNorm2d(hidden_dim, **dd)
        self.bn2 = nn.BatchNorm2d(hidden_dim, **dd)
        self.bn3 = nn.BatchNorm2d(dim, **dd)
        self.act = nn.GELU()
        self.drop = nn.Dropout(proj_drop_rate)

    def forward(self, x: torch.Tensor, grid: Grid) -> torch.Tensor:
        """Tokens (B, 1+N, D) and their grid (H, W) -> tokens (B, 1+N, D)."""
        class_token, patches = x[:, :1], x[:, 1:]
        y = patches.transpose(1, 2).reshape(x.shape[0], x.shape[2], grid[0], grid[1])  # (B, D, H, W)
        y = self.act(self.bn1(self.conv1(y)))  # (B, hidden_dim, H, W)
        y = self.act(self.bn2(self.conv2(y)))
        y = self.drop(self.bn3(self.conv3(y)))  # (B, D, H, W)
        return torch.cat([class_token, y.flatten(2).transpose(1, 2)], dim=1)  # (B, 1+N, D)
