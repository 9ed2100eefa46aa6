"""The Inverted Residual Feed-Forward Network (CMT paper, section 3.2).

    IRFFN(x) = Conv1x1(F(Conv1x1(x))),   F(y) = DWConv3x3(y) + y
    in full:  1x1 conv -> GELU -> BN -> (DWConv3x3 + identity) -> GELU -> BN -> 1x1 conv -> BN

The expansion of a transformer's MLP with a depthwise convolution between the layers, and the shortcut around that
convolution. Released code: the same; hidden width int(dim * ratio).

``shortcut=False`` leaves the identity out, to see what it is worth. ``MLP`` is what a transformer has instead:
1x1 conv -> GELU -> 1x1 conv, without the depthwise convolution and the norms that came with it.
"""

from typing import Any

import torch
from torch import nn

from cmtvision.models.kernels import depthwise_by_kernel
from cmtvision.models.training_speed import MapGELU, depthwise_with_identity


class InvertedResidualFFN(nn.Module):
    """Expand, look at the neighbours, project. Input and output (B, dim, H, W); inside (B, hidden_dim, H, W)."""

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        proj_drop_rate: float = 0.0,
        norm_layer: Any = nn.BatchNorm2d,
        shortcut: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.shortcut = shortcut
        self.expand = nn.Conv2d(dim, hidden_dim, 1, **dd)
        self.expand_norm = norm_layer(hidden_dim, **dd)
        self.conv = nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim, **dd)
        self.conv_norm = norm_layer(hidden_dim, **dd)
        self.project = nn.Conv2d(hidden_dim, dim, 1, **dd)
        self.project_norm = norm_layer(dim, **dd)
        self.act = MapGELU()
        self.drop = nn.Dropout(proj_drop_rate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, dim, H, W) -> map (B, dim, H, W)."""
        x = self.expand_norm(self.act(self.expand(x)))  # (B, hidden_dim, H, W)
        y: torch.Tensor | None = None
        if self.shortcut and not torch.jit.is_scripting():
            y = depthwise_by_kernel(x, self.conv, self.act, self.conv_norm)
        if y is None:
            y = self._conv_act_norm(x)
        return self.drop(self.project_norm(self.project(y)))  # (B, dim, H, W)

    def _conv_act_norm(self, x: torch.Tensor) -> torch.Tensor:
        if not self.shortcut:
            x = self.conv(x)
        elif self.training and not torch.jit.is_scripting():
            x = depthwise_with_identity(x, self.conv)
        else:
            x = self.conv(x) + x
        return self.conv_norm(self.act(x))


class MLP(nn.Module):
    """A transformer's feed-forward network on a map. Input and output (B, dim, H, W); inside (B, hidden_dim, H, W)."""

    def __init__(
        self, dim: int, hidden_dim: int, proj_drop_rate: float = 0.0, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        self.expand = nn.Conv2d(dim, hidden_dim, 1, device=device, dtype=dtype)
        self.project = nn.Conv2d(hidden_dim, dim, 1, device=device, dtype=dtype)
        self.act = MapGELU()
        self.drop = nn.Dropout(proj_drop_rate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, dim, H, W) -> map (B, dim, H, W)."""
        return self.drop(self.project(self.act(self.expand(x))))
