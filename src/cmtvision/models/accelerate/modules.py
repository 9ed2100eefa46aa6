"""Faster modules with the same parameters: the same mathematics in fewer passes over memory.

Each is made from the plain module that it replaces (``accelerate`` in this package swaps them), has the same parameters
and computes the same; in evaluation on a CPU operation for operation.

- DWConv(x) + x is one convolution, with 1 added to the kernel's centre (in float32).
- GELU runs over a channels-last map in memory order, where oneDNN supports it.
- The convolution before keys and values stays in float32 under bfloat16 autocast on a CPU, where oneDNN's bfloat16
  gradient of a depthwise one with large strides takes five to ten times as long.
- LayerNorm, too, is computed in float32 there: with a bfloat16 map and float32 weights PyTorch's is slower.
- Attention with a bias that learns is written out on a CPU, in float32: PyTorch's fused kernel there has no gradient
  for the bias, and its fallback does more than is needed.
- On a CPU with a compiler the native loops of native/ compute LayerNorm, attention, and what an IRFFN does between its
  products, while a module is ``native``.
- On a GPU the Triton kernels of kernels/ are used if they are switched on.

Shapes: B batch, C channels, H W grid, N queries, M keys, h heads, d head width.
"""

from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from timm.models import register_notrace_module
from torch import nn

from cmtvision.machine import mkl_without_avx512
from cmtvision.models.accelerate.as_written import hooked, is_depthwise_3x3, is_gelu, is_pointwise
from cmtvision.models.accelerate.kernels import attention_by_kernel, could_run_on, depthwise_by_kernel
from cmtvision.models.accelerate.merged import merged_convolution, merges_identity
from cmtvision.models.accelerate.native import differentiable
from cmtvision.models.cmt.irffn import InvertedResidualFFN
from cmtvision.models.cmt.lmhsa import LightweightAttention
from cmtvision.models.cmt.lpu import LocalPerceptionUnit


@register_notrace_module
class FastLPU(LocalPerceptionUnit):
    """The LPU as one convolution in training."""

    def __init__(self, plain: LocalPerceptionUnit) -> None:
        nn.Module.__init__(self)
        self.training = plain.training
        self.conv = plain.conv

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, dim, H, W) -> map (B, dim, H, W)."""
        out = depthwise_by_kernel(x, self.conv)
        return _with_identity(self, x) if out is None else out


@register_notrace_module
class FastIRFFN(InvertedResidualFFN):
    """The IRFFN with its depthwise convolution and the identity around it as one convolution in training."""

    def __init__(self, plain: InvertedResidualFFN) -> None:
        nn.Module.__init__(self)
        self.training = plain.training
        for name, module in plain.named_children():
            self.add_module(name, module)
        self.act = faster_act(plain.act)  # type: ignore[assignment]  # whatever it is
        self.native = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, dim, H, W) -> map (B, dim, H, W)."""
        x = self.expand(x)  # (B, hidden_dim, H, W)
        if self.training and self._trains_natively(x):
            inside, mean, variance = differentiable.inside_irffn(x, self.expand_norm, self.conv)
            projected = differentiable.folded(inside, mean, variance, self.conv_norm, self.project)
            return self.drop(self.project_norm(projected))  # (B, dim, H, W)
        x = self.expand_norm(self.act(x))
        y = depthwise_by_kernel(x, self.conv, self.act, self.conv_norm)
        if y is None:
            y = self.conv_norm(self.act(self.neighbours(x)))
        return self.drop(self.project_norm(self.project(y)))  # (B, dim, H, W)

    def neighbours(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, hidden_dim, H, W) -> map (B, hidden_dim, H, W)."""
        return _with_identity(self, x)

    def _trains_natively(self, x: torch.Tensor) -> bool:
        """Whether what is between the products is the paper's, and a map that the native loops take."""
        if not self.native or torch.compiler.is_compiling() or could_run_on(x):
            return False
        as_written = (
            differentiable.folds(self.expand_norm)
            and differentiable.folds(self.conv_norm)
            and is_depthwise_3x3(self.conv)
            and is_gelu(self.act)
            and is_pointwise(self.project)
            and not hooked(self.conv, self.act, self.project)
        )
        if not as_written or x.numel() <= x.shape[1]:
            return False
        return differentiable.trains(x, self.expand_norm.weight, self.conv.weight, self.project.weight)


@register_notrace_module
class FastAttention(LightweightAttention):
    """LMHSA with attention, and the convolution before it, computed in the fastest way here."""

    def __init__(self, plain: LightweightAttention) -> None:
        nn.Module.__init__(self)
        self.training = plain.training
        self.num_heads, self.head_dim, self.scale = plain.num_heads, plain.head_dim, plain.scale
        self.kv_stride = plain.kv_stride
        self.native = True
        self.fused_attn = plain.fused_attn  # type: ignore[misc]  # final for the scripting compiler
        for name, module in plain.named_children():
            self.add_module(name, module)
        if plain.position_bias is None:
            self.position_bias = None
        for name in ("q", "k", "v", "proj"):
            if type(linear := getattr(self, name)) is nn.Linear and not hooked(linear):
                setattr(self, name, TokenLinear(linear))
        if ReducingConv.stands_for(self.kv_conv):
            self.kv_conv = ReducingConv(self.kv_conv)

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """softmax(q k^T / sqrt(d) + bias) v: (B, h, N, d)."""
        if not self.fused_attn:
            return super().attend(q, k, v, bias)
        dropout = self.attn_drop.p if self.training else 0.0
        out = attention_by_kernel(q, k, v, bias, dropout)
        if out is not None:
            return out
        if self.native and self.training and dropout == 0:
            tokens = (q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))  # as the linear layers left them
            if differentiable.attends(*tokens, bias):
                return differentiable.attention(*tokens, bias, self.scale).transpose(1, 2)
        in_factors = bias is not None and bias.dim() != 4
        if not self.training or bias is None or in_factors or q.device.type != "cpu":
            return super().attend(q, k, v, bias)
        return written_out_attention(q, k, v, bias, dropout)


