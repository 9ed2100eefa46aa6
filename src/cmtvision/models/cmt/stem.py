"""The convolutional stem (CMT paper, section 3.1): fine-grained local features before anything is cut into patches.

    stem(x) = [conv3x3 -> GELU -> BN] three times, the first with stride 2

Released code: the same. Shapes: B batch, C channels, H W image size in pixels.
"""

from typing import Any

import torch
from torch import nn


class Stem(nn.Module):
    """Three 3x3 convolutions that halve the resolution.

    Input (B, in_chans, H, W), output (B, width, ceil(H / 2), ceil(W / 2)).
    """

    def __init__(
        self, in_chans: int, width: int, norm_layer: Any = nn.BatchNorm2d, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.conv1 = nn.Conv2d(in_chans, width, 3, stride=2, padding=1, **dd)
        self.norm1 = norm_layer(width, **dd)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, **dd)
        self.norm2 = norm_layer(width, **dd)
        self.conv3 = nn.Conv2d(width, width, 3, padding=1, **dd)
        self.norm3 = norm_layer(width, **dd)
        self.act = nn.GELU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Image (B, in_chans, H, W) -> map (B, width, H/2, W/2)."""
        x = self.norm1(self.act(self.conv1(x)))  # (B, width, H/2, W/2)
        x = self.norm2(self.act(self.conv2(x)))
        return self.norm3(self.act(self.conv3(x)))
