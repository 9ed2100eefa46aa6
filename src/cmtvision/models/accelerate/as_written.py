"""Whether parts of a network are as they were written, so that one operation may stand for several modules.

Someone may have replaced a module, or may watch it by a hook; then the modules themselves run.
"""

from torch import nn


def hooked(*modules: nn.Module | None) -> bool:
    """Whether someone wants to see what goes into a module or comes out of it."""
    return any(
        m is not None and (m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks)
        for m in modules
    )


def is_depthwise_3x3(conv: nn.Module) -> bool:
    """Whether a module is a depthwise 3 x 3 convolution that keeps the size of its map, with zeros around."""
    return (
        type(conv) is nn.Conv2d
        and conv.groups == conv.in_channels == conv.out_channels
        and conv.kernel_size == (3, 3)
        and conv.stride == (1, 1)
        and conv.padding == (1, 1)
        and conv.dilation == (1, 1)
        and conv.padding_mode == "zeros"
    )


def is_gelu(act: nn.Module) -> bool:
    """Whether a module is the exact GELU."""
    return isinstance(act, nn.GELU) and act.approximate == "none"


def is_pointwise(conv: nn.Module) -> bool:
    """Whether a module is a 1 x 1 convolution, a matrix product at every position."""
    return (
        type(conv) is nn.Conv2d
        and conv.kernel_size == conv.stride == (1, 1)
        and conv.padding == (0, 0)
        and conv.groups == 1
    )
