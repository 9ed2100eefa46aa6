"""Attention of many queries to few keys, with a learned bias that images share, and its gradients.

    S = q k^T / sqrt(d) + bias;    P = softmax(S);    out = P v

M is 49 in the paper's networks, so a row of S fits into one tile: softmax is taken over it at once, and backward, which
keeps the inputs alone, computes it again. Two kernels there:

    dP = do v^T;  dS = P (dP - sum_j P dP);   1. dq = dS k / sqrt(d),  dk = dS^T q / sqrt(d),  dv = P^T do
                                              2. dbias = sum over images of dS

Each recomputes S, so that no (B, h, N, M) is ever in memory. Sums over queries (1.) and images (2.) are added in parts
in registers and the parts by PyTorch: no atomics, the same bits on each run. Products are of the inputs' type, sums and
softmax in float32; in float32 products are exact unless ``torch.set_float32_matmul_precision`` allows TF32.

Shapes: B batch, h heads, N queries, M keys (M <= 256), d head width (<= 128); BLOCK_M and BLOCK_D hold M and d.
"""
# ruff: noqa: N803  # constants of a Triton kernel are upper case
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-calls=False

from typing import Any

import torch
import triton
import triton.language as tl
from torch.library import triton_op, wrap_triton

from cmtvision.models.accelerate.kernels.launching import block_of, configurations, split
from cmtvision.models.accelerate.kernels.switch import INTERPRETED, device_of

ROWS = 128  # all BLOCK_N divide it
_UPCAST = tl.constexpr(INTERPRETED)  # the interpreter (Triton 3.9) multiplies the bits of bfloat16 as integers


@triton.jit
def _product(a, b, TF32: tl.constexpr):
    """The matrix product a b, added up in float32."""
    if _UPCAST:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    return tl.dot(a, b, input_precision="tf32" if TF32 else "ieee")


@triton.jit
def _rows(ptr, at, n, N, c, d, stride):
    """Rows n of a matrix (N, d): (BLOCK_N, BLOCK_D), zeros beyond."""
    mask = (n < N)[:, None] & (c < d)[None, :]
    return tl.load(ptr + at + n.to(tl.int64)[:, None] * stride + c[None, :], mask=mask, other=0.0)


@triton.jit
def _softmax(q, k, bias_ptr, head, n, m, N, M, scale, TF32: tl.constexpr):
    """P (BLOCK_N, BLOCK_M) in float32; zeros at keys that do not exist."""
    s = _product(q, tl.trans(k), TF32) * scale
    inside = (n < N)[:, None] & (m < M)[None, :]
    at = (head * N + n).to(tl.int64)[:, None] * M + m[None, :]
    s += tl.load(bias_ptr + at, mask=inside, other=0.0).to(tl.float32)
    s = tl.where((m < M)[None, :], s, float("-inf"))
    e = tl.exp(s - tl.max(s, axis=1)[:, None])
    return e / tl.sum(e, axis=1)[:, None]


@triton.jit
def _softmax_gradient(p, do, v, TF32: tl.constexpr):
    """DS (BLOCK_N, BLOCK_M) in float32; rows of zeros where do is zero."""
    dp = _product(do, tl.trans(v), TF32)
    return p * (dp - tl.sum(p * dp, axis=1)[:, None])


