"""What a person sees of a run: a bar with rate and time left on a terminal, one line an epoch in a log."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

Said = Callable[[dict[str, Any]], Sequence[str]]
_WORTH_SAYING = 0.1  # a share of the time spent waiting for data


class ProgressView:
    """Shows a run; without a console it shows nothing.

    Args:
        console: where to; None for silence.
        total_steps: batches of the whole run.
        total_epochs: epochs of the whole run.
        said: puts the held-out figures of a row into words.
    """

    def __init__(self, console: Console | None, total_steps: int, total_epochs: int, said: Said) -> None:
        self._console, self._said = console, said
        self._total_epochs = total_epochs
        self._total_steps = total_steps
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def start(self, done: int) -> None:
        """Begin at a number of batches already done."""
        if self._console is not None and self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[state]}"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._task = self._bar.add_task("training", total=self._total_steps, completed=done, state="")
            self._bar.start()

    def resize(self, total_steps: int, total_epochs: int) -> None:
        """The run will take other numbers of batches and epochs than it was made for."""
        self._total_steps, self._total_epochs = total_steps, total_epochs
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, total=total_steps)

    def step(self, epoch: int, loss: float, rate: float, gpu_memory_gb: float | None = None) -> None:
        """One batch: epoch number from 0, its loss, images per second, the most GPU memory taken so far."""
        if self._bar is not None and self._task is not None:
            state = f"loss {loss:.3f}  {rate:,.0f} images/s"
            state += f"  {gpu_memory_gb:.1f} GB" if gpu_memory_gb is not None else ""
            self._bar.update(self._task, advance=1, state=state, description=f"epoch {epoch + 1}/{self._total_epochs}")

    def epoch(self, row: dict[str, Any], left: float) -> None:
        """One finished epoch: its row of metrics.csv and the seconds left."""
        if self._console is None:
            return
        parts = [f"epoch {row['epoch'] + 1}/{self._total_epochs}", f"loss {row['train_loss']:.4f}"]
        parts += self._said(row)
        parts += [f"{row['images_per_second']:,.0f} images/s"]
        if row["data_wait"] > _WORTH_SAYING:
            parts += [f"waited for data {row['data_wait']:.0%}"]
        parts += [f"{timedelta(seconds=round(left))} left"]
        self._console.print("  ".join(parts), highlight=False)

    def stop(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
