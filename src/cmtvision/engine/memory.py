"""How much memory training takes, worked out from shapes alone before anything is computed.

What the backward pass needs is what autograd saves in the forward pass, so the network runs forward once on PyTorch's
fake tensors, which have shapes and types but no values, and every saved storage is counted once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from cmtvision.engine.optim import build_optimizer
from cmtvision.errors import CmtvisionError
from cmtvision.recipe import Recipe

_BYTES = 4  # weights, gradients, optimiser state and the average are float32, whatever the precision of the products


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes that training holds in one process. What a library or a device needs besides is not in it.

    Attributes:
        weights: parameters and buffers.
        gradients: of the parameters that learn.
        optimizer: the optimiser's state.
        ema: the averaged network, 0 for none.
        per_photo: what the backward pass needs for one photo of the batch; None where the network cannot be traced.
    """

    weights: int
    gradients: int
    optimizer: int
    ema: int
    per_photo: int | None

    def total(self, batch_size: int) -> int | None:
        """Everything, with that many photos at a time; None where the photos' share is unknown."""
        if self.per_photo is None:
            return None
        return self.weights + self.gradients + self.optimizer + self.ema + self.per_photo * batch_size


def training_memory(
    model: nn.Module, recipe: Recipe, input_size: tuple[int, int, int], processes: int = 1
) -> TrainingMemory:
    """Estimate a process's memory.

    Args:
        model: the network in train mode, on any device, the meta device too; what does not learn has no
            ``requires_grad``. It is left as it is.
        recipe: optimiser, precision, average and strategy are taken from it ('auto' precision counts as fp32).
        input_size: (C, H, W) of one photo in pixels.
        processes: with strategy fsdp they share weights, gradients and state.
    """
    learning = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    everything = sum(value.numel() for value in [*model.parameters(), *model.buffers()])
    shared = processes if recipe.train.strategy == "fsdp" else 1
    weights = everything * _BYTES // shared
    return TrainingMemory(
        weights=weights,
        gradients=learning * _BYTES // shared,
        optimizer=round(learning * _BYTES * _state_size(recipe)) // shared,
        ema=weights if recipe.ema.enabled else 0,
        per_photo=saved_bytes(model, input_size, recipe.train.precision),
    )


def saved_bytes(model: nn.Module, input_size: tuple[int, int, int], precision: str = "fp32") -> int | None:
    """Bytes that autograd saves for each photo of a batch, parameters and what does not grow with the batch aside.

    Args:
        model: the network in train mode, on any device; it is left as it is.
        input_size: (C, H, W) of one photo in pixels.
        precision: 'bf16' and 'fp16' count under autocast.

    Returns:
        None where the network cannot run without values.
    """
    half = {"bf16": torch.bfloat16, "fp16": torch.bfloat16}.get(precision)  # the CPU's autocast rules: bf16 is as long
    few, many = 2, 4
    try:
        saved = [_saved(model, input_size, batch, half) for batch in (few, many)]
    except (RuntimeError, TypeError, AssertionError, NotImplementedError):
        return None
    return max(0, (saved[1] - saved[0]) // (many - few))


def _saved(model: nn.Module, input_size: tuple[int, int, int], batch: int, half: torch.dtype | None) -> int:
    with torch.random.fork_rng(devices=[]), FakeTensorMode(allow_non_fake_inputs=True):
        # stand-ins for all values: the network's own, and its batch norms' statistics, are not touched
        values = {
            name: torch.empty(parameter.shape, dtype=parameter.dtype).requires_grad_(parameter.requires_grad)
            for name, parameter in model.named_parameters()
        }
        own = {value.untyped_storage()._cdata for value in values.values()}
        values |= {name: torch.empty(value.shape, dtype=value.dtype) for name, value in model.named_buffers()}
        with torch.autocast("cpu", dtype=half or torch.bfloat16, enabled=half is not None), _counting(own) as saved:
            images = torch.empty(batch, *input_size)
            logits = torch.func.functional_call(model, values, (images,))
            loss = F.cross_entropy(logits.float(), torch.zeros(batch, dtype=torch.long))
            total = sum(saved.values())
        del loss
    return total


@contextmanager
def _counting(own: set[int]) -> Iterator[dict[int, int]]:
    """Sizes in bytes of the storages that autograd saves, by identity; those in ``own`` are left out."""
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved


def _state_size(recipe: Recipe) -> float:
    """Values that the optimiser keeps for each value of a parameter: those of one step on a small matrix."""
    layer = _OneLayer()
    plain = recipe.model_copy(
        update={
            "model": recipe.model.model_copy(update={"freeze": "none"}),
            "optim": recipe.optim.model_copy(update={"layer_decay": None}),
        }
    )
    try:
        optimizer = build_optimizer(layer, plain, recipe.optim.lr, torch.device("cpu"))
        layer.weight.grad = torch.ones_like(layer.weight)
        optimizer.step()
    except CmtvisionError:
        raise
    except (RuntimeError, TypeError, ValueError):  # one that wants a closure or more than a matrix
        return 2.0
    kept = [value for value in optimizer.state[layer.weight].values() if isinstance(value, torch.Tensor)]
    return sum(value.numel() for value in kept if value.numel() > 1) / layer.weight.numel()


class _OneLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(16, 16))
