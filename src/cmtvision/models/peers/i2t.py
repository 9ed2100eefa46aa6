"""Image-to-tokens, I2T ("Incorporating Convolution Designs into Visual Transformers", CeiT, Yuan et al., ICCV 2021).

    I2T(image) = Conv_p(MaxPool3x3(BN(Conv7x7(image)))), strides 2 (convolution), 2 (pool) and p = 4: 16 px per token

Tokens are cut out of low-level features instead of pixels. There is no activation between the convolution and the pool.

Shapes: B batch, D channels of tokens, H W grid of tokens.
"""

from typing import Any

import torch
from torch import nn

POOL_STRIDE = 2


class LowLevelFeatures(nn.Module):
    """Convolution, BN and max pool, without activation: (B, in_chans, H, W) -> (B, width, H/2s, W/2s) for stride s."""

    def __init__(
        self, in_chans: int, width: int, kernel_size: int, stride: int, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(
            in_chans, width, kernel_size, stride=stride, padding=padding, bias=False, device=device, dtype=dtype
        )
        self.bn = nn.BatchNorm2d(width, device=device, dtype=dtype)
        self.pool = nn.MaxPool2d(3, stride=POOL_STRIDE, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Image (B, in_chans, H, W) -> map (B, width, H/2s, W/2s)."""
        return self.pool(self.bn(self.conv(x)))


class ImageToTokens(nn.Module):
    """I2T: patches are cut out of low-level features instead of pixels.

    Input an image whose sides are multiples of patch_size, (B, in_chans, H * patch_size, W * patch_size); output a map
    of tokens (B, D, H, W).
    """

    def __init__(
        self,
        in_chans: int,
        width: int,
        dim: int,
        kernel_size: int,
        stride: int,
        patch_size: int,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if patch_size % (stride * POOL_STRIDE):
            raise ValueError(f"patch_size {patch_size}: expected a multiple of {stride * POOL_STRIDE}, the strides of "
                             f"convolution ({stride}) and pool ({POOL_STRIDE}) before the patches")  # fmt: skip
        side = patch_size // (stride * POOL_STRIDE)
        self.backbone = LowLevelFeatures(in_chans, width, kernel_size, stride, device=device, dtype=dtype)
        self.proj = nn.Conv2d(width, dim, side, stride=side, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Image -> map of tokens (B, D, H, W)."""
        return self.proj(self.backbone(x))
