"""The native loops as functions of tensors on a CPU, float32 or bfloat16, contiguous and without gradients.

Weights and biases are float32.

Shapes: B batch, H W map, C channels, N queries, M keys, h heads, d head width.
"""

import torch
from torch.autograd import forward_ad

from cmtvision.models.accelerate.native.library import library, loops

TYPES = (torch.float32, torch.bfloat16)


def has_data(x: torch.Tensor) -> bool:
    """Whether a tensor has its numbers in memory, and nobody follows the operations that compute with it.

    A loop reads memory and is no operation of PyTorch's. So it is not seen by whoever compiles, traces or counts
    (dispatch modes), nor by vmap and forward derivatives, whose tensors are of no class of their own.
    """
    return (
        type(x) is torch.Tensor
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch._C._len_torch_dispatch_stack()
        and torch._C._functorch.peek_interpreter_stack() is None
        and forward_ad._current_level < 0
    )


def takes(x: torch.Tensor) -> bool:
    """Whether there are loops, and they can compute with a tensor, and may, as nobody follows or differentiates."""
    return (
        has_data(x)
        and x.dtype in TYPES
        and x.is_cpu
        and x.is_contiguous()
        and not (torch.is_grad_enabled() and x.requires_grad)
        and library() is not None
    )


def layer_norm(x: torch.Tensor, eps: float) -> torch.Tensor:
    """LayerNorm over the last axis, without scale and shift: (..., C) -> (..., C)."""
    out = torch.empty_like(x)
    call("cmt_layer_norm", x, out, x.numel() // x.shape[-1], x.shape[-1], eps)
    return out


def depthwise(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, absent: torch.Tensor | None, gelu: bool
) -> torch.Tensor:
    """A depthwise 3 x 3 convolution of stride 1, zeros around: (B, H, W, C) -> (B, H, W, C).

    Args:
        x: the map.
        weight: (9, C), tap by tap.
        bias: (C,).
        absent: (9, C), subtracted for each tap that meets the border; None for nothing.
        gelu: GELU after it.
    """
    out = torch.empty_like(x)
    call("cmt_depthwise", x, out, *x.shape, weight, bias, absent, gelu)
    return out


def reduce(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, k: int) -> torch.Tensor:
    """A depthwise k x k convolution of stride k: (B, H, W, C) -> (B, H / k, W / k, C).

    Args:
        x: the map, whose sides k divides.
        weight: (k k, C), tap by tap.
        bias: (C,).
        k: kernel and stride.
    """
    B, H, W, C = x.shape
    out = x.new_empty(B, H // k, W // k, C)
    call("cmt_reduce", x, out, B, H, W, C, k, weight, bias)
    return out


def attention(
    q: torch.Tensor, kv: torch.Tensor, bias: torch.Tensor | None, num_heads: int, scale: float
) -> torch.Tensor:
    """softmax(q k^T scale + bias) v of each head.

    Args:
        q: (B, N, h d).
        kv: (B, M, 2 h d), keys and then values.
        bias: (1, h, N, M), float32, or None.
        num_heads: h.
        scale: of the products.

    Returns:
        (B, N, h d).
    """
    B, N, width = q.shape
    M, d = kv.shape[1], width // num_heads
    out = torch.empty_like(q)
    keys, values = kv.data_ptr(), kv.data_ptr() + width * kv.element_size()
    shape = (B, N, M, num_heads, d, 2 * width)
    call("cmt_attention", q, keys, values, bias, out, None, *shape, scale)
    return out


def call(name: str, x: torch.Tensor, *arguments: torch.Tensor | float | None) -> None:
    """Call a loop for float32 or bfloat16: tensors go by address, ``x`` says which type the maps, or tokens, have.

    Raises:
        RuntimeError: there is no memory for what it keeps meanwhile.
    """
    values = [v.data_ptr() if isinstance(v, torch.Tensor) else v for v in arguments]
    if getattr(loops(), name)(x.dtype == torch.bfloat16, x.data_ptr(), *values):
        raise RuntimeError(f"{name}: not enough memory")
