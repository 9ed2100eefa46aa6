"""Lightweight Multi-Head Self-Attention and its position bias (CMT paper, section 3.2).

    q = Linear(x);  x' = BN(DWConv kxk, stride k (x));  k, v = Linear(x'), Linear(x')
    LMHSA(x) = Linear(softmax(q k^T / sqrt(d) + B) v)

Keys and values come from a grid k times smaller in each direction, so the attention matrix has k^2 times fewer
entries. B is learned, one value per head, query position and key position. The paper writes one B per attention
module; the released code has one per stage, shared by its blocks (``rel_pos='stage'``). The released code accepts one
input size; here B is resampled bicubically over its query grid and its key grid, as the paper describes for
fine-tuning.

This is the one file in which a map becomes a sequence of tokens.
Shapes: B batch, C channels, H W grid, N = H*W queries, M reduced keys, h heads, d = C/h head width.
"""

from typing import Any, Final

import torch
import torch.nn.functional as F
from timm.layers import use_fused_attn
from timm.models import register_notrace_module
from torch import nn

from cmtvision.models.kernels import attention_by_kernel
from cmtvision.models.padding import pad_to_multiple
from cmtvision.models.training_speed import ReducingConv, training_attention

Grid = tuple[int, int]


def key_grid(grid: Grid, kv_stride: int) -> Grid:
    """The grid of keys and values for a grid of queries: both sides divided by the stride, rounded up."""
    return -(-grid[0] // kv_stride), -(-grid[1] // kv_stride)


def resample_bias_grid(table: torch.Tensor, height: int, width: int, key_height: int, key_width: int) -> torch.Tensor:
    """Resample a position bias bicubically, first over the query grid, then over the key grid.

    Input (1, h, Hq, Wq, Hk, Wk), output (1, h, height, width, key_height, key_width), computed in float32.
    """
    num_heads, keys_h, keys_w = table.shape[1], table.shape[4], table.shape[5]
    x = table[0].float().flatten(3).permute(0, 3, 1, 2)  # (h, Hk*Wk, Hq, Wq)
    x = F.interpolate(x, size=[height, width], mode="bicubic", align_corners=False)  # (h, Hk*Wk, H, W)
    x = x.flatten(2).transpose(1, 2).reshape(num_heads, height * width, keys_h, keys_w)  # (h, N, Hk, Wk)
    x = F.interpolate(x, size=[key_height, key_width], mode="bicubic", align_corners=False)
    return x.reshape(1, num_heads, height, width, key_height, key_width).to(table.dtype)


class PositionBias(nn.Module):
    """B of the attention, for one grid of queries and its grid of keys; called with another grid it resamples.

    The table is kept on its two grids, (1, h, Hq, Wq, Hk, Wk), so that a checkpoint says at which size it was trained.
    (With the leading 1 it has six dimensions: ``.to(memory_format=channels_last)`` fails on any tensor of five.)
    """

    def __init__(self, num_heads: int, grid: Grid, kv_stride: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.kv_stride = kv_stride
        shape = (1, num_heads, *grid, *key_grid(grid, kv_stride))
        self.table = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the table from a standard normal, as the released code does."""
        nn.init.normal_(self.table)

    @torch.jit.ignore
    def set_grid(self, grid: Grid) -> None:
        """Resample the table in place for another grid of queries; dtype, device and requires_grad are kept."""
        keys = key_grid(grid, self.kv_stride)
        resampled = resample_bias_grid(self.table.detach(), grid[0], grid[1], keys[0], keys[1])
        self.table = nn.Parameter(resampled, requires_grad=self.table.requires_grad)

    def forward(self, height: int, width: int) -> torch.Tensor:
        """The bias (1, h, N, M) for a grid of height x width queries."""
        table: torch.Tensor = self.table
        key_height, key_width = (height - 1) // self.kv_stride + 1, (width - 1) // self.kv_stride + 1
        if torch.jit.is_scripting():
            resample = table.shape[2] != height or table.shape[3] != width
        else:
            # an exporter with a dynamic size sees symbols here: deciding on them would freeze the size
            symbolic = not (type(height) is int and type(width) is int)
            resample = symbolic or table.shape[2] != height or table.shape[3] != width
        if resample:
            table = resample_bias_grid(table, height, width, key_height, key_width)
        return table.reshape(1, table.shape[1], height * width, key_height * key_width)  # (1, h, N, M)


register_notrace_module(PositionBias)


class LightweightAttention(nn.Module):
    """LMHSA: queries from every position, keys and values from a reduced grid.

    Input and output (B, dim, H, W). ``fused_attn`` picks PyTorch's scaled_dot_product_attention, else the explicit
    softmax, which is its oracle and shows the attention matrix.

    Args:
        dim: channels; must be a multiple of num_heads.
        num_heads: attention heads.
        kv_stride: k, the reduction of the key and value grid in each direction; 1 for none.
        qkv_bias: biases in the linear layers and the reducing convolution (True in the paper's networks).
        kv_norm: norm layer behind the reducing convolution, constructor of (channels, device, dtype).
        position_bias: a bias of this module's own, used when forward is given none (``rel_pos='block'``).
        attn_drop_rate: dropout of attention weights.
        proj_drop_rate: dropout of the output.
    """

    fused_attn: Final[bool]

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kv_stride: int = 1,
        qkv_bias: bool = True,
        kv_norm: Any = nn.BatchNorm2d,
        position_bias: nn.Module | None = None,
        attn_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not a multiple of num_heads {num_heads}")
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scale = self.head_dim**-0.5
        self.kv_stride = kv_stride
        self.fused_attn = use_fused_attn()
        self.q = nn.Linear(dim, dim, bias=qkv_bias, **dd)
        self.kv_conv: nn.Module = nn.Identity()
        self.kv_norm: nn.Module = nn.Identity()
        if kv_stride > 1:
            self.kv_conv = ReducingConv(dim, dim, kv_stride, stride=kv_stride, groups=dim, bias=qkv_bias, **dd)
            self.kv_norm = kv_norm(dim, **dd)
        self.k = nn.Linear(dim, dim, bias=qkv_bias, **dd)
        self.v = nn.Linear(dim, dim, bias=qkv_bias, **dd)
        self.position_bias = position_bias
        self.attn_drop = nn.Dropout(attn_drop_rate)
        self.proj = nn.Linear(dim, dim, bias=qkv_bias, **dd)
        self.proj_drop = nn.Dropout(proj_drop_rate)

    def forward(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Map (B, dim, H, W) and the stage's bias (1, h, N, M) or None -> map (B, dim, H, W)."""
        B, C, H, W = x.shape
        if self.position_bias is not None:
            bias = self.position_bias(H, W)
        kv = x
        if self.kv_stride > 1:
            kv = self.kv_norm(self.kv_conv(pad_to_multiple(x, self.kv_stride)))  # (B, C, ceil(H/k), ceil(W/k))
        kv = kv.flatten(2).transpose(1, 2)  # (B, M, C)
        tokens = x.flatten(2).transpose(1, 2)  # (B, N, C)
        q = self.q(tokens).reshape(B, -1, self.num_heads, self.head_dim).transpose(1, 2)  # (B, h, N, d)
        k = self.k(kv).reshape(B, -1, self.num_heads, self.head_dim).transpose(1, 2)  # (B, h, M, d)
        v = self.v(kv).reshape(B, -1, self.num_heads, self.head_dim).transpose(1, 2)  # (B, h, M, d)
        out: torch.Tensor | None = None
        if self.fused_attn and not torch.jit.is_scripting():
            out = attention_by_kernel(q, k, v, bias, self.attn_drop.p if self.training else 0.0)
        if out is None:
            out = self._attend(q, k, v, bias)  # (B, h, N, d)
        out = out.transpose(1, 2).reshape(B, -1, C)  # (B, N, C)
        out = self.proj_drop(self.proj(out))
        return out.transpose(1, 2).reshape(B, C, H, W)

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """softmax(q k^T / sqrt(d) + bias) v: (B, h, N, d)."""
        if bias is not None:
            bias = bias.to(q.dtype)  # under autocast the table stays in float32
        if self.fused_attn and self.training and not torch.jit.is_scripting():
            return training_attention(q, k, v, bias, self.attn_drop.p)
        if self.fused_attn:
            return F.scaled_dot_product_attention(
                q, k, v, attn_mask=bias, dropout_p=self.attn_drop.p if self.training else 0.0
            )
        attn = (q * self.scale) @ k.transpose(-2, -1)  # (B, h, N, M)
        if bias is not None:
            attn = attn + bias
        return self.attn_drop(attn.softmax(dim=-1)) @ v
