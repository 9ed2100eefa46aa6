"""Starts a command in several processes of this machine, one for each GPU; torchrun's own launcher does the work.

Every process runs the same command line; each finds from its environment that it is one of several. Ctrl-C and SIGTERM
are passed on, and the first failure ends all.
"""

import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from cmtvision.cli.arguments import options_end
from cmtvision.errors import ConfigError
from cmtvision.machine import usable_cores

if TYPE_CHECKING:
    from cmtvision.recipe import Recipe

_PLANNED = "CMTVISION_PLANNED_SINCE"
_LAUNCHED = ("TORCHELASTIC_RUN_ID", "SLURM_PROCID")


def is_launched() -> bool:
    """Whether torchrun or SLURM started this process, so that nothing is left to start."""
    return any(name in os.environ for name in _LAUNCHED) and _world_size() > 1


def is_first() -> bool:
    """Whether this process is the one that prints messages."""
    return not is_launched() or int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))) == 0


def num_processes() -> int:
    """Processes of this command, over all machines."""
    return _world_size() if is_launched() else 1


def plan_was_said() -> bool:
    """Whether the process that started this one has settled the recipe and printed the plan."""
    return _PLANNED in os.environ


def seconds_before() -> float:
    """Seconds that the process which started this one had spent on the command by then; 0 if there was none."""
    return max(0.0, time.time() - float(os.environ.get(_PLANNED, time.time())))


def launch_run(processes: int, recipe: "Recipe", words: Sequence[str], out: Path, spent: float, new: bool) -> int:
    """Run a ``train`` command in several processes of this machine with a settled recipe.

    Args:
        processes: how many.
        recipe: what all of them are to train.
        words: the command line.
        out: the run folder, the same for all.
        spent: seconds that the command has taken so far.
        new: the run does not resume an existing one, so the recipe must be handed on.

    Returns:
        As ``launch``.
    """
    from cmtvision.recipe import dump_recipe

    with TemporaryDirectory() as folder:
        file = Path(folder) / "recipe.yaml"
        file.write_text(dump_recipe(recipe), encoding="utf-8")
        dropped = ["--devices", "--out", *(["--recipe", "--minutes"] if new else [])]
        left = without_options(words, dropped)
        more = ["--out", str(out), *(["--recipe", str(file)] if new else [])]
        os.environ[_PLANNED] = str(time.time() - spent)
        try:
            named = 2 if left[1:2] == ["train"] else 1  # words of the command: train, or detect train
            return launch(processes, recipe.train.device, [*left[:named], *more, *left[named:]])
        finally:
            del os.environ[_PLANNED]


def launch(processes: int, device: str, words: Sequence[str]) -> int:
    """Run ``cmtvision words`` in several processes.

    Args:
        processes: how many.
        device: what each computes on; GPUs must be enough.
        words: the command line, without the option that asked for several.

    Returns:
        The exit code of the first that failed, 0 where none did.

    Raises:
        ConfigError: fewer GPUs than processes.
    """
    import torch
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    gpus = torch.cuda.device_count()
    if device == "mps" or (device in ("auto", "cuda") and gpus and processes > gpus):
        raise ConfigError(
            f"--devices {processes}: this machine has {gpus} GPUs; give at most that many, or --device cpu"
        )
    if "OMP_NUM_THREADS" not in os.environ and not gpus:
        # without GPUs the processes share the cores
        os.environ["OMP_NUM_THREADS"] = str(max(1, usable_cores() // processes))
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # tables of failures; the processes speak for themselves
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=f"cmtvision-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
        start_method="spawn",
        logs_specs=DefaultLogsSpecs(),
    )
    try:
        elastic_launch(config, sys.executable)("-u", "-m", "cmtvision", *words)
    except ChildFailedError as error:
        return int(error.get_first_failure()[1].exitcode)
    except SignalException:
        return 130
    return 0


def without_options(words: Sequence[str], names: Sequence[str]) -> list[str]:
    """A command line without some options that take a value."""
    end = options_end(words)
    left: list[str] = []
    skip = False
    for word in words[:end]:
        if skip:
            skip = False
        elif word in names:
            skip = True
        elif word.partition("=")[0] not in names:
            left.append(word)
    return [*left, *words[end:]]


def _world_size() -> int:
    for name in ("WORLD_SIZE", "SLURM_NTASKS"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 1
