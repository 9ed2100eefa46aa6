"""A depthwise 3x3 convolution and the operations after it, in one pass over a channels-last map, and its gradients.

    z = DWConv3x3(x) + b [+ x];    y = s GELU(z) + t        (GELU by erf; s and t one value per channel)

Everything is added up in float32, whatever the map's type. Backward keeps x alone and computes z again:

    dz = dy s GELU'(z), and in the same pass dw, db, ds, dt;    dx = DWConv3x3^T(dz) [+ dz], the forward kernel again

The sums for dw, db, ds and dt are added in parts, and the parts by PyTorch: no atomics, the same bits on each run.
Shapes: B batch, C channels, H W grid; a program has BLOCK_P positions of the B*H*W and BLOCK_C channels.
"""
# ruff: noqa: N803, PLR0915  # constants of a Triton kernel are upper case; it has no arrays of tensors
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-calls=False

from typing import Any

import torch
import triton
import triton.language as tl
from torch.library import triton_op, wrap_triton

from cmtvision.models.accelerate.kernels.launching import configurations, split
from cmtvision.models.accelerate.kernels.switch import device_of

NUM_SUMS = 12  # 9 of the weight, then bias, scale, shift
SPAN = 64  # all BLOCK_P of the backward kernel divide it


@triton.jit
def _tap(x_ptr, at, row, column, valid, H, W, C, dy: tl.constexpr, dx: tl.constexpr):
    """The map dy rows and dx columns away (BLOCK_P, BLOCK_C), zero outside."""
    inside = (row + dy >= 0) & (row + dy < H) & (column + dx >= 0) & (column + dx < W)
    return tl.load(x_ptr + at + (dy * W + dx) * C, mask=inside[:, None] & valid, other=0.0).to(tl.float32)