@register_notrace_module
class MapGELU(nn.GELU):
    """GELU of a map (B, C, H, W)."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map (B, C, H, W) -> map (B, C, H, W)."""
        if self.training and input.is_contiguous(memory_format=torch.channels_last):
            return F.gelu(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return F.gelu(input)


def faster_act(act: nn.Module) -> nn.Module:
    """``MapGELU`` for an exact GELU that nobody watches, else the module itself."""
    if type(act) is not nn.GELU or not is_gelu(act) or hooked(act):
        return act
    return MapGELU().train(act.training)


@register_notrace_module
class MapLayerNorm(LayerNorm2d):
    """LayerNorm over the channels of a map (B, C, H, W)."""

    def __init__(self, plain: LayerNorm2d) -> None:
        super().__init__(plain.normalized_shape[0], eps=plain.eps, device="meta")
        self.training = plain.training
        self.weight, self.bias = plain.weight, plain.bias
        self.native = True
        self._fast_norm = plain._fast_norm  # type: ignore[misc]  # final for the scripting compiler

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, C, H, W) -> map (B, C, H, W)."""
        if self.native and self.training and differentiable.trains(x, self.weight, self.bias):
            return differentiable.layer_norm(x, self.weight, self.bias, self.eps)
        if not self.training or x.device.type != "cpu" or x.dtype == self.weight.dtype:
            return super().forward(x)
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


@register_notrace_module
class ReducingConv(nn.Conv2d):
    """The depthwise convolution before keys and values, kernel and stride k."""

    def __init__(self, plain: nn.Conv2d) -> None:
        k, bias = plain.kernel_size[0], plain.bias is not None
        dim = plain.in_channels
        super().__init__(dim, plain.out_channels, k, plain.stride[0], groups=dim, bias=bias, device="meta")
        self.training = plain.training
        self.weight, self.bias = plain.weight, plain.bias

    @staticmethod
    def stands_for(conv: nn.Module) -> TypeGuard[nn.Conv2d]:
        """Whether it computes the same as a module, which nobody watches."""
        return (
            type(conv) is nn.Conv2d
            and conv.groups == conv.in_channels
            and conv.kernel_size == conv.stride == (conv.stride[0], conv.stride[0])
            and conv.padding == (0, 0)
            and conv.dilation == (1, 1)
            and not hooked(conv)
        )

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map (B, C, H, W) -> map (B, C, H/k, W/k)."""
        if not self.training or input.device.type != "cpu":
            return super().forward(input)
        with torch.autocast("cpu", enabled=False):
            return super().forward(input.to(self.weight.dtype))


@register_notrace_module
class TokenLinear(nn.Linear):
    """A linear layer over tokens, as a 1 x 1 convolution where that is faster: float32 and MKL without AVX-512."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain.in_features, plain.out_features, plain.bias is not None, device="meta")
        self.training = plain.training
        self.weight, self.bias = plain.weight, plain.bias
        self.as_convolution = mkl_without_avx512() and torch.backends.mkl.is_available()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Tokens (B, N, C) -> tokens (B, N, D)."""
        x, weight = input, self.weight
        if not (self.training and self.as_convolution and x.device.type == "cpu" and x.dim() == 3):
            return super().forward(x)
        if not (x.dtype == weight.dtype == torch.float32) or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        line = x[:, None].permute(0, 3, 1, 2)  # (B, C, 1, N), channels-last
        return F.conv2d(line, weight[..., None, None], self.bias).permute(0, 2, 3, 1)[:, 0]


def _with_identity(module: Any, x: torch.Tensor) -> torch.Tensor:
    """DWConv3x3(x) + x of a map (B, C, H, W), in training in one pass if the precision allows it."""
    conv: nn.Conv2d = module.conv
    as_written = is_depthwise_3x3(conv) and not hooked(conv)
    if not module.training or not as_written or not merges_identity(x, conv.weight):
        return conv(x) + x
    return merged_convolution(x, conv.weight, conv.bias)


def written_out_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor, dropout: float
) -> torch.Tensor:
    """softmax(q k^T / sqrt(d) + bias) v for q (B, h, N, d), k and v (B, h, M, d): (B, h, N, d), with dropout."""
    dtype = torch.promote_types(q.dtype, torch.float32)  # products this small, and softmax, are slower in bfloat16
    bias = bias.to(q.dtype)  # under autocast the table stays in float32
    with torch.autocast("cpu", enabled=False):
        attn = (q.to(dtype) * q.shape[-1] ** -0.5) @ k.to(dtype).transpose(-2, -1) + bias.to(dtype)  # (B, h, N, M)
        return (F.dropout(attn.softmax(dim=-1), dropout) @ v.to(dtype)).to(q.dtype)
