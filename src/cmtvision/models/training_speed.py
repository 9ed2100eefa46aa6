"""What training computes another way than inference, for speed alone: the same mathematics, fewer passes over memory.

Evaluation, TorchScript and export never come here. ``plain_training`` switches it off, for tests and benchmarks.

- DWConv(x) + x is one convolution, whose kernel has 1 added to its middle (in float32).
- GELU runs over a channels-last map as it lies in memory, where oneDNN takes it.
- The convolution in front of keys and values stays in float32 under bfloat16 autocast on a CPU, where oneDNN's bfloat16
  gradient of a depthwise one with large strides takes five to ten times as long.
- LayerNorm, too, is computed in float32 there: with a bfloat16 map and float32 weights PyTorch's is slower.
- Attention with a bias that learns is written out on a CPU, in float32: PyTorch's fused kernel there has no gradient
  for the bias, and what it falls back to does more than is needed.

Shapes: B batch, C channels, H W grid, N queries, M keys, h heads, d head width.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from timm.models import register_notrace_module
from torch import nn

_plain = False


def _traced(x: object) -> bool:
    """Whether torch.fx traces: a trace must have the same nodes in training and in evaluation."""
    return isinstance(x, torch.fx.Proxy)


@contextmanager
def plain_training() -> Iterator[None]:
    """Within it training computes the equations one operation at a time, in all threads of this process."""
    from cmtvision.models.kernels import use_kernels  # which compare themselves with what is below

    global _plain  # noqa: PLW0603
    before, _plain = _plain, True
    try:
        with use_kernels("off"):
            yield
    finally:
        _plain = before


def depthwise_with_identity(x: torch.Tensor, conv: nn.Conv2d) -> torch.Tensor:
    """DWConv3x3(x) + x of a map (B, C, H, W), in one pass where numbers are precise enough for it.

    Beside the 1 a bfloat16 kernel would round its middle weight to steps of 1/128, and evaluation would see another.
    """
    if _traced(x) or not merges_identity(x, conv.weight):
        return conv(x) + x
    return merged_convolution(x, conv.weight, conv.bias)


def merges_identity(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether training computes DWConv(x) + x as one convolution."""
    return not (_plain or torch.is_autocast_enabled(x.device.type) or weight.dtype.itemsize < 4)


def merged_convolution(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """DWConv3x3(x) + x of a map (B, C, H, W) as one convolution; weight (C, 1, 3, 3), bias (C,)."""
    middle = F.pad(weight.new_ones((1, 1, 1, 1)), (1, 1, 1, 1))  # (1, 1, 3, 3)
    return F.conv2d(x, weight + middle, bias, padding=1, groups=weight.shape[0])


@register_notrace_module
class MapGELU(nn.GELU):
    """GELU of a map (B, C, H, W)."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map (B, C, H, W) -> map (B, C, H, W)."""
        if self.training and not torch.jit.is_scripting():
            return _map_gelu(input)
        return F.gelu(input)


@register_notrace_module
class MapLayerNorm(LayerNorm2d):
    """LayerNorm over the channels of a map (B, C, H, W)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, C, H, W) -> map (B, C, H, W)."""
        if self.training and not torch.jit.is_scripting():
            return self._training_forward(x)
        return self._norm(x)

    def _norm(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.permute(0, 2, 3, 1)  # (B, H, W, C)
        return F.layer_norm(tokens, self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)

    @torch.jit.ignore
    def _training_forward(self, x: torch.Tensor) -> torch.Tensor:
        if _plain or x.device.type != "cpu" or x.dtype == self.weight.dtype:
            return self._norm(x)
        return self._norm(x.to(self.weight.dtype)).to(x.dtype)


@torch.jit.ignore
def _map_gelu(x: torch.Tensor) -> torch.Tensor:
    if _plain or not x.is_contiguous(memory_format=torch.channels_last):
        return F.gelu(x)
    return F.gelu(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@register_notrace_module
class ReducingConv(nn.Conv2d):
    """The depthwise convolution in front of keys and values, kernel and stride k."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map (B, C, H, W) -> map (B, C, H/k, W/k)."""
        if self.training and not torch.jit.is_scripting():
            return self._training_forward(input)
        return self._conv_forward(input, self.weight, self.bias)

    @torch.jit.ignore
    def _training_forward(self, x: torch.Tensor) -> torch.Tensor:
        if _plain or x.device.type != "cpu":
            return self._conv_forward(x, self.weight, self.bias)
        with torch.autocast("cpu", enabled=False):
            return self._conv_forward(x.to(self.weight.dtype), self.weight, self.bias)


def training_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None, dropout: float
) -> torch.Tensor:
    """softmax(q k^T / sqrt(d) + bias) v for q (B, h, N, d), k and v (B, h, M, d): (B, h, N, d), with dropout."""
    if _plain or bias is None or _traced(q) or q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
    dtype = torch.promote_types(q.dtype, torch.float32)  # products this small, and softmax, are slower in bfloat16
    with torch.autocast("cpu", enabled=False):
        attn = (q.to(dtype) * q.shape[-1] ** -0.5) @ k.to(dtype).transpose(-2, -1) + bias.to(dtype)  # (B, h, N, M)
        return (F.dropout(attn.softmax(dim=-1), dropout) @ v.to(dtype)).to(q.dtype)
