"""The stage-wise pyramid and the CMT block (CMT paper, sections 3.1 and 3.2).

    stage:  2x2 conv, stride 2 -> LayerNorm -> block 1 .. block depth
    block:  x = LPU(x);  x = x + LMHSA(LN(x));  x = x + IRFFN(LN(x))

Released code: the same. Drop path is applied to the two residual branches, not to the LPU. LayerNorm eps is 1e-5 after
the convolution and 1e-6 in the blocks. Each part is replaceable by another with the same input and output: ``Parts`` in
cmt.py.

Maps are (B, C, H, W) tensors, best kept in torch.channels_last memory, where the LayerNorms and the attention's linear
layers read them without a copy.
"""

from functools import partial
from typing import Any

import torch
from timm.layers import DropPath, LayerNorm2d
from torch import nn

from cmtvision.models.cmt.lpu import LocalPerceptionUnit
from cmtvision.models.cmt.padding import pad_to_multiple
from cmtvision.models.recompute import recomputed

BLOCK_NORM = partial(LayerNorm2d, eps=1e-6)
DOWNSAMPLE_NORM = partial(LayerNorm2d, eps=1e-5)


class Block(nn.Module):
    """One CMT block: LPU, LMHSA and a feed-forward network (IRFFN). Input and output (B, dim, H, W)."""

    def __init__(
        self,
        dim: int,
        attention: nn.Module,
        ffn: nn.Module,
        lpu: Any = LocalPerceptionUnit,
        norm_layer: Any = BLOCK_NORM,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.lpu = lpu(dim, **dd)
        self.norm1 = norm_layer(dim, **dd)
        self.lmhsa = attention
        self.drop_path1 = DropPath(drop_path_rate) if drop_path_rate > 0 else nn.Identity()
        self.norm2 = norm_layer(dim, **dd)
        self.irffn = ffn
        self.drop_path2 = DropPath(drop_path_rate) if drop_path_rate > 0 else nn.Identity()

    def forward(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Map (B, dim, H, W) and the stage's position bias (position.py) or None -> map (B, dim, H, W)."""
        x = self.lpu(x)
        x = x + self.drop_path1(self.lmhsa(self.norm1(x), bias))
        return x + self.drop_path2(self.irffn(self.norm2(x)))


class Downsample(nn.Module):
    """2x2 convolution with stride 2 and LayerNorm: (B, in_dim, H, W) -> (B, dim, ceil(H/2), ceil(W/2))."""

    def __init__(
        self,
        in_dim: int,
        dim: int,
        norm_layer: Any = DOWNSAMPLE_NORM,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_dim, dim, 2, stride=2, device=device, dtype=dtype)
        self.norm = norm_layer(dim, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, in_dim, H, W) -> map (B, dim, H/2, W/2)."""
        return self.norm(self.conv(pad_to_multiple(x, 2)))


class Stage(nn.Module):
    """Halve the resolution, then run the blocks; the stage owns the position bias its blocks share.

    Input (B, in_dim, H, W), output (B, dim, ceil(H/2), ceil(W/2)).
    """

    def __init__(
        self,
        downsample: Downsample,
        position_bias: nn.Module | None,
        blocks: list[Block],
        position_embedding: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = downsample
        self.position_embedding = position_embedding if position_embedding is not None else nn.Identity()
        self.position_bias = position_bias
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, in_dim, H, W) -> map (B, dim, H/2, W/2)."""
        x = self.position_embedding(self.downsample(x))
        bias: torch.Tensor | None = None
        if self.position_bias is not None:
            bias = self.position_bias(x.shape[2], x.shape[3])  # (1, h, N, M), or its factors
        for block in self.blocks:
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x = recomputed(block, x, bias)
            else:
                x = block(x, bias)
        return x