@triton.jit
def _vector(ptr, at, mask):
    """One value per channel (1, BLOCK_C)."""
    return tl.load(ptr + at, mask=mask, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _normal_below(z):
    """The share of a standard normal below z: GELU(z) = z times that."""
    return 0.5 * (1.0 + tl.erf(z * 0.7071067811865476))


@triton.autotune(
    configurations(
        ({"BLOCK_P": 32, "BLOCK_C": 64}, 4, 2),
        ({"BLOCK_P": 16, "BLOCK_C": 128}, 4, 2),
        ({"BLOCK_P": 64, "BLOCK_C": 32}, 4, 2),
        ({"BLOCK_P": 64, "BLOCK_C": 64}, 8, 2),
    ),
    key=["H", "W", "C"],
)
@triton.jit
def _forward_kernel(
    x_ptr,
    w_ptr,
    b_ptr,
    s_ptr,
    t_ptr,
    y_ptr,
    positions,
    H,
    W,
    C,
    HAS_BIAS: tl.constexpr,
    IDENTITY: tl.constexpr,
    GELU: tl.constexpr,
    AFFINE: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    channel = c < C
    valid = (p < positions)[:, None] & channel[None, :]
    row = (p // W) % H
    column = p % W
    at = p.to(tl.int64)[:, None] * C + c[None, :]
    z = tl.zeros((BLOCK_P, BLOCK_C), dtype=tl.float32)
    if HAS_BIAS:
        z += _vector(b_ptr, c, channel)
    for tap in tl.static_range(9):
        near = _tap(x_ptr, at, row, column, valid, H, W, C, tap // 3 - 1, tap % 3 - 1)
        if TRANSPOSED:
            z += near * _vector(w_ptr, c * 9 + (8 - tap), channel)
        else:
            z += near * _vector(w_ptr, c * 9 + tap, channel)
        if tap == 4 and IDENTITY:
            z += near
    if GELU:
        z = z * _normal_below(z)
    if AFFINE:
        z = z * _vector(s_ptr, c, channel) + _vector(t_ptr, c, channel)
    tl.store(y_ptr + at, z.to(y_ptr.dtype.element_ty), mask=valid)


@triton.autotune(
    configurations(
        ({"BLOCK_P": 8, "BLOCK_C": 64}, 4, 2),
        ({"BLOCK_P": 16, "BLOCK_C": 32}, 4, 2),
        ({"BLOCK_P": 16, "BLOCK_C": 64}, 8, 2),
        ({"BLOCK_P": 8, "BLOCK_C": 128}, 8, 2),
    ),
    key=["H", "W", "C"],
)
@triton.jit
def _backward_kernel(
    dy_ptr,
    x_ptr,
    w_ptr,
    b_ptr,
    s_ptr,
    dz_ptr,
    sums_ptr,
    positions,
    span,
    H,
    W,
    C,
    HAS_BIAS: tl.constexpr,
    IDENTITY: tl.constexpr,
    GELU: tl.constexpr,
    AFFINE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Writes dz, and the sums over the ``span`` positions of a program (parts, 12, C)."""
    part = tl.program_id(0)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    channel = c < C
    w0 = _vector(w_ptr, c * 9, channel)
    w1 = _vector(w_ptr, c * 9 + 1, channel)
    w2 = _vector(w_ptr, c * 9 + 2, channel)
    w3 = _vector(w_ptr, c * 9 + 3, channel)
    w4 = _vector(w_ptr, c * 9 + 4, channel)
    w5 = _vector(w_ptr, c * 9 + 5, channel)
    w6 = _vector(w_ptr, c * 9 + 6, channel)
    w7 = _vector(w_ptr, c * 9 + 7, channel)
    w8 = _vector(w_ptr, c * 9 + 8, channel)
    bias = tl.zeros((1, BLOCK_C), dtype=tl.float32)
    if HAS_BIAS:
        bias = _vector(b_ptr, c, channel)
    scale = tl.full((1, BLOCK_C), 1.0, dtype=tl.float32)
    if AFFINE:
        scale = _vector(s_ptr, c, channel)
    # sums stay apart for each position of the block until the end: adding them up costs as much as a tile's arithmetic
    d0 = tl.zeros((BLOCK_P, BLOCK_C), dtype=tl.float32)
    d1 = tl.zeros((BLOCK_P, BLOCK_C), dtype=tl.float32)
    d2 = tl.zeros((BLOCK_P, BLOCK_C), dtype=tl.float32)
    d3 = tl.zeros((BLOCK_P, BLOCK_C), dtype=tl.float32)
    d4 = tl.zeros((BLOCK_P, BLOCK_C), dtype=tl.float32)
    d5 = tl.zeros((BLOCK_P, BLOCK_C), dtype=tl.float32)
    d6 = tl.zeros((BLOCK_P, BLOCK_C), dtype=tl.float32)
    d7 = tl.zeros((BLOCK_P, BLOCK_C), dtype=tl.float32)
    d8 = tl.zeros((BLOCK_P, BLOCK_C), dtype=tl.float32)
    d_bias = tl.zeros((BLOCK_P, BLOCK_C), dtype=tl.float32)
    d_scale = tl.zeros((BLOCK_P, BLOCK_C), dtype=tl.float32)
    d_shift = tl.zeros((BLOCK_P, BLOCK_C), dtype=tl.float32)
    for start in range(0, span, BLOCK_P):
        p = part * span + start + tl.arange(0, BLOCK_P)
        valid = (p < positions)[:, None] & channel[None, :]
        row = (p // W) % H
        column = p % W
        at = p.to(tl.int64)[:, None] * C + c[None, :]
        x0 = _tap(x_ptr, at, row, column, valid, H, W, C, -1, -1)
        x1 = _tap(x_ptr, at, row, column, valid, H, W, C, -1, 0)
        x2 = _tap(x_ptr, at, row, column, valid, H, W, C, -1, 1)
        x3 = _tap(x_ptr, at, row, column, valid, H, W, C, 0, -1)
        x4 = _tap(x_ptr, at, row, column, valid, H, W, C, 0, 0)
        x5 = _tap(x_ptr, at, row, column, valid, H, W, C, 0, 1)
        x6 = _tap(x_ptr, at, row, column, valid, H, W, C, 1, -1)
        x7 = _tap(x_ptr, at, row, column, valid, H, W, C, 1, 0)
        x8 = _tap(x_ptr, at, row, column, valid, H, W, C, 1, 1)
        dy = tl.load(dy_ptr + at, mask=valid, other=0.0).to(tl.float32)
        dz = dy
        if GELU or AFFINE:
            z = x0 * w0 + x1 * w1 + x2 * w2 + x3 * w3 + x4 * w4 + x5 * w5 + x6 * w6 + x7 * w7 + x8 * w8 + bias
            if IDENTITY:
                z += x4
            slope = tl.full((BLOCK_P, BLOCK_C), 1.0, dtype=tl.float32)
            out = z
            if GELU:
                below = _normal_below(z)
                out = z * below
                slope = below + z * (tl.exp(-0.5 * z * z) * 0.3989422804014327)
            if AFFINE:
                d_scale += dy * out
                d_shift += dy
            dz = dy * scale * slope
            tl.store(dz_ptr + at, dz.to(dz_ptr.dtype.element_ty), mask=valid)
        d0 += dz * x0
        d1 += dz * x1
        d2 += dz * x2
        d3 += dz * x3
        d4 += dz * x4
        d5 += dz * x5
        d6 += dz * x6
        d7 += dz * x7
        d8 += dz * x8
        d_bias += dz
    to = sums_ptr + part * (12 * C) + c
    tl.store(to, tl.sum(d0, axis=0), mask=channel)
    tl.store(to + C, tl.sum(d1, axis=0), mask=channel)
    tl.store(to + 2 * C, tl.sum(d2, axis=0), mask=channel)
    tl.store(to + 3 * C, tl.sum(d3, axis=0), mask=channel)
    tl.store(to + 4 * C, tl.sum(d4, axis=0), mask=channel)
    tl.store(to + 5 * C, tl.sum(d5, axis=0), mask=channel)
    tl.store(to + 6 * C, tl.sum(d6, axis=0), mask=channel)
    tl.store(to + 7 * C, tl.sum(d7, axis=0), mask=channel)
    tl.store(to + 8 * C, tl.sum(d8, axis=0), mask=channel)
    tl.store(to + 9 * C, tl.sum(d_bias, axis=0), mask=channel)
    tl.store(to + 10 * C, tl.sum(d_scale, axis=0), mask=channel)
    tl.store(to + 11 * C, tl.sum(d_shift, axis=0), mask=channel)


def _run_forward(kernel, x, weight, bias, scale, shift, identity, gelu, transposed=False):
    """The map y; x (B, C, H, W) in channels-last memory."""
    B, C, H, W = x.shape
    y = torch.empty((B, C, H, W), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    positions = B * H * W

    def grid(meta):
        return (triton.cdiv(positions, meta["BLOCK_P"]), triton.cdiv(C, meta["BLOCK_C"]))

    absent = weight  # a pointer that is not read
    kernel[grid](
        x, weight, absent if bias is None else bias, absent if scale is None else scale,
        absent if shift is None else shift, y, positions, H, W, C, HAS_BIAS=bias is not None, IDENTITY=identity,
        GELU=gelu, AFFINE=scale is not None, TRANSPOSED=transposed,
    )  # fmt: skip
    return y


def _run_backward(kernel, forward_kernel, dy, x, weight, bias, scale, identity, gelu):
    """dx (B, C, H, W), and the sums (12, C) in float32: of the weight, the bias, scale, shift."""
    B, C, H, W = x.shape
    dy = dy.contiguous(memory_format=torch.channels_last)
    positions = B * H * W
    parts, span = split(positions, triton.cdiv(C, 64), SPAN)
    same = not gelu and scale is None  # then dz is dy
    dz = dy if same else torch.empty_like(x, memory_format=torch.channels_last)
    sums = torch.empty((parts, NUM_SUMS, C), dtype=torch.float32, device=x.device)

    def grid(meta):
        return (parts, triton.cdiv(C, meta["BLOCK_C"]))

    absent = weight
    kernel[grid](
        dy, x, weight, absent if bias is None else bias, absent if scale is None else scale, dz, sums, positions, span,
        H, W, C, HAS_BIAS=bias is not None, IDENTITY=identity, GELU=gelu, AFFINE=scale is not None,
    )  # fmt: skip
    dx = _run_forward(forward_kernel, dz, weight, None, None, None, identity, False, transposed=True)
    return dx, sums.sum(0)


def _operands(x, weight, bias, scale, shift):
    """As the kernels read them: the map in channels-last memory, vectors contiguous, the weight (C, 9)."""
    vectors = [None if v is None else v.contiguous() for v in (bias, scale, shift)]
    return x.contiguous(memory_format=torch.channels_last), weight.reshape(weight.shape[0], 9).contiguous(), *vectors


@triton_op("cmtvision::depthwise", mutates_args=())
def _depthwise_op(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    identity: bool,
    gelu: bool,
) -> torch.Tensor:
    x, weight, bias, scale, shift = _operands(x, weight, bias, scale, shift)
    return _run_forward(wrap_triton(_forward_kernel), x, weight, bias, scale, shift, identity, gelu)


@triton_op("cmtvision::depthwise_backward", mutates_args=())
def _depthwise_backward_op(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    scale: torch.Tensor | None,
    identity: bool,
    gelu: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    x, weight, bias, scale, _ = _operands(x, weight, bias, scale, None)
    kernels = wrap_triton(_backward_kernel), wrap_triton(_forward_kernel)
    return _run_backward(*kernels, dy, x, weight, bias, scale, identity, gelu)


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    x, weight, bias, scale, shift, ctx.identity, ctx.gelu = inputs
    ctx.save_for_backward(x, weight, bias, scale)
    ctx.types = [None if v is None else v.dtype for v in (bias, scale, shift)]


def _gradients(ctx: Any, dx: torch.Tensor, sums: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    weight = ctx.saved_tensors[1]
    d_weight = sums[:9].t().reshape(weight.shape).to(weight.dtype)
    vectors = [None if dtype is None else row.to(dtype) for dtype, row in zip(ctx.types, sums[9:], strict=True)]
    return dx, d_weight, *vectors, None, None


def _op_gradients(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    return _gradients(ctx, *_depthwise_backward_op(dy, *ctx.saved_tensors, ctx.identity, ctx.gelu))


_depthwise_op.register_autograd(_op_gradients, setup_context=_keep)


class _Depthwise(torch.autograd.Function):
    """The same without an operator in between, whose bookkeeping costs more than a small map."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> torch.Tensor:
        _keep(ctx, inputs, None)
        x, weight, bias, scale, shift, identity, gelu = inputs
        x, weight, bias, scale, shift = _operands(x, weight, bias, scale, shift)
        with device_of(x):  # autograd sees to that of the backward pass
            return _run_forward(_forward_kernel, x, weight, bias, scale, shift, identity, gelu)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, bias, scale = ctx.saved_tensors
        x, weight, bias, scale, _ = _operands(x, weight, bias, scale, None)
        flags = ctx.identity, ctx.gelu
        return _gradients(ctx, *_run_backward(_backward_kernel, _forward_kernel, dy, x, weight, bias, scale, *flags))


def depthwise(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
    identity: bool = True,
    gelu: bool = True,
) -> torch.Tensor:
    """scale * GELU(DWConv3x3(x) + bias + x) + shift, padded with zeros, on a GPU.

    Args:
        x: map (B, C, H, W) in float32, bfloat16 or float16; one in another memory format is copied.
        weight: (C, 1, 3, 3).
        bias: (C,) or None.
        scale: (C,), with ``shift``, or None for neither.
        shift: (C,).
        identity: add x to what the convolution gives.
        gelu: apply GELU.

    Returns:
        Map (B, C, H, W) of x's type in channels-last memory. Once differentiable with respect to all five tensors.
    """
    if torch.compiler.is_compiling():
        return _depthwise_op(x, weight, bias, scale, shift, identity, gelu)
    return _Depthwise.apply(x, weight, bias, scale, shift, identity, gelu)
