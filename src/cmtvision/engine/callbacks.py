"""What happens around the steps of a run: held-out figures, metrics.csv, checkpoints, and a clean stop on Ctrl-C."""

import csv
import io
import math
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn

from cmtvision.artefact.files import write_text
from cmtvision.engine.ema import EmaCallback
from cmtvision.engine.evaluate import top1_and_loss
from cmtvision.engine.loaders import TrainLoader
from cmtvision.engine.progress import ProgressView
from cmtvision.engine.run_folder import LAST_CHECKPOINT, METRICS_FILE
from cmtvision.errors import CmtvisionError
from cmtvision.weights.files import atomic_write

_COLUMNS = (
    "epoch", "step", "lr", "train_loss", "val_loss", "val_top1", "val_top5", "images_per_second", "seconds",
)  # fmt: skip
_CHECK_EVERY = 20  # batches between looks at the loss: each look waits for the device


class TrainingInterrupted(CmtvisionError):  # noqa: N818
    """Training was stopped by a signal after its state was saved; the message says how to go on."""


class TrainingDiverged(CmtvisionError):  # noqa: N818
    """The loss is no longer a number; the last good checkpoint was kept."""


class RunCallback(pl.Callback):
    """Counts, evaluates, records, saves and stops a run.

    Args:
        out: the run folder.
        loader: the training loader, whose place is saved too.
        val_loader: held-out photos, None for none.
        ema: the averaged network, evaluated instead of the raw one; None for none.
        view: what the person sees.
        resume_hint: the command that goes on after an interruption.
        total_epochs: epochs of the whole run.
        patience: epochs without a better held-out top-1 before the run ends; None never.
        max_minutes: time after which the run ends at a batch; None never.
        eval_every: epochs between held-out evaluations; the last one is always evaluated.
    """

    def __init__(
        self,
        out: Path,
        loader: TrainLoader,
        val_loader: Any,
        ema: EmaCallback | None,
        view: ProgressView,
        resume_hint: str,
        total_epochs: int,
        patience: int | None,
        max_minutes: float | None,
        eval_every: int,
    ) -> None:
        self.out, self.loader, self.val_loader, self.ema, self.view = out, loader, val_loader, ema, view
        self.resume_hint, self.total_epochs, self.patience = resume_hint, total_epochs, patience
        self.max_seconds = max_minutes * 60 if max_minutes else None
        self.eval_every = eval_every
        self.rows: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {"top1": -1.0, "epoch": -1, "weights": None}
        self._restored_rng: dict[str, Any] | None = None
        self._restored_part: dict[str, Any] | None = None
        self._seconds_before = 0.0
        self._stop_signal = ""
        self._old_handlers: dict[int, Any] = {}
        self._begun = self._epoch_begun = time.perf_counter()
        self._loss_sum: torch.Tensor | None = None
        self._shown_loss = math.nan
        self._batches = self._photos = 0

    @property
    def seconds(self) -> float:
        """Time of training so far, earlier parts of a resumed run included."""
        return self._seconds_before + time.perf_counter() - self._begun

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock, put restored random states back, and take over Ctrl-C and SIGTERM."""
        self._begun = time.perf_counter()
        if self._restored_rng is not None:
            _set_rng(self._restored_rng)
        if self._restored_part is not None and self.loader.consumed:  # in mid-epoch no epoch start will follow
            part = self._restored_part
            self._loss_sum = torch.tensor(part["loss_sum"], dtype=torch.float64, device=pl_module.device)
            self._batches = part["batches"]
            self._shown_loss = self._mean_loss()
            self._epoch_begun = time.perf_counter()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old_handlers[number] = signal.signal(number, self._on_signal)
        self.view.start(trainer.fit_loop.epoch_loop.total_batch_idx + 1)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell the loader which epoch it is."""
        self.loader.begin_epoch(trainer.current_epoch)
        self._epoch_begun = time.perf_counter()
        self._loss_sum, self._batches, self._photos = None, 0, 0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count, look for a loss that is no number, and stop where asked to."""
        photos = len(batch[0])
        self.loader.consumed += photos
        self._photos += photos
        self._batches += 1
        loss = outputs["loss"].detach()
        self._loss_sum = loss.double() if self._loss_sum is None else self._loss_sum + loss
        if self._batches % _CHECK_EVERY == 0 or self._batches <= 2:
            self._check_loss(trainer)
        rate = self._photos / (time.perf_counter() - self._epoch_begun)
        self.view.step(trainer.current_epoch, self._shown_loss, rate)
        # behind an epoch's last batch its end comes first: evaluated and recorded, then saved
        if self._stop_signal and not self.loader.at_end:
            self.save(trainer)
            raise self._interrupted(trainer)
        if self.max_seconds and self.seconds > self.max_seconds:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Evaluate, record and save."""
        self._check_loss(trainer)
        train_seconds = time.perf_counter() - self._epoch_begun
        epoch = trainer.current_epoch
        row: dict[str, Any] = dict.fromkeys(_COLUMNS)
        row |= {"epoch": epoch, "step": trainer.global_step, "train_loss": self._shown_loss}
        row["lr"] = trainer.optimizers[0].param_groups[0]["lr"]
        row["images_per_second"] = self._photos / train_seconds
        last = epoch + 1 >= self.total_epochs or trainer.should_stop
        if self.val_loader is not None and (last or (epoch + 1) % self.eval_every == 0):
            network: nn.Module = self.ema.network if self.ema is not None else pl_module.model
            channels_last = pl_module.recipe.train.channels_last
            correct, correct5, loss, count = top1_and_loss(network, self.val_loader, pl_module.device, channels_last)
            row |= {"val_loss": loss / count, "val_top1": correct / count, "val_top5": correct5 / count}
            self._keep_best(row["val_top1"], epoch, network, trainer)
        row["seconds"] = self.seconds
        self.rows.append(row)
        for name in ("train_loss", "val_loss", "val_top1", "lr", "images_per_second"):
            if row[name] is not None:
                trainer.logger.log_metrics({name: row[name]}, step=trainer.global_step)  # type: ignore[union-attr]
        write_text(self.out / METRICS_FILE, metrics_csv(self.rows))
        self.save(trainer)
        self.view.epoch(row, self.seconds / (epoch + 1) * max(0, self.total_epochs - epoch - 1))
        if self._stop_signal and not last:
            raise self._interrupted(trainer)

    def save(self, trainer: pl.Trainer) -> None:
        """Write checkpoints/last.ckpt, whole or not at all."""
        atomic_write(self.out / LAST_CHECKPOINT, trainer.save_checkpoint)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give the signals back and take the bar away."""
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        self._old_handlers = {}
        self.view.stop()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beyond weights and optimiser."""
        part = {"loss_sum": float(self._loss_sum) if self._loss_sum is not None else 0.0, "batches": self._batches}
        return {"rows": self.rows, "seconds": self.seconds, "rng": _get_rng(), "best": self.best, "part": part}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on recording where the saved run stood."""
        self.rows = state_dict["rows"]
        self._seconds_before = state_dict["seconds"]
        self._restored_rng = state_dict["rng"]
        self.best = state_dict["best"]
        self._restored_part = state_dict["part"]

    def _interrupted(self, trainer: pl.Trainer) -> TrainingInterrupted:
        return TrainingInterrupted(
            f"stopped by {self._stop_signal} at epoch {trainer.current_epoch + 1}, step {trainer.global_step}; "
            f"the state is saved, go on with: {self.resume_hint}"
        )

    def _keep_best(self, top1: float, epoch: int, network: nn.Module, trainer: pl.Trainer) -> None:
        if self.patience is None:
            return
        if top1 > self.best["top1"]:
            weights = {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}
            self.best = {"top1": top1, "epoch": epoch, "weights": weights}
        elif epoch - self.best["epoch"] >= self.patience:
            trainer.should_stop = True

    def _mean_loss(self) -> float:
        return float(self._loss_sum) / self._batches if self._loss_sum is not None else math.nan

    def _check_loss(self, trainer: pl.Trainer) -> None:
        self._shown_loss = self._mean_loss()
        if self._batches and not math.isfinite(self._shown_loss):
            raise TrainingDiverged(
                f"the loss is no longer a number at epoch {trainer.current_epoch + 1}, step {trainer.global_step}; "
                f"the last checkpoint is of an earlier epoch. Lower optim.lr or set optim.clip_grad_norm=1.0"
            )

    def _on_signal(self, number: int, _frame: Any) -> None:
        if self._stop_signal:  # a second Ctrl-C: stop at once, as it always does
            raise KeyboardInterrupt
        self._stop_signal = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def metrics_csv(rows: list[dict[str, Any]]) -> str:
    """Rows as CSV text with a header; what was not measured is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _get_rng() -> dict[str, Any]:
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": [version, list(words), gauss],
        "numpy": [str(name), torch.from_numpy(np.array(keys, dtype=np.int64)), position, has_gauss, cached],
    }


def _set_rng(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
