"""Signals that end a run: Ctrl-C, SIGTERM (a machine that shuts down, a container that is moved), and SIGUSR1, which
SLURM sends ahead of a time limit where the job asked for it (``#SBATCH --signal=USR1@120``). The run saves, then stops.
"""

import signal
import threading
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
