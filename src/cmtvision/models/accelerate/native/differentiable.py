"""Training by native loops: functions of maps with gradients of their own.

A map is (B, C, H, W) in channels-last memory, float32 or bfloat16, on a CPU; parameters and statistics are float32.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from cmtvision.models.accelerate.as_written import hooked
from cmtvision.models.accelerate.native.library import library
from cmtvision.models.accelerate.native.operations import TYPES, call, has_data

MOST_BIASES = 1 << 24  # sums that all threads keep for the gradient of a position bias
Maps = torch.channels_last


def trains(x: torch.Tensor, *parameters: torch.Tensor | None) -> bool:
    """Whether the loops can compute with a map and these parameters (None for one that is missing), and may."""
    if not has_data(x):
        return False
    return (
        x.device.type == "cpu"
        and x.dtype in TYPES
        and x.dim() == 4
        and x.numel() > 0
        and x.is_contiguous(memory_format=Maps)
        and all(p is not None and p.device.type == "cpu" and p.dtype == torch.float32 for p in parameters)
        and (opened := library()) is not None
        and x.shape[1] >= opened.cmt_narrowest()
    )


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    """LayerNorm over the channels of a map."""
    out: torch.Tensor = _LayerNorm.apply(x, weight, bias, eps)
    return out


def attends(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether the loops can compute attention of these, and may: as ``trains``, of tokens (B, N or M, h, d)."""
    if not has_data(q):
        return False
    if bias is not None:
        whole = bias.shape == (1, q.shape[2], q.shape[1], k.shape[1])
        if not whole or bias.dtype != torch.float32 or bias.device.type != "cpu":
            return False
        if torch.get_num_threads() * bias.numel() > MOST_BIASES:
            return False
    return (
        q.device.type == k.device.type == v.device.type == "cpu"
        and q.dtype in TYPES
        and q.dtype == k.dtype == v.dtype
        and q.numel() > 0
        and q.shape[0] * q.shape[2] >= torch.get_num_threads()  # a head of an image is one thread's
        and q.is_contiguous()
        and k.is_contiguous()
        and v.is_contiguous()
        and library() is not None
    )


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """softmax(q k^T scale + bias) v.

    Args:
        q: queries (B, N, h, d).
        k: keys (B, M, h, d).
        v: values (B, M, h, d).
        bias: (1, h, N, M), float32, or None.
        scale: of the products.

    Returns:
        (B, N, h, d).
    """
    out: torch.Tensor = _Attention.apply(q, k, v, bias, scale)
    return out


def folds(norm: nn.Module) -> bool:
    """Whether a norm is a batch norm that ``inside_irffn`` or ``folded`` can compute: in training, with parameters."""
    return type(norm) is nn.BatchNorm2d and norm.training and norm.affine and not hooked(norm)


