"""Layer-wise class-token attention, LCA ("Incorporating Convolution Designs into Visual Transformers", CeiT).

    c = the class tokens after all blocks;  y = c_L + Attention(LN(c))_L;  LCA(c) = y + MLP(LN(y))

The class token after the last block is the query, those of all blocks are keys and values, so that the classifier
depends on every depth.

Shapes: B batch, L blocks, D channels, h heads, d = D/h head width.
"""

from typing import Any, Final

import torch
import torch.nn.functional as F
from timm.layers import Mlp, use_fused_attn
from torch import nn


class LastQueryAttention(nn.Module):
    """Attention with only the last token as query: (B, L, D) -> (B, 1, D)."""

    fused_attn: Final[bool]

    def __init__(
        self,
        dim: int,
        num_heads: int,
        attn_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scale = self.head_dim**-0.5
        self.fused_attn = use_fused_attn()
        self.qkv = nn.Linear(dim, dim * 3, device=device, dtype=dtype)
        self.attn_drop = nn.Dropout(attn_drop_rate)
        self.proj = nn.Linear(dim, dim, device=device, dtype=dtype)
        self.proj_drop = nn.Dropout(proj_drop_rate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens (B, L, D) -> the last token's output (B, 1, D)."""
        B, num_layers, dim = x.shape
        qkv = (
            self.qkv(x).reshape(B, num_layers, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        )  # (3, B, h, L, d)
        q, k, v = qkv.unbind(0)
        q = q[:, :, -1:]  # (B, h, 1, d)
        if self.fused_attn:
            out = F.scaled_dot_product_attention(q, k, v, dropout_p=self.attn_drop.p if self.training else 0.0)
        else:
            attn = (q * self.scale) @ k.transpose(-2, -1)  # (B, h, 1, L)
            out = self.attn_drop(attn.softmax(dim=-1)) @ v  # (B, h, 1, d)
        return self.proj_drop(self.proj(out.transpose(1, 2).reshape(B, 1, dim)))


class LayerwiseClassAttention(nn.Module):
    """LCA: the last class token gathers from those after all blocks. Input (B, L, D), output (B, 1, D)."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        hidden_dim: int,
        norm_eps: float = 1e-6,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps, **dd)  # made first: the released order of tensors
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps, **dd)
        self.attn = LastQueryAttention(
            dim, num_heads, attn_drop_rate=attn_drop_rate, proj_drop_rate=proj_drop_rate, **dd
        )
        self.feedforward = Mlp(dim, hidden_dim, drop=proj_drop_rate, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Class tokens of all blocks (B, L, D) -> one class token (B, 1, D)."""
        y = x[:, -1:] + self.attn(self.norm1(x))
        return y + self.feedforward(self.norm2(y))
