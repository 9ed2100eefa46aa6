"""Signals that end a run: Ctrl-C, SIGTERM (a machine that shuts down, a container that is moved), and SIGUSR1, which
SLURM sends ahead of a time limit where the job asked for it (``#SBATCH --signal=USR1@120``). The run saves, then stops.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl

from cmtvision.engine.plan import RunPlan
from cmtvision.errors import CmtvisionError


class TrainingInterrupted(CmtvisionError):  # noqa: N818
    """Training was stopped by a signal after its state was saved; the message says how to go on."""


class TrainingDiverged(CmtvisionError):  # noqa: N818
    """The loss is no longer a number, or grows without end; the last good checkpoint was kept."""


def interrupted(plan: RunPlan, trainer: pl.Trainer, received: str) -> TrainingInterrupted:
    """What a run that is saved ends with; ``received`` is this process's signal. Every process must call it."""
    names = [name for name in plan.processes.gather(received) if name]
    return TrainingInterrupted(
        f"stopped by {names[0]} at epoch {trainer.current_epoch + 1}, step {trainer.global_step}; "
        f"the state is saved, go on with: {plan.resume_hint}"
    )


def diverged(plan: RunPlan, trainer: pl.Trainer, problem: str | None, saved_step: int) -> TrainingDiverged:
    """What a run with a bad loss ends with; ``problem`` is what this process saw. Every process must call it."""
    found = [one for one in plan.processes.gather(problem) if one]
    kept = f"the checkpoint of step {saved_step} is kept" if saved_step else "nothing was saved yet"
    return TrainingDiverged(
        f"{found[0]} (epoch {trainer.current_epoch + 1}); {kept}. Lower optim.lr or set optim.clip_grad_norm=1.0"
    )


class StopSignals:
    """Remembers the first signal instead of dying of it; a second Ctrl-C stops at once, as it always does.

    Attributes:
        received: the signal's name for a person, '' while there was none.
    """

    def __init__(self) -> None:
        self.received = ""
        self._old: dict[int, Any] = {}

    def take_over(self) -> None:
        """Handle the signals from here on; outside the main thread Python does not allow it, and nothing changes."""
        if threading.current_thread() is not threading.main_thread():
            return
        names = ("SIGINT", "SIGTERM", "SIGUSR1")  # Windows lacks the last
        for number in (getattr(signal, name) for name in names if hasattr(signal, name)):
            self._old[number] = signal.signal(number, self._on_signal)

    def give_back(self) -> None:
        """Handle them as before."""
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._old = {}

    def _on_signal(self, number: int, _frame: Any) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


@dataclass
class Interruptions:
    """What a run is doing, for whoever stops it."""

    doing: str = "starting"


@contextmanager
def interruptions(advice: Callable[[], str]) -> Iterator[Interruptions]:
    """Turn a Ctrl-C outside the steps of training, where the run stops by itself, into one line.

    Args:
        advice: how to start again, asked for when it is needed.

    Raises:
        TrainingInterrupted: with what was being done and the advice.
    """
    now = Interruptions()
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if in_main else None
    try:
        yield now
    except (KeyboardInterrupt, SystemExit) as error:
        # Lightning answers a Ctrl-C with exit(1), and leaves the signal ignored
        if isinstance(error, SystemExit) and not isinstance(error.__context__, KeyboardInterrupt):
            raise
        raise TrainingInterrupted(f"stopped by Ctrl-C while {now.doing}; {advice()}") from None
    finally:
        if in_main and handler is not None:
            signal.signal(signal.SIGINT, handler)
