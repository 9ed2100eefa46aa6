"""What the largest activations need: the most bytes that must be held at one moment of a forward pass.

The network's operations are written down in their order, on shapes only. A tensor is needed from the operation that
makes it to the last one that reads it; views share their tensor's bytes. At an operation everything needed before it,
that it reads, and that it makes is held together:

    need = max over operations o of  sum of bytes of { tensors t: made(t) <= o <= last read(t) }

Weights are left out, the image is counted. Attention is one operation here, as fused kernels run it: its scores are no
tensor. What a program holds beyond this is its own: variables that live on, scratch memory, pools of an allocator.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cmtvision.errors import ConfigError, first_line


def activation_need(model: nn.Module, input_size: Sequence[int], batch: int = 1) -> int:
    """Bytes of activations that a forward pass must hold at one moment, in the network's own precision.

    Args:
        model: any network; it is left as it is.
        input_size: (C, H, W) of one image, in pixels.
        batch: images.

    Raises:
        ConfigError: a network that cannot run on shapes alone, or not on such images.
    """
    shapes_only = copy.deepcopy(model).to("meta").eval()
    weights = {_storage(tensor) for tensor in [*shapes_only.parameters(), *shapes_only.buffers()]}
    images = torch.empty(batch, *input_size, device="meta")
    trace = _Trace()
    try:
        with torch.no_grad(), trace, _AttentionAsOne(trace):
            shapes_only(images)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ConfigError(f"{type(model).__name__} on {tuple(input_size)}: {first_line(error)}") from error
    return trace.need(weights)


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


class _Trace(TorchDispatchMode):
    """Writes down which storages each operation touches."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._bytes: dict[int, int] = {}
        self._touched: list[set[int]] = []
        self._kept: list[torch.Tensor] = []  # or a storage's number would be given again

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self.touch((args, kwargs, out))
        return out

    def touch(self, values: Any) -> None:
        """One operation, which reads or makes all tensors among the values."""
        touched = set()
        for tensor in _tensors(values):
            storage = _storage(tensor)
            if storage not in self._bytes:
                self._bytes[storage] = tensor.untyped_storage().nbytes()
                self._kept.append(tensor)
            touched.add(storage)
        self._touched.append(touched)

    def need(self, weights: set[int]) -> int:
        """The largest sum of bytes held together, weights left out."""
        first: dict[int, int] = {}
        last: dict[int, int] = {}
        for place, touched in enumerate(self._touched):
            for storage in touched - weights:
                first.setdefault(storage, place)
                last[storage] = place
        change = [0] * (len(self._touched) + 1)
        for storage, place in first.items():
            change[place] += self._bytes[storage]
            change[last[storage] + 1] -= self._bytes[storage]
        held = most = 0
        for step in change:
            held += step
            most = max(most, held)
        return most


class _AttentionAsOne(TorchFunctionMode):
    """On shapes alone PyTorch would take attention apart, scores and all."""

    def __init__(self, trace: _Trace) -> None:
        super().__init__()
        self._trace = trace

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not F.scaled_dot_product_attention or len(args) < 3:
            return func(*args, **(kwargs or {}))
        queries, _, values = args[:3]
        out = queries.new_empty(*queries.shape[:-1], values.shape[-1])
        self._trace.touch((args, kwargs, out))
        return out


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    return (value for value in tree_leaves(values) if isinstance(value, torch.Tensor))
