"""The processes of a run: one, or several that torchrun or SLURM started, on one machine or many.

What every process must agree on goes through here: work that the first does for all, values that all gather, and the
decision to stop. Objects travel by gloo, between processes of the same job only; tensors of a GPU by NCCL.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from cmtvision.errors import CmtvisionError, ConfigError, first_line

T = TypeVar("T")
# the first process may look at a million photos while the others wait
_PATIENCE = timedelta(hours=3)


@dataclass(frozen=True)
class Processes:
    """This process among those of the run.

    Attributes:
        rank, world_size: its number, and how many there are over all machines.
        local_rank, local_world_size: the same on this machine.
        environment: Lightning's description of who started them; None for a single process.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    environment: Any = None

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and speaks to the person."""
        return self.rank == 0

    @property
    def num_nodes(self) -> int:
        """Machines."""
        return max(1, self.world_size // self.local_world_size)

    def device(self, device_type: str) -> str:
        """The device of this process: each has a GPU of its own."""
        return f"cuda:{self.local_rank}" if device_type == "cuda" and self.world_size > 1 else device_type

    def first(self, work: Callable[[], T]) -> T:
        """Let the first process do something; all get its result.

        Raises:
            Whatever the work raised, in every process: as it was where it is an error of ours.
        """
        if self.world_size == 1:
            return work()
        answer: list[Any] = [None, None]
        if self.is_first:
            try:
                answer[0] = work()
            except CmtvisionError as error:
                answer[1] = error
            except Exception as error:
                dist.broadcast_object_list([None, CmtvisionError(f"{type(error).__name__}: {error}")])
                raise
        dist.broadcast_object_list(answer)
        if answer[1] is not None:
            raise answer[1]
        result: T = answer[0]
        return result

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank, in every process."""
        if self.world_size == 1:
            return [value]
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, value)
        return found

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag whether any process has it; cheap enough for every few steps."""
        if self.world_size == 1:
            return flags
        raised = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(raised, op=dist.ReduceOp.MAX)
        return tuple(bool(flag) for flag in raised.tolist())

    def sum(self, *values: float) -> tuple[float, ...]:
        """For each value its sum over all processes, in float64."""
        if self.world_size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return tuple(total.tolist())

    def share(self, count: int) -> range:
        """Which of ``count`` things this process works on: each belongs to exactly one process, none twice.

        Raises:
            ConfigError: fewer things than processes.
        """
        if count < self.world_size:
            raise ConfigError(f"{count} photos for {self.world_size} processes; start at most {count}")
        return range(self.rank, count, self.world_size)


SINGLE = Processes()


@contextmanager
def join_processes(device_type: str) -> Iterator[Processes]:
    """Join the group that torchrun or SLURM started; a process by itself is a group of one.

    Args:
        device_type: 'cpu', 'cuda' or 'mps', what the run computes on.

    Raises:
        ConfigError: more processes on this machine than GPUs, or a device that several processes can't share.
    """
    environment = _environment()
    if environment is None or environment.world_size() == 1:
        yield SINGLE
        return
    local = _local_world_size()
    if device_type == "mps":
        raise ConfigError("train.device mps: one process only; start without torchrun, or choose cpu")
    if device_type == "cuda":
        if local > torch.cuda.device_count():
            raise ConfigError(f"{local} processes on this machine, {torch.cuda.device_count()} GPUs; start one a GPU")
        torch.cuda.set_device(environment.local_rank())
    ours = not dist.is_initialized()
    if ours:
        os.environ["MASTER_ADDR"] = environment.main_address
        os.environ["MASTER_PORT"] = str(environment.main_port)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo",
            rank=environment.global_rank(),
            world_size=environment.world_size(),
            timeout=_PATIENCE,
        )
    try:
        yield Processes(
            environment.global_rank(), environment.world_size(), environment.local_rank(), local, environment
        )
    finally:
        if ours:
            dist.destroy_process_group()


def _environment() -> Any:
    """Lightning's description of torchrun or SLURM, where one of them started this process."""
    if "TORCHELASTIC_RUN_ID" not in os.environ and "SLURM_NTASKS" not in os.environ:
        return None
    from pytorch_lightning.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    try:
        # auto_requeue is Lightning's own way to save; ours is in engine/callbacks/stopping.py
        return SLURMEnvironment(auto_requeue=False) if SLURMEnvironment.detect() else None
    except RuntimeError as error:
        raise ConfigError(f"SLURM: {first_line(error)} Start the command with srun") from error


def _local_world_size() -> int:
    for name in ("LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    nodes = int(os.environ.get("SLURM_NNODES", "1"))
    return max(1, int(os.environ.get("SLURM_NTASKS", "1")) // nodes)
