"""Parameters, multiply-adds and activations of a model, layer by layer, without computing anything.

The model runs once on PyTorch's meta device (shapes only), so any size takes well under a second. Multiply-adds (MACs)
are those of convolutions and matrix products at ATen level, the two of attention included; biases, norms, activation
functions and softmax are left out, as the literature counts. Activations are the output elements of the same
operations.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from cmtvision.errors import ConfigError

FLOPS_PER_MAC = 2
OTHER = "(other)"


@dataclass(frozen=True)
class LayerCount:
    """What one part of a model costs for one image.

    Attributes:
        name: its path in the model; '(other)' for what belongs to no listed part.
        output: shape of its output for a batch of one, () where it gives no single tensor.
        parameters: learned values, those of its inner modules included.
        macs: multiply-adds of convolutions and matrix products.
        activations: output elements of convolutions and matrix products.
    """

    name: str
    output: tuple[int, ...]
    parameters: int
    macs: int
    activations: int


def count(model: nn.Module, input_size: Sequence[int]) -> list[LayerCount]:
    """Count a model's parts in the order in which they run: stem, stages, what follows, head.

    Args:
        model: any network; it is left unchanged, on whatever device it is.
        input_size: (C, H, W) of one image, in pixels.

    Returns:
        One row for each top-level part with parameters or work; a list of stages is opened into its stages. What the
        rows hold adds up to the whole model (``total``).

    Raises:
        ConfigError: a model that cannot take an image of that size.
    """
    shapes_only = copy.deepcopy(model).to("meta").eval()
    parts = dict(_parts(shapes_only))
    tally = _Tally(parts)
    try:
        # with gradients on, composite operations reach the tally in the parts that it knows
        with torch.enable_grad(), tally:
            shapes_only(torch.empty(1, *input_size, device="meta"))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{type(model).__name__} cannot take an image of {tuple(input_size)}: {reason}") from error
    finally:
        tally.detach()
    seen: set[int] = set()
    rows = []
    # parameters are counted on the model itself: in the copy, what two parts shared has become two
    for name, part in [*_parts(model), (OTHER, model)]:
        params, shape = _parameters(part, seen), tally.outputs.get(name, ())
        rows.append(LayerCount(name, shape, params, tally.macs[name], tally.activations[name]))
    return [row for row in rows if row.parameters or row.macs]


def total(rows: Sequence[LayerCount]) -> LayerCount:
    """The sum of rows; its output is the last one's."""
    return LayerCount(
        name="total",
        output=next((row.output for row in reversed(rows) if row.output), ()),
        parameters=sum(row.parameters for row in rows),
        macs=sum(row.macs for row in rows),
        activations=sum(row.activations for row in rows),
    )


class _Tally(TorchDispatchMode):
    """Adds up what every operation costs, for the part that is running."""

    def __init__(self, parts: dict[str, nn.Module]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs = dict.fromkeys([*parts, OTHER], 0)
        self.activations = dict(self.macs)
        self.outputs: dict[str, tuple[int, ...]] = {}
        self._running = [OTHER]
        self._hooks = [hook for name, part in parts.items() for hook in self._attach(name, part)]

    def detach(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()

    def _attach(self, name: str, part: nn.Module) -> Iterator[Any]:
        def begin(module: nn.Module, args: Any) -> None:
            self._running.append(name)

        def end(module: nn.Module, args: Any, output: Any) -> None:
            self._running.pop()
            if isinstance(output, torch.Tensor):
                self.outputs[name] = tuple(output.shape)

        yield part.register_forward_pre_hook(begin)
        yield part.register_forward_hook(end)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        packet = func._overloadpacket
        formula: Callable[..., int] | None = flop_registry.get(packet)
        if formula is None:
            with self:  # a composite operation is counted by what it consists of
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        if formula is not None:
            result = out[0] if isinstance(out, tuple) else out
            self.macs[self._running[-1]] += formula(*args, **kwargs, out_val=out) // FLOPS_PER_MAC
            self.activations[self._running[-1]] += result.numel()
        return out


def _parts(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Top-level parts; a list of modules, or a sequence in which the features of stages are taken, is opened."""
    taps = [str(info.get("module", "")) for info in _feature_info(model)]
    for name, child in model.named_children():
        inside = any(tap.startswith(f"{name}.") for tap in taps)
        if isinstance(child, nn.ModuleList) or (isinstance(child, nn.Sequential) and inside):
            yield from ((f"{name}.{inner}", module) for inner, module in child.named_children())
        else:
            yield name, child


def _feature_info(model: nn.Module) -> list[dict[str, Any]]:
    info = getattr(model, "feature_info", [])
    return list(info.get_dicts() if hasattr(info, "get_dicts") else info)


def _parameters(module: nn.Module, seen: set[int]) -> int:
    """Parameters not yet counted elsewhere."""
    fresh = [parameter for parameter in module.parameters() if id(parameter) not in seen]
    seen.update(id(parameter) for parameter in fresh)
    return sum(parameter.numel() for parameter in fresh)
