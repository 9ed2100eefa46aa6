"""Checkpoints that a kill or a full disk can't take away.

A new one is written beside the others, complete, before it takes the place of last.ckpt, and what was last.ckpt stays
as previous.ckpt. On resume the newest one that is whole is used: every record's checksum is compared, since a torn file
is not always a short one.
"""

import os
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cmtvision.artefact.run.names import LAST_CHECKPOINT, PREVIOUS_CHECKPOINT, WRITING_CHECKPOINT, has_checkpoint
from cmtvision.engine.distributed.processes import Processes
from cmtvision.errors import CheckpointError
from cmtvision.weights.files import read_pickle


def save_checkpoint(out: Path, save: Callable[[Path], None], processes: Processes) -> None:
    """Write a checkpoint, called in every process at the same step.

    Args:
        out: the run folder.
        save: writes to the path it is given (in the first process; the others take part).
        processes: those of the run.

    Raises:
        CheckpointError: the disk refuses it; the checkpoints that were there are left.
    """
    writing, last = out / WRITING_CHECKPOINT, out / LAST_CHECKPOINT
    try:
        if processes.is_first:
            writing.parent.mkdir(parents=True, exist_ok=True)
        save(writing)
        if processes.is_first:
            with open(writing, "rb") as file:  # noqa: PTH123
                os.fsync(file.fileno())
            if last.exists():
                last.replace(out / PREVIOUS_CHECKPOINT)
            writing.replace(last)
    except (OSError, RuntimeError) as error:
        if processes.is_first:
            writing.unlink(missing_ok=True)
        if not _is_disk_fault(error):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        advice = (
            "the checkpoint before it is kept, free some space and go on with --resume"
            if has_checkpoint(out)
            else "nothing was saved yet, free some space and start again with --overwrite"
        )
        raise CheckpointError(f"{last}: cannot be written: {reason}; {advice}") from error


def find_checkpoint(out: Path) -> tuple[Path, list[str]]:
    """The newest checkpoint of a run that is whole.

    Returns:
        Its path, and a line for each newer one that is damaged.

    Raises:
        CheckpointError: there is none, or none that is whole.
    """
    damaged: list[str] = []
    for path in (out / LAST_CHECKPOINT, out / PREVIOUS_CHECKPOINT):
        if not path.is_file():
            continue
        problem = _problem(path)
        if problem is None:
            return path, damaged
        damaged.append(f"{path}: {problem}")
    if damaged:
        raise CheckpointError(
            "; ".join(damaged) + "; there is no whole checkpoint left, start anew with --overwrite or another --out"
        )
    raise CheckpointError(f"{out}: nothing to resume, no {LAST_CHECKPOINT} in it; start without --resume")


def random_state() -> dict[str, Any]:
    """The state of every generator of this process, in what a checkpoint may hold."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "python": [version, list(words), gauss],
        "numpy": [str(name), torch.from_numpy(np.array(keys, dtype=np.int64)), position, has_gauss, cached],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put the generators back to a saved state."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))


def _problem(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as file:
            bad = file.testzip()  # reads every record and compares its checksum
        if bad is not None:
            return f"damaged ({bad})"
        content = read_pickle(path)
        if "watch" not in content.get("callbacks", {}).get("RunCallback", {}):
            return "written by another version of cmtvision"
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        return f"torn ({error})"
    except CheckpointError as error:
        return str(error).removeprefix(f"{path}: ")
    return None


def _is_disk_fault(error: Exception) -> bool:
    # PyTorch's writer reports a full disk as a RuntimeError
    return isinstance(error, OSError) or "write" in str(error) or "PytorchStreamWriter" in str(error)
