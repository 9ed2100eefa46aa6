"""The functions that networks call: a kernel's result, or None if the network must use its plain path.

A kernel computes what several modules of a block do. If one of them is not the paper's (replaced, or with a hook
on its output), the modules run instead.
"""

from collections.abc import Hashable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from cmtvision.models.accelerate.as_written import hooked, is_depthwise_3x3, is_gelu
from cmtvision.models.accelerate.kernels.choice import kernel_pays
from cmtvision.models.accelerate.kernels.switch import could_run_on, kernels_mode
from cmtvision.models.accelerate.merged import merged_convolution, merges_identity

TYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST_KEYS = 256
WIDEST_HEAD = 128


def depthwise_by_kernel(
    x: torch.Tensor, conv: nn.Conv2d, act: nn.Module | None = None, norm: nn.Module | None = None
) -> torch.Tensor | None:
    """norm(act(conv(x) + x)) of a map (B, C, H, W) in one pass, or None.

    Args:
        x: the map.
        conv: a depthwise 3x3 convolution with padding 1.
        act: GELU, or None for none.
        norm: a norm after it, or None. A BatchNorm that uses its running statistics is part of the kernel.
    """
    if not (could_run_on(x) and x.dtype in TYPES and x.dim() == 4 and x.numel() > 0 and _takes(conv)):
        return None
    if (act is not None and not is_gelu(act)) or hooked(conv, act):
        return None
    folds = _is_fixed_batch_norm(norm)
    scale, shift = _affine(norm) if folds else (None, None)

    def kernel(*inputs: torch.Tensor | None) -> torch.Tensor:
        from cmtvision.models.accelerate.kernels.depthwise import depthwise

        x, weight, bias, scale, shift = inputs
        assert x is not None
        assert weight is not None
        return depthwise(x, weight, bias, scale, shift, gelu=act is not None)

    def plain(
        x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *_: torch.Tensor | None
    ) -> torch.Tensor:
        if conv.training and merges_identity(x, weight):
            z = merged_convolution(x, weight, bias)
        else:
            z = F.conv2d(x, weight, bias, padding=1, groups=conv.groups) + x
        z = z if act is None else F.gelu(z)
        return norm(z) if folds and norm is not None else z

    inputs = (x, conv.weight, conv.bias, scale, shift)
    if kernels_mode() == "auto":
        if not x.is_contiguous(memory_format=torch.channels_last):
            return None
        if not kernel_pays(_key("depthwise", inputs, act is not None, folds), kernel, plain, inputs):
            return None
    out = kernel(*inputs)
    return out if norm is None or folds else norm(out)


def attention_by_kernel(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None, dropout: float
) -> torch.Tensor | None:
    """softmax(q k^T / sqrt(d) + bias) v (B, h, N, d), or None.

    Args:
        q: queries (B, h, N, d).
        k: keys (B, h, M, d).
        v: values (B, h, M, d).
        bias: (1, h, N, M), in its own precision; without one PyTorch's own kernels are as good.
        dropout: of the attention weights, 0 where nothing is dropped.
    """
    if not could_run_on(q) or bias is None or dropout > 0:
        return None
    M, d = k.shape[2], k.shape[3]
    if M > MOST_KEYS or d > WIDEST_HEAD or q.numel() == 0 or bias.shape != (1, q.shape[1], q.shape[2], M):
        return None
    if q.dtype not in TYPES or bias.dtype not in TYPES or not q.dtype == k.dtype == v.dtype:
        return None

    def kernel(*inputs: torch.Tensor | None) -> torch.Tensor:
        from cmtvision.models.accelerate.kernels.attention import attention

        return attention(*inputs)  # type: ignore[arg-type]

    def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))

    inputs = (q, k, v, bias)
    if kernels_mode() == "auto" and not kernel_pays(_key("attention", inputs), kernel, plain, inputs):
        return None
    return kernel(*inputs)


def _key(name: str, inputs: Sequence[torch.Tensor | None], *flags: bool) -> Hashable:
    """What the times depend on: shapes (the batch to a power of two), types, device, which gradients are wanted."""
    x, other = inputs[0], inputs[1]
    assert x is not None
    assert other is not None
    batch = 1 << (x.shape[0].bit_length() - 1)
    gradients = tuple(torch.is_grad_enabled() and v is not None and v.requires_grad for v in inputs)
    autocast = torch.is_autocast_enabled(x.device.type)
    types = tuple(None if v is None else str(v.dtype) for v in inputs)
    return (name, batch, *x.shape[1:], *other.shape[1:], types, str(x.device), gradients, autocast, *flags)


def _takes(conv: nn.Conv2d) -> bool:
    return is_depthwise_3x3(conv) and conv.weight.dtype in TYPES and not hooked(conv)


def _is_fixed_batch_norm(norm: nn.Module | None) -> bool:
    return type(norm) is nn.BatchNorm2d and not norm.training and norm.track_running_stats and not hooked(norm)


def _affine(norm: nn.Module | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and shift (C,) that a BatchNorm with fixed statistics is."""
    assert isinstance(norm, nn.BatchNorm2d)
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    scale = torch.rsqrt(variance + norm.eps)
    if not norm.affine:
        return scale, -mean * scale
    scale = scale * norm.weight
    return scale, norm.bias - mean * scale
