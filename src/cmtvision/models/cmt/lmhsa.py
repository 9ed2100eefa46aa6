"""Lightweight Multi-Head Self-Attention (CMT paper, section 3.2).

    q = Linear(x);  x' = BN(DWConv kxk, stride k (x));  k, v = Linear(x'), Linear(x')
    LMHSA(x) = Linear(softmax(q k^T / sqrt(d) + B) v)

Keys and values come from a grid k times smaller in each direction, so the attention matrix has k^2 times fewer
entries. B is learned, one value per head, query position and key position. For a large image it comes as two factors,
B = P K^T (position.py), and is never computed: P and K are further channels of queries and keys,

    q k^T / sqrt(d) + P K^T = [q, sqrt(d) P] [k, K]^T / sqrt(d)

so that PyTorch's attention runs in blocks of queries and keys, and memory grows with the pixels, not with their square.

This is the one file in which a map becomes a sequence of tokens.
Shapes: B batch, C channels, H W grid, N = H*W queries, M reduced keys, h heads, d = C/h head width.
"""

from typing import Any, Final

import torch
import torch.nn.functional as F
from timm.layers import use_fused_attn
from timm.models import register_notrace_function
from torch import nn

from cmtvision.models.cmt.padding import pad_to_multiple
from cmtvision.models.cmt.position import whole_bias


def fused_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None, dropout: float = 0.0
) -> torch.Tensor:
    """softmax(q k^T / sqrt(d) + bias) v by PyTorch's attention: (B, h, N, d).

    Args:
        q: queries (B, h, N, d).
        k: keys (B, h, M, d).
        v: values (B, h, M, d).
        bias: (1, h, N, M), its factors (h, N + M, R), or None; in the type of q.
        dropout: of the attention weights.
    """
    if bias is None or bias.dim() == 4:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
    N, d, rank = q.shape[2], q.shape[3], bias.shape[2]
    more = rank + (-(d + rank)) % 8  # kernels of GPUs want a head width that 8 divides
    bias = F.pad(bias, [0, more - rank]).expand(q.shape[0], -1, -1, -1)  # (B, h, N + M, more)
    q = torch.cat([q, bias[:, :, :N] * d**0.5], dim=3)  # (B, h, N, d + more)
    k = torch.cat([k, bias[:, :, N:]], dim=3)  # (B, h, M, d + more)
    v = F.pad(v, [0, more])  # of the same width, which the fastest kernels ask for
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=d**-0.5)[:, :, :, :d]


register_notrace_function(fused_attention)


class LightweightAttention(nn.Module):
    """LMHSA: queries from every position, keys and values from a reduced grid.

    Input and output (B, dim, H, W). ``fused_attn`` picks PyTorch's scaled_dot_product_attention, else the explicit
    softmax, which is its oracle and shows the attention matrix.

    Args:
        dim: channels; must be a multiple of num_heads.
        num_heads: attention heads.
        kv_stride: k, the reduction of the key and value grid in each direction; 1 for none.
        qkv_bias: biases in the linear layers and the reducing convolution (True in the paper's networks).
        kv_norm: norm layer after the reducing convolution, constructor of (channels, device, dtype).
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
            self.kv_conv = nn.Conv2d(dim, dim, kv_stride, stride=kv_stride, groups=dim, bias=qkv_bias, **dd)
            self.kv_norm = kv_norm(dim, **dd)
        self.k = nn.Linear(dim, dim, bias=qkv_bias, **dd)
        self.v = nn.Linear(dim, dim, bias=qkv_bias, **dd)
        self.position_bias = position_bias
        self.attn_drop = nn.Dropout(attn_drop_rate)
        self.proj = nn.Linear(dim, dim, bias=qkv_bias, **dd)
        self.proj_drop = nn.Dropout(proj_drop_rate)

    def forward(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Map (B, dim, H, W) and the stage's bias (1, h, N, M), its factors, or None -> map (B, dim, H, W)."""
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
        out = self.attend(q, k, v, bias).transpose(1, 2).reshape(B, -1, C)  # (B, N, C)
        out = self.proj_drop(self.proj(out))
        return out.transpose(1, 2).reshape(B, C, H, W)

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """softmax(q k^T / sqrt(d) + bias) v: (B, h, N, d)."""
        if bias is not None:
            bias = bias.to(q.dtype)  # under autocast the table stays in float32
        if self.fused_attn:
            return fused_attention(q, k, v, bias, self.attn_drop.p if self.training else 0.0)
        attn = (q * self.scale) @ k.transpose(-2, -1)  # (B, h, N, M)
        if bias is not None:
            attn = attn + whole_bias(bias, q.shape[2])
        return self.attn_drop(attn.softmax(dim=-1)) @ v
