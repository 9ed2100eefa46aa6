"""Fully sharded training: each process keeps its share of every weight, its gradient and the optimiser's state.

PyTorch's FSDP2 under Lightning's ModelParallelStrategy. Each block of a stage is a unit: its weights are gathered right
before it runs, in both passes, and given back after it; what is left (stem, position bias, head) is the root's. The
arithmetic is ddp's, so are the checkpoints: one file of whole tensors, with the names and numbers of a plain network.

Lightning's own way to save goes through torch.distributed.checkpoint, which takes an optimiser step with zero gradients
to find the shapes of a state and does not know weights that have none; ours reads and writes the shares themselves.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pytorch_lightning.strategies import ModelParallelStrategy, Strategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from cmtvision.engine.distributed.processes import Processes
from cmtvision.errors import ConfigError
from cmtvision.recipe import Recipe

# Those that were seen to take the same steps on shares as on whole tensors. Others don't run, or take the mean of a
# share for that of the whole and go another way without a word (adafactorbv, muon).
_OPTIMIZERS = (
    "adagrad", "adam", "adamax", "adamw", "adan", "adopt", "lamb", "laprop", "lars", "lion", "momentum", "nadam",
    "nadamw", "nesterov", "radam", "rmsprop", "rmsproptf", "sgd", "sgdw",
)  # fmt: skip


def check_sharding(recipe: Recipe, processes: Processes) -> None:
    """Whether a recipe's training can be spread over these processes.

    Raises:
        ConfigError: it cannot.
    """
    if processes.world_size == 1:
        raise ConfigError("train.strategy fsdp: it spreads a network over processes, and there is one; add --devices N")
    if recipe.optim.name not in _OPTIMIZERS:
        raise ConfigError(
            f"optim.name {recipe.optim.name}: train.strategy fsdp gives an optimiser parts of weights only, which this "
            f"one does not take; use ddp, or one of {', '.join(_OPTIMIZERS)}"
        )
    if recipe.train.compile:
        raise ConfigError("train.compile: not with train.strategy fsdp; use ddp, or leave compile out")
    if recipe.train.precision == "fp16":
        raise ConfigError("train.precision fp16: train.strategy fsdp has no scaled gradients; use bf16, fp32 or ddp")


def shard_network(network: nn.Module, mesh: DeviceMesh) -> None:
    """Leave this process its share of every parameter, along the first dimension; in place, buffers stay whole.

    FSDP takes contiguous parameters only, so train.channels_last does not reach the weights here, only the maps:
    a convolution then lays out its (small) weights at each call.

    Args:
        network: each of its ``stages`` holds ``blocks``; another network's ``blocks``, or itself, is all one unit.
        mesh: the processes, one dimension.
    """
    network.to(memory_format=torch.contiguous_format)
    for block in _blocks(network):
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)


def is_sharded(module: nn.Module) -> bool:
    """Whether a process holds only a share of its parameters."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def whole_state(module: nn.Module, first_only: bool = False) -> dict[str, torch.Tensor]:
    """The state dict in whole tensors: a plain module's own, a distributed one's on the CPU.

    Of a distributed one all processes must call it. Without synchronised batch norms their running statistics differ;
    those of the first are taken, as ddp does.

    Args:
        module: any.
        first_only: of a distributed module only the first process needs them; the others get nothing.
    """
    if not is_sharded(module):
        return module.state_dict()
    found = {}
    for name, value in module.state_dict().items():
        whole = whole_tensor(value)
        if not isinstance(value, DTensor):
            whole = whole.clone()
            dist.broadcast(whole, src=0)
        if not first_only or dist.get_rank() == 0:
            found[name] = whole.cpu()
    return found


def load_whole_state(module: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Take whole tensors, or this process's shares of them, over into a module.

    Raises:
        RuntimeError: names or shapes that are not the module's.
    """
    own = module.state_dict()
    module.load_state_dict({name: _share_like(value, own.get(name)) for name, value in state.items()})


def local(value: torch.Tensor) -> torch.Tensor:
    """What this process holds of a tensor, without its gradient; changing it in place changes the tensor."""
    value = value.detach()
    held: torch.Tensor = value.to_local() if isinstance(value, DTensor) else value
    return held


def whole_tensor(value: torch.Tensor) -> torch.Tensor:
    """A tensor as a plain one, without its gradient; of a distributed one all processes must call it."""
    value = value.detach()
    whole: torch.Tensor = value.full_tensor() if isinstance(value, DTensor) else value
    return whole


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's strategy, with checkpoints of whole tensors as every other run has them."""

    def __init__(self, world_size: int) -> None:
        super().__init__(data_parallel_size=world_size, tensor_parallel_size=1, save_distributed_checkpoint=False)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Lightning hands the saved state to ``load_optimizer_state_dict``."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The module in whole tensors, for the first process, which writes."""
        assert self.lightning_module is not None
        return whole_state(self.lightning_module, first_only=True)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The optimiser's state in whole tensors, by the parameters' numbers."""
        saved = optimizer.state_dict()
        states = {number: _map(values, self._to_write) for number, values in saved["state"].items()}
        return {**saved, "state": states}

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Read the file; what is in it is handed on to the methods below."""
        # Lightning forgets to say so where the strategy restores late
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only=True)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """This process's shares of the saved weights."""
        assert self.lightning_module is not None
        load_whole_state(self.lightning_module, checkpoint["state_dict"])

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """This process's shares of the saved state: of every tensor in it that has the shape of its weight."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            states = {
                number: _map(values, partial(_share_like, like=weights[number]))
                for number, values in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": states})

    def _to_write(self, value: torch.Tensor) -> torch.Tensor:
        whole = whole_tensor(value)
        return whole.cpu() if self.is_global_zero else whole.new_empty(0)


def _blocks(network: nn.Module) -> list[nn.Module]:
    stages = getattr(network, "stages", None)
    owners = list(stages) if isinstance(stages, nn.Sequential | nn.ModuleList) else [network]
    found: list[nn.Module] = []
    for owner in owners:
        blocks = getattr(owner, "blocks", None)
        if isinstance(blocks, nn.Sequential | nn.ModuleList):
            found.extend(blocks)
    return found


def _share_like(value: torch.Tensor, like: Any) -> torch.Tensor:
    """The share of a whole tensor that belongs beside ``like``, where that is distributed and has its shape."""
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    mesh = like.device_mesh
    shares = value.contiguous().chunk(mesh.size())
    rank = mesh.get_local_rank()
    own = shares[rank] if rank < len(shares) else value[:0]  # fewer rows than processes: the last hold none
    return DTensor.from_local(
        own.clone().to(like.device), mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def _map(values: Mapping[str, Any], change: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, Any]:
    return {name: change(value) if isinstance(value, torch.Tensor) else value for name, value in values.items()}
