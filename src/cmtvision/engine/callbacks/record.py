"""Writes down how a run goes: a row of metrics.csv for each epoch, and figures of the moment for the loggers."""

import csv
import io
import time
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch

from cmtvision.artefact.run.names import METRICS_FILE
from cmtvision.engine.callbacks.ema import EmaCallback
from cmtvision.engine.callbacks.watch import LossWatch
from cmtvision.engine.loaders import TrainLoader
from cmtvision.engine.plan import RunPlan
from cmtvision.files import write_text

_BEFORE = ("epoch", "step", "lr", "train_loss")
_AFTER = ("images_per_second", "data_wait", "gradient_norm", "ema_distance", "gpu_memory_gb", "seconds")


class Record:
    """Counts photos and seconds, and keeps the rows.

    Args:
        plan: what the run does.
        loader: the training loader, which knows how long it was waited for.
        figures: names of what held-out images say.

    Attributes:
        rows: those of metrics.csv.
        seconds_before: time that earlier parts of a resumed run took.
    """

    def __init__(self, plan: RunPlan, loader: TrainLoader, figures: Sequence[str]) -> None:
        self.plan, self.loader = plan, loader
        self._columns = (*_BEFORE, *figures, *_AFTER)
        self.rows: list[dict[str, Any]] = []
        self.seconds_before = 0.0
        self._begun = self._epoch_begun = time.perf_counter()
        self._photos = 0

    @property
    def seconds(self) -> float:
        """Time of training so far, earlier parts of a resumed run included."""
        return self.seconds_before + time.perf_counter() - self._begun

    @property
    def images_per_second(self) -> float:
        """Of all processes, in this epoch so far."""
        return self._photos / self._elapsed()

    def begin(self) -> None:
        """Start the clock."""
        self._begun = self._epoch_begun = time.perf_counter()

    def begin_epoch(self) -> None:
        """Count anew."""
        self._epoch_begun, self._photos = time.perf_counter(), 0

    def count(self, photos: int) -> None:
        """One batch of each process."""
        self._photos += photos * self.plan.processes.world_size

    def log(self, trainer: pl.Trainer, module: Any, loss: float) -> None:
        """Figures of this moment for TensorBoard and the others."""
        elapsed = self._elapsed()
        values = {
            "step/loss": loss,
            "step/lr": _rate(trainer),
            "step/images_per_second": self._photos / elapsed,
            "step/data_wait": min(1.0, self.loader.waited / elapsed),
        }
        if module.gradient_norm is not None:
            values["step/gradient_norm"] = float(module.gradient_norm)
        _send(trainer, values)

    def row(self, trainer: pl.Trainer, module: Any, watch: LossWatch, ema: EmaCallback | None) -> dict[str, Any]:
        """The epoch's row, without what the held-out photos will say; every process must call it."""
        elapsed, processes = self._elapsed(), self.plan.processes
        total = float(watch.sum) if watch.sum is not None else 0.0
        loss, batches, waited = processes.sum(total, watch.batches, self.loader.waited)
        return dict.fromkeys(self._columns) | {
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "lr": _rate(trainer),
            "train_loss": loss / batches,
            "images_per_second": self._photos / elapsed,
            "data_wait": min(1.0, waited / processes.world_size / elapsed),
            "gradient_norm": float(module.gradient_norm) if module.gradient_norm is not None else None,
            "ema_distance": ema.distance(module.model) if ema is not None else None,
            "gpu_memory_gb": gpu_memory(module.device),
        }

    def write(self, trainer: pl.Trainer, row: dict[str, Any]) -> None:
        """Add a row that is complete."""
        row["seconds"] = self.seconds
        self.rows.append(row)
        _send(trainer, {key: value for key, value in row.items() if value is not None and key not in ("epoch", "step")})
        if self.plan.processes.is_first:
            write_text(self.plan.out / METRICS_FILE, _csv(self._columns, self.rows))

    def _elapsed(self) -> float:
        return max(1e-9, time.perf_counter() - self._epoch_begun)


def gpu_memory(device: torch.device) -> float | None:
    """The most memory the run has taken of its GPU so far, in GB; None without one."""
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None


def _csv(columns: Sequence[str], rows: list[dict[str, Any]]) -> str:
    """Rows as CSV text with a header; what was not measured is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _rate(trainer: pl.Trainer) -> float:
    """The learning rate of the layer that learns fastest."""
    return max(float(group["lr"]) for group in trainer.optimizers[0].param_groups)


def _send(trainer: pl.Trainer, values: dict[str, Any]) -> None:
    for logger in trainer.loggers:
        logger.log_metrics(values, step=trainer.global_step)