@triton.autotune(
    configurations(
        ({"BLOCK_N": 64}, 4, 2),
        ({"BLOCK_N": 32}, 4, 2),
        ({"BLOCK_N": 128}, 4, 2),
        ({"BLOCK_N": 128}, 8, 2),
    ),
    key=["h", "N", "M", "d"],
)
@triton.jit
def _forward_kernel(
    q_ptr, k_ptr, v_ptr, bias_ptr, o_ptr, h, N, M, d, scale,
    q_image, q_head, q_row, k_image, k_head, k_row, v_image, v_head, v_row,
    TF32: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    image = (tl.program_id(1) // h).to(tl.int64)
    head = tl.program_id(1) % h
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.arange(0, BLOCK_M)
    c = tl.arange(0, BLOCK_D)
    q = _rows(q_ptr, image * q_image + head * q_head, n, N, c, d, q_row)
    k = _rows(k_ptr, image * k_image + head * k_head, m, M, c, d, k_row)
    v = _rows(v_ptr, image * v_image + head * v_head, m, M, c, d, v_row)
    p = _softmax(q, k, bias_ptr, head, n, m, N, M, scale, TF32)
    o = _product(p.to(v.dtype), v, TF32)
    at = ((image * N + n)[:, None] * h + head) * d + c[None, :]
    tl.store(o_ptr + at, o.to(o_ptr.dtype.element_ty), mask=(n < N)[:, None] & (c < d)[None, :])


@triton.autotune(
    configurations(
        ({"BLOCK_N": 32}, 4, 1),
        ({"BLOCK_N": 64}, 4, 1),
        ({"BLOCK_N": 64}, 8, 1),
        ({"BLOCK_N": 16}, 4, 1),
    ),
    key=["h", "N", "M", "d"],
)
@triton.jit
def _backward_kernel(
    do_ptr, q_ptr, k_ptr, v_ptr, bias_ptr, dq_ptr, dk_ptr, dv_ptr, h, N, M, d, span, scale,
    do_image, do_head, do_row, q_image, q_head, q_row, k_image, k_head, k_row, v_image, v_head, v_row,
    TF32: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Writes dq (B, N, h, d), and dk, dv of the ``span`` queries of a program (parts, B, M, h, d)."""
    image = (tl.program_id(1) // h).to(tl.int64)
    head = tl.program_id(1) % h
    m = tl.arange(0, BLOCK_M)
    c = tl.arange(0, BLOCK_D)
    k = _rows(k_ptr, image * k_image + head * k_head, m, M, c, d, k_row)
    v = _rows(v_ptr, image * v_image + head * v_head, m, M, c, d, v_row)
    dk = tl.zeros((BLOCK_M, BLOCK_D), dtype=tl.float32)
    dv = tl.zeros((BLOCK_M, BLOCK_D), dtype=tl.float32)
    for start in range(0, span, BLOCK_N):
        n = tl.program_id(0) * span + start + tl.arange(0, BLOCK_N)
        q = _rows(q_ptr, image * q_image + head * q_head, n, N, c, d, q_row)
        do = _rows(do_ptr, image * do_image + head * do_head, n, N, c, d, do_row)
        p = _softmax(q, k, bias_ptr, head, n, m, N, M, scale, TF32)
        ds = (_softmax_gradient(p, do, v, TF32) * scale).to(q.dtype)
        dv += _product(tl.trans(p.to(do.dtype)), do, TF32)
        dk += _product(tl.trans(ds), q, TF32)
        dq = _product(ds, k, TF32)
        at = ((image * N + n)[:, None] * h + head) * d + c[None, :]
        tl.store(dq_ptr + at, dq.to(dq_ptr.dtype.element_ty), mask=(n < N)[:, None] & (c < d)[None, :])
    images = tl.num_programs(1) // h
    at = (((tl.program_id(0) * images + image) * M + m)[:, None] * h + head) * d + c[None, :]
    mask = (m < M)[:, None] & (c < d)[None, :]
    tl.store(dk_ptr + at, dk.to(dk_ptr.dtype.element_ty), mask=mask)
    tl.store(dv_ptr + at, dv.to(dv_ptr.dtype.element_ty), mask=mask)


@triton.autotune(
    configurations(
        ({"BLOCK_N": 32}, 4, 2),
        ({"BLOCK_N": 64}, 8, 2),
        ({"BLOCK_N": 32}, 4, 1),
        ({"BLOCK_N": 16}, 4, 1),
    ),
    key=["h", "N", "M", "d"],
)
@triton.jit
def _bias_kernel(
    do_ptr, q_ptr, k_ptr, v_ptr, bias_ptr, db_ptr, B, h, N, M, d, span, scale,
    do_image, do_head, do_row, q_image, q_head, q_row, k_image, k_head, k_row, v_image, v_head, v_row,
    TF32: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Writes the bias's gradient from the ``span`` images of a program (parts, h, N, M)."""
    part = tl.program_id(2)
    head = tl.program_id(1)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.arange(0, BLOCK_M)
    c = tl.arange(0, BLOCK_D)
    db = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    for i in range(part * span, tl.minimum(part * span + span, B)):
        image = tl.full((), 0, tl.int64) + i
        q = _rows(q_ptr, image * q_image + head * q_head, n, N, c, d, q_row)
        k = _rows(k_ptr, image * k_image + head * k_head, m, M, c, d, k_row)
        v = _rows(v_ptr, image * v_image + head * v_head, m, M, c, d, v_row)
        do = _rows(do_ptr, image * do_image + head * do_head, n, N, c, d, do_row)
        p = _softmax(q, k, bias_ptr, head, n, m, N, M, scale, TF32)
        db += _softmax_gradient(p, do, v, TF32)
    at = ((part * h + head) * N + n).to(tl.int64)[:, None] * M + m[None, :]
    tl.store(db_ptr + at, db, mask=(n < N)[:, None] & (m < M)[None, :])


def _blocks(M, d):
    """The kernel constants that follow from the shapes and from PyTorch's precision setting."""
    return {
        "BLOCK_M": block_of(M),
        "BLOCK_D": block_of(d),
        "TF32": torch.get_float32_matmul_precision() != "highest",
    }


def _matrix(x):
    """As the kernels read it: the values of a row contiguous."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _run_forward(kernel, q, k, v, bias):
    """Out (B, h, N, d), a view of memory (B, N, h, d)."""
    B, h, N, d = q.shape
    M = k.shape[2]
    out = torch.empty((B, N, h, d), dtype=q.dtype, device=q.device)

    def grid(meta):
        return (triton.cdiv(N, meta["BLOCK_N"]), B * h)

    strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3])
    kernel[grid](q, k, v, bias, out, h, N, M, d, d**-0.5, *strides, **_blocks(M, d))
    return out.transpose(1, 2)


def _run_backward(kernel, do, q, k, v, bias):
    """dq (B, h, N, d), dk, dv (B, h, M, d), each a view of memory with the heads after the tokens."""
    B, h, N, d = q.shape
    M = k.shape[2]
    parts, span = split(N, B * h, ROWS)
    dq = torch.empty((B, N, h, d), dtype=q.dtype, device=q.device)
    part_type = q.dtype if parts == 1 else torch.float32
    dk, dv = (torch.empty((parts, B, M, h, d), dtype=part_type, device=q.device) for _ in range(2))
    strides = (*do.stride()[:3], *q.stride()[:3], *k.stride()[:3], *v.stride()[:3])
    kernel[(parts, B * h)](
        do, q, k, v, bias, dq, dk, dv, h, N, M, d, span, d**-0.5, *strides, **_blocks(M, d)
    )  # fmt: skip
    if parts == 1:
        dk, dv = dk[0], dv[0]
    else:
        dk, dv = dk.sum(0).to(k.dtype), dv.sum(0).to(v.dtype)
    return dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2)


def _run_bias(kernel, do, q, k, v, bias):
    """The gradient of the bias (1, h, N, M) in float32."""
    B, h, N, d = q.shape
    M = k.shape[2]
    parts, span = split(B, triton.cdiv(N, 64) * h, 1)
    d_bias = torch.empty((parts, h, N, M), dtype=torch.float32, device=q.device)

    def grid(meta):
        return (triton.cdiv(N, meta["BLOCK_N"]), h, parts)

    strides = (*do.stride()[:3], *q.stride()[:3], *k.stride()[:3], *v.stride()[:3])
    kernel[grid](do, q, k, v, bias, d_bias, B, h, N, M, d, span, d**-0.5, *strides, **_blocks(M, d))
    return d_bias.sum(0, keepdim=True)


@triton_op("cmtvision::attention", mutates_args=())
def _attention_op(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return _run_forward(wrap_triton(_forward_kernel), _matrix(q), _matrix(k), _matrix(v), bias.contiguous())


@triton_op("cmtvision::attention_backward", mutates_args=())
def _attention_backward_op(
    do: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    matrices = _matrix(do), _matrix(q), _matrix(k), _matrix(v)
    return _run_backward(wrap_triton(_backward_kernel), *matrices, bias.contiguous())


@triton_op("cmtvision::attention_bias", mutates_args=())
def _attention_bias_op(
    do: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    return _run_bias(wrap_triton(_bias_kernel), _matrix(do), _matrix(q), _matrix(k), _matrix(v), bias.contiguous())


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _op_gradients(ctx: Any, do: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    bias = ctx.saved_tensors[3]
    d_bias = _attention_bias_op(do, *ctx.saved_tensors).to(bias.dtype) if ctx.needs_input_grad[3] else None
    return *_attention_backward_op(do, *ctx.saved_tensors), d_bias


_attention_op.register_autograd(_op_gradients, setup_context=_keep)


class _Attention(torch.autograd.Function):
    """The same without an operator in between, whose bookkeeping costs more than a small product."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> torch.Tensor:
        _keep(ctx, inputs, None)
        q, k, v, bias = inputs
        with device_of(q):  # autograd sees to that of the backward pass
            return _run_forward(_forward_kernel, _matrix(q), _matrix(k), _matrix(v), bias.contiguous())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, do: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, bias = ctx.saved_tensors
        operands = _matrix(do), _matrix(q), _matrix(k), _matrix(v), bias.contiguous()
        d_bias = _run_bias(_bias_kernel, *operands).to(bias.dtype) if ctx.needs_input_grad[3] else None
        return *_run_backward(_backward_kernel, *operands), d_bias


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """softmax(q k^T / sqrt(d) + bias) v on a GPU.

    Args:
        q: queries (B, h, N, d) in float32, bfloat16 or float16.
        k: keys (B, h, M, d) of the same type.
        v: values (B, h, M, d) of the same type.
        bias: (1, h, N, M), in any of those types.

    Returns:
        (B, h, N, d) of q's type, a view of memory (B, N, h, d). Once differentiable with respect to all four tensors.
    """
    if torch.compiler.is_compiling():
        return _attention_op(q, k, v, bias)
    return _Attention.apply(q, k, v, bias)