def inside_irffn(
    x: torch.Tensor, expand_norm: nn.BatchNorm2d, conv: nn.Conv2d
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """GELU, batch norm, depthwise 3 x 3 convolution with identity, GELU of a map.

    Updates the running statistics of the norm.

    Returns:
        The map, and the mean and variance (C,) of its channels.
    """
    taps = conv.weight.flatten(1).t().contiguous()  # (9, C)
    bias = conv.bias
    if bias is None:
        bias = taps.new_zeros(taps.shape[1])
    out, mean, variance, mean_before, variance_before = _InsideIRFFN.apply(
        x, expand_norm.weight, expand_norm.bias, taps, bias, expand_norm.eps
    )
    update(expand_norm, mean_before, variance_before, x.numel() // x.shape[1])
    return out, mean, variance


def folded(
    x: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor, norm: nn.BatchNorm2d, project: nn.Conv2d
) -> torch.Tensor:
    """A 1 x 1 convolution of a batch norm of a map with this mean and variance (C,): the norm is in the weights.

    Updates the running statistics of the norm.
    """
    update(norm, mean.detach(), variance.detach(), x.numel() // x.shape[1])
    scale = norm.weight * torch.rsqrt(variance + norm.eps)
    shift = norm.bias - mean * scale
    weight = project.weight.flatten(1)  # (D, C)
    with torch.autocast("cpu", enabled=False):
        bias = weight @ shift if project.bias is None else torch.addmv(project.bias, weight, shift)
    return F.conv2d(x, (weight * scale)[..., None, None], bias)


def update(norm: nn.BatchNorm2d, mean: torch.Tensor, variance: torch.Tensor, count: int) -> None:
    """Move the running statistics of a batch norm towards a batch's, as the module does; variance is biased."""
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    with torch.no_grad():
        norm.num_batches_tracked.add_(1)
        by = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        norm.running_mean.lerp_(mean, by)
        norm.running_var.lerp_(variance * (count / (count - 1)), by)


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
        rows, C = x.numel() // x.shape[1], x.shape[1]
        out = torch.empty_like(x)
        mean, scale = _float32(x, 2, rows).unbind(0)
        call("cmt_norm_forward", x, out, rows, C, eps, weight.contiguous(), bias.contiguous(), mean, scale)
        ctx.save_for_backward(x, weight, mean, scale)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, mean, scale = _saved(ctx, 1)
        rows, C = x.numel() // x.shape[1], x.shape[1]
        dx = torch.empty_like(x)
        dweight, dbias = _float32(x, 2, C).unbind(0)
        call("cmt_norm_backward", _like(dout, x), x, dx, rows, C, weight.contiguous(), mean, scale, dweight, dbias)
        return dx, dweight, dbias, None


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None, scale: float
    ) -> torch.Tensor:
        B, N, h, d = q.shape
        M = k.shape[1]
        added = None if bias is None else bias.contiguous()
        out = torch.empty_like(q)
        log_sums = _float32(q, B, h, N)
        call("cmt_attention", q, k, v, added, out, log_sums, B, N, M, h, d, h * d, scale)
        ctx.save_for_backward(q, k, v, added, out, log_sums)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, bias, out, log_sums = _saved(ctx)
        B, N, h, d = q.shape
        M = k.shape[1]
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        dbias = torch.empty_like(bias) if ctx.needs_input_grad[3] else None
        dout = dout.to(q.dtype).contiguous()
        call(
            "cmt_attention_backward", dout, q, k, v, out, bias, log_sums, dq, dk, dv, dbias,
            B, N, M, h, d, h * d, ctx.scale,
        )  # fmt: skip
        return dq, dk, dv, dbias, None


class _InsideIRFFN(torch.autograd.Function):
    """See training.cpp. n is the norm of g: n = scale g + shift, with scale = weight / sqrt(variance + eps).

    The mean and the variance of a map x of N values a channel have the gradient dmean / N + 2 dvariance (x - mean) / N.
    """

    @staticmethod
    def forward(
        ctx: Any,
        e: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        taps: torch.Tensor,
        conv_bias: torch.Tensor,
        eps: float,
    ) -> tuple[torch.Tensor, ...]:
        B, C, H, W = e.shape
        d, out = torch.empty_like(e), torch.empty_like(e)
        mean, variance, out_mean, out_variance = _float32(e, 4, C).unbind(0)
        call("cmt_gelu_moments", e, B * H * W, C, mean, variance)
        by = torch.rsqrt(variance + eps)
        scale = weight * by
        shift = bias - mean * scale
        taps = taps.clone()
        taps[4] += 1  # the identity
        absent = taps * shift
        constant = absent.sum(dim=0) + conv_bias
        call("cmt_irffn_forward", e, d, out, B, H, W, C, taps * scale, constant, absent, out_mean, out_variance)
        ctx.save_for_backward(e, d, weight, taps, mean, by, scale, shift, out_mean)
        ctx.mark_non_differentiable(mean, variance)
        return out, out_mean, out_variance, mean, variance

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, dout: torch.Tensor, dout_mean: torch.Tensor, dout_variance: torch.Tensor, *_: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        e, d, weight, taps, mean, by, scale, shift, out_mean = _saved(ctx, 2)
        B, C, H, W = e.shape
        count = B * H * W
        dd, de = torch.empty_like(e), torch.empty_like(e)
        sums = _float32(e, 2, 9, C)
        times = dout_variance * (2 / count)
        add = dout_mean / count - times * out_mean
        call("cmt_irffn_backward_to_d", _like(dout, e), d, e, dd, B, H, W, C, add, times, sums)
        with_g, alone = sums.unbind(0)  # sums of dd g and of dd, for each tap
        dtaps = scale * with_g + shift * alone
        dscale, dshift = (taps * sums).sum(dim=1).unbind(0)
        dscale = dscale - mean * dshift  # the mean is in the shift
        dvariance = dscale * weight * by**3 * -0.5
        times = dvariance * (2 / count)
        add = scale * dshift / -count - times * mean
        call("cmt_irffn_backward_to_e", dd, e, de, B, H, W, C, taps * scale, add, times)
        return de, dscale * by, dshift, dtaps, alone[4], None


def _float32(x: torch.Tensor, *shape: int) -> torch.Tensor:
    """Room for numbers that are float32 beside ``x``, whatever the default type and device are."""
    return x.new_empty(shape, dtype=torch.float32)


def _saved(ctx: Any, maps: int = 0) -> list[Any]:
    """What the forward pass kept, the first ``maps`` of them maps, in the memory that the loops read.

    Whoever keeps them elsewhere meanwhile (saved_tensors_hooks) may give them back in another layout.
    """
    saved = ctx.saved_tensors
    rest = [None if x is None else x.contiguous() for x in saved[maps:]]
    return [*(x.contiguous(memory_format=Maps) for x in saved[:maps]), *rest]


def _like(gradient: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return gradient.to(x.dtype).contiguous(memory_format=Maps)
