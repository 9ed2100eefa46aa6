"""The layers of a fused network: maps stay (B, H, W, C) in memory, and nothing constant is computed twice.

Every layer has two ways to compute: PyTorch's public operations, which any device and any compiler takes, and on a CPU
oneDNN's with packed weights (``pack``), where GELU and the residual sum are part of the product. oneDNN's are those
that torch.compile's own CPU code calls. What is no product (norms, depthwise convolutions, attention) is then computed
by native loops where this machine can compile them (models/accelerate/native).

Shapes: B batch, H W grid of the input, C its channels, D channels of the output.
"""

from collections.abc import Callable
from typing import Any, Self, TypeAlias, TypeVar

import torch
import torch.nn.functional as F
from torch import nn

from cmtvision.models.accelerate.native import operations
from cmtvision.models.accelerate.native.library import library
from cmtvision.models.cmt.position import Grid

Key = TypeVar("Key")
Value = TypeVar("Value")
KEPT_GRIDS = 4  # sizes of maps whose constants are kept
Strip: TypeAlias = tuple[slice, slice, torch.Tensor]  # rows and columns of a map, and what is added there


def kept_or_made(kept: dict[Key, Value], key: Key, make: Callable[[], Value]) -> Value:
    """A constant that belongs to a map size: of the most recent ``KEPT_GRIDS`` sizes it is kept.

    Several threads may ask at once: each takes what it has found or made, whatever another has dropped meanwhile.
    """
    found = kept.get(key)
    if found is None and torch.compiler.is_compiling():  # a tracer's tensors hold no values
        with torch.no_grad():
            return make()
    if found is None:
        with torch.inference_mode(False), torch.no_grad():  # what is kept may be needed for gradients later
            found = make()
        for oldest in list(kept)[: len(kept) + 1 - KEPT_GRIDS]:
            kept.pop(oldest, None)
        kept[key] = found
    return found


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN's packed layers are available for a device and type."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    bfloat16 = dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32 or bfloat16


class FusedLayer(nn.Module):
    """A product with constant weights."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self._packed: torch.Tensor | None = None

    def pack(self) -> None:
        """Pack the weights for oneDNN if it is available; ``.to`` and copies undo it, new weights are packed again."""
        self._packed = self._pack() if can_pack(self.weight.device, self.weight.dtype) else None

    def _pack(self) -> torch.Tensor:
        raise NotImplementedError

    def packed_for(self, x: torch.Tensor) -> torch.Tensor | None:
        """The packed weights, unless there are none or someone wants a gradient, which oneDNN's layers do not give."""
        return None if torch.is_grad_enabled() and x.requires_grad else self._packed

    def _apply(self, fn: Callable[..., torch.Tensor], recurse: bool = True) -> Self:
        self._packed = None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        if self._packed is not None:
            self.pack()

    def __getstate__(self) -> dict[str, Any]:
        """Packed weights belong to this process: they are neither copied nor saved."""
        return {**self.__dict__, "_packed": None}


