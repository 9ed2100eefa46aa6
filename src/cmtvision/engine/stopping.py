"""Signals that end a run: Ctrl-C, SIGTERM (a machine that shuts down, a container that is moved), and SIGUSR1, which
SLURM sends ahead of a time limit where the job asked for it (``#SBATCH --signal=USR1@120``). The run saves, then stops.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cmtvision.errors import CmtvisionError


class TrainingInterrupted(CmtvisionError):  # noqa: N818
    """Training was stopped by a signal after its state was saved; the message says how to go on."""


class TrainingDiverged(CmtvisionError):  # noqa: N818
    """The loss is no longer a number, or grows without end; the last good checkpoint was kept."""


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