class FusedLinear(FusedLayer):
    """x W^T + b over the last axis; then GELU where ``gelu``, or the sum with another map."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, gelu: bool = False) -> None:
        super().__init__(weight, bias)
        self.gelu = gelu

    def _pack(self) -> torch.Tensor:
        packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(self.weight)
        return packed

    def forward(self, x: torch.Tensor, add: torch.Tensor | None = None) -> torch.Tensor:
        """Map (..., C), and with ``add`` a map (..., D) to add to the product -> map (..., D)."""
        packed = self.packed_for(x)
        if packed is None:
            out = F.linear(x, self.weight, self.bias)
            if add is not None:
                out = out + add
            return F.gelu(out) if self.gelu else out
        linear = torch.ops.mkldnn._linear_pointwise
        if add is not None:
            out = linear.binary(x, add, packed, self.bias, "add")
        elif self.gelu:
            return linear(x, packed, self.bias, "gelu", [], "none")
        else:
            out = linear(x, packed, self.bias, "none", [], "")
        return F.gelu(out) if self.gelu else out


class FusedConv(FusedLayer):
    """A convolution of a map and the norm before it: (B, H, W, C) -> (B, H', W', D).

    The norm's scale goes into the weights. Its shift is a constant map, which the convolution makes a constant again,
    except where the kernel meets zero padding: the constant goes into the bias, and the rows and columns at the border
    get the difference added. So a norm before a padded convolution folds exactly, too. Without packed weights it
    stays before it as an elementwise operation, which a compiler fuses with the preceding GELU.

    Args:
        weight: (D, C / groups, k, k).
        bias: (D,), None for none.
        norm: scale and shift of the preceding norm, (C,) each; None for none.
        stride: of the convolution.
        padding: zeros around the map; with 0 the map is padded at its end until the stride divides it.
        groups: 1, or C for a depthwise convolution.
        gelu: GELU after all of it.
    """

    bias: torch.Tensor
    taps: torch.Tensor | None
    scale: torch.Tensor | None
    shift: torch.Tensor | None
    unfolded_weight: torch.Tensor
    unfolded_bias: torch.Tensor

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        norm: tuple[torch.Tensor, torch.Tensor] | None = None,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        gelu: bool = False,
    ) -> None:
        bias = weight.new_zeros(weight.shape[0]) if bias is None else bias
        unfolded = (weight, bias) if norm is not None and padding else (None, None)
        taps = None
        if norm is not None:
            scale, shift = ((v.view(-1, 1, 1, 1) if groups > 1 else v.view(1, -1, 1, 1)) for v in norm)
            taps = (weight * shift).sum(dim=1, keepdim=True)  # (D, 1, k, k): what each tap adds
            bias = bias + taps.sum(dim=(1, 2, 3))
            weight = weight * scale
        super().__init__(weight.contiguous(memory_format=torch.channels_last), bias)
        self.register_buffer("taps", taps)
        self.register_buffer("scale", norm[0] if norm is not None and padding else None)
        self.register_buffer("shift", norm[1] if norm is not None and padding else None)
        self.register_buffer("unfolded_weight", unfolded[0])
        self.register_buffer("unfolded_bias", unfolded[1])
        self.stride, self.padding, self.groups, self.gelu = stride, padding, groups, gelu
        self.kernel: int = weight.shape[-1]
        self._borders: dict[Grid, list[Strip]] = {}
        self._loops: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None] | None = None

    @property
    def reduces(self) -> bool:
        """Whether each value of the map belongs to one of the output: before keys and values."""
        return self.kernel == self.stride and self.padding == 0

    def _pack(self) -> torch.Tensor:
        packed: torch.Tensor = torch.ops.mkldnn._reorder_convolution_weight(
            self.weight, [self.padding] * 2, [self.stride] * 2, [1, 1], self.groups
        )
        return packed

    def pack(self) -> None:
        """See ``FusedLayer.pack``; weights are also laid out for the native loop, where there is one for them."""
        super().pack()
        channels, kind = self.weight.shape[0], (self.kernel, self.stride, self.padding)
        there_is_one = self.groups == channels > 1 and (kind == (3, 1, 1) or (self.reduces and not self.gelu))
        if not there_is_one or self._packed is None or library() is None:
            return
        taps = None if self.taps is None else self.taps.float().reshape(channels, -1).t().contiguous()
        self._loops = self.weight.float().reshape(channels, -1).t().contiguous(), self.bias.float().contiguous(), taps

    def _apply(self, fn: Callable[..., torch.Tensor], recurse: bool = True) -> Self:
        self._borders, self._loops = {}, None
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self._borders = {}
        super()._load_from_state_dict(*arguments)

    def __getstate__(self) -> dict[str, Any]:
        """See ``FusedLayer``."""
        return {**super().__getstate__(), "_loops": None}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, H, W, C) -> map (B, H', W', D)."""
        if self._loops is not None and operations.takes(x):
            if not self.reduces:
                return operations.depthwise(x, *self._loops, self.gelu)
            if x.shape[1] % self.kernel == x.shape[2] % self.kernel == 0:
                return operations.reduce(x, *self._loops[:2], self.kernel)
        packed = self.packed_for(x)
        # of the two ways to fold a norm before padding, plain operations take the one that compilers like
        unfolded = packed is None and self.scale is not None
        border = [] if self.taps is None or unfolded else self._border(self.taps, x.shape[1], x.shape[2])
        x = pad_after(x, self.stride) if self.padding == 0 else x
        return self._plain(x, border) if packed is None else self._with_onednn(x, packed, border)

    def _plain(self, x: torch.Tensor, border: "list[Strip]") -> torch.Tensor:
        weight, bias = self.weight, self.bias
        if self.scale is not None and self.shift is not None:
            x = x * self.scale + self.shift
            weight, bias, border = self.unfolded_weight, self.unfolded_bias, []
        maps = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, self.stride, self.padding, 1, self.groups)
        out = maps.permute(0, 2, 3, 1)  # (B, H', W', D)
        if border:
            difference = torch.zeros_like(out[0])
            for rows, columns, values in border:
                difference[rows, columns] += values
            out = out + difference
        return F.gelu(out) if self.gelu else out

    def _with_onednn(self, x: torch.Tensor, packed: torch.Tensor, border: "list[Strip]") -> torch.Tensor:
        window = [self.padding] * 2, [self.stride] * 2, [1, 1], self.groups
        act = ("gelu", "none") if self.gelu and not border else ("none", "")
        maps = torch.ops.mkldnn._convolution_pointwise(
            x.permute(0, 3, 1, 2), packed, self.bias, *window, act[0], [], act[1]
        )
        out: torch.Tensor = maps.permute(0, 2, 3, 1)  # (B, H', W', D)
        for rows, columns, difference in border:
            out[:, rows, columns].add_(difference)
        return torch.ops.aten.gelu_(out) if self.gelu and border else out

    def _border(self, taps: torch.Tensor, H: int, W: int) -> "list[Strip]":
        """Where the norm's shift meets padding, and what is missing there."""
        return kept_or_made(self._borders, (H, W), lambda: self._new_border(taps.float(), H, W))

    def _new_border(self, taps: torch.Tensor, H: int, W: int) -> "list[Strip]":
        ones = taps.new_ones(1, H, W, 1)
        ones = (pad_after(ones, self.stride) if self.padding == 0 else ones).permute(0, 3, 1, 2)
        added = F.conv2d(ones, taps, stride=self.stride, padding=self.padding)[0].permute(1, 2, 0)  # (H', W', D)
        difference = added - taps.sum(dim=(1, 2, 3))
        rows, columns = self._cut(H), self._cut(W)
        strips: list[Strip] = []
        if rows is not None:
            strips.append((rows, slice(None), difference[rows].to(self.weight.dtype).clone()))
            difference[rows] = 0
        if columns is not None:
            strips.append((slice(None), columns, difference[:, columns].to(self.weight.dtype).clone()))
        return strips

    def _cut(self, size: int) -> slice | None:
        """The outputs along one side whose kernel reaches beyond the map, as a slice; None where none does."""
        outputs = (
            (size + 2 * self.padding - self.kernel) // self.stride + 1 if self.padding else -(-size // self.stride)
        )
        starts = [i * self.stride - self.padding for i in range(outputs)]
        cut = [i for i, start in enumerate(starts) if start < 0 or start + self.kernel > size]
        if not cut:
            return None
        step = cut[1] - cut[0] if len(cut) > 1 else 1
        evenly = cut == list(range(cut[0], cut[-1] + 1, step))
        return slice(cut[0], cut[-1] + 1, step) if evenly else slice(None)


def pad_after(x: torch.Tensor, k: int) -> torch.Tensor:
    """Zero-pad a map (B, H, W, C) at the bottom and right until k divides H and W."""
    pad_h, pad_w = -x.shape[1] % k, -x.shape[2] % k
    return F.pad(x, (0, 0, 0, pad_w, 0, pad_h)) if pad_h or pad_w else x


class LastNorm(nn.Module):
    """LayerNorm over the last axis of a map (B, H, W, C); without scale and shift where what follows has them."""

    weight: torch.Tensor | None
    bias: torch.Tensor | None

    def __init__(
        self, dim: int, eps: float, weight: torch.Tensor | None = None, bias: torch.Tensor | None = None
    ) -> None:
        super().__init__()
        self.dim, self.eps = dim, eps
        self.native = False  # whether a native loop may compute it
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, H, W, C) -> map (B, H, W, C)."""
        if self.native and self.weight is None and operations.takes(x):
            return operations.layer_norm(x, self.eps)
        return F.layer_norm(x, (self.dim,), self.weight, self.bias, self.eps)
