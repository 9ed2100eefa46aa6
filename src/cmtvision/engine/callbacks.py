"""What happens around the steps of a run: held-out figures, metrics.csv, checkpoints, and a clean stop.

All processes of a run call the same things at the same steps, since saving and evaluating are done together; what one
of them notices (a signal, a bad loss, the time) is agreed on before anyone acts. Only the first writes and speaks.
"""

import csv
import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from cmtvision.artefact.files import write_text
from cmtvision.engine.checkpoints import random_state, save_checkpoint, set_random_state
from cmtvision.engine.ema import EmaCallback
from cmtvision.engine.evaluate import eval_mode, look_at, network_forward
from cmtvision.engine.loaders import TrainLoader
from cmtvision.engine.multilabel import mean_average_precision
from cmtvision.engine.pace import Pace
from cmtvision.engine.processes import Processes
from cmtvision.engine.progress import ProgressView
from cmtvision.engine.run_folder import METRICS_FILE
from cmtvision.engine.stopping import StopSignals, TrainingDiverged, TrainingInterrupted
from cmtvision.engine.watch import LossWatch
from cmtvision.recipe import Recipe

_COLUMNS = (
    "epoch", "step", "lr", "train_loss", "val_loss", "val_top1", "val_top5", "val_map", "images_per_second",
    "data_wait", "gradient_norm", "ema_distance", "gpu_memory_gb", "seconds",
)  # fmt: skip
_LOOK_EVERY = 20  # batches between looks at the loss: each look waits for the device
_AGREE_EVERY = 10  # batches between agreements of several processes


@dataclass(frozen=True)
class RunPlan:
    """What a run does around its steps.

    Attributes:
        recipe: the run's.
        out: the run folder.
        processes: those of the run.
        resume_hint: the command that goes on after an interruption.
        on_epoch: called with each new row of metrics.csv; what it raises ends training.
    """

    recipe: Recipe
    out: Path
    processes: Processes
    resume_hint: str
    on_epoch: Callable[[dict[str, Any]], None] | None = None

    @property
    def total_epochs(self) -> int:
        """Epochs of the whole run, cool-down included."""
        return self.recipe.schedule.total_epochs


class RunCallback(pl.Callback):
    """Counts, evaluates, records, saves and stops a run.

    Args:
        plan: what the run does.
        loader: the training loader, whose place is saved too.
        val_loader: this process's share of the held-out photos, None for none.
        ema: the averaged network, evaluated instead of the raw one; None for none.
        view: what the person sees.
        pace: where the run stands in its schedule.
    """

    def __init__(
        self,
        plan: RunPlan,
        loader: TrainLoader,
        val_loader: Any,
        ema: EmaCallback | None,
        view: ProgressView,
        pace: Pace,
    ) -> None:
        self.plan, self.loader, self.val_loader, self.ema, self.view = plan, loader, val_loader, ema, view
        self.pace = pace
        train = plan.recipe.train
        self.rows: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {"score": -1.0, "epoch": -1, "weights": None}
        self.watch = LossWatch(train.divergence_factor, lambda index: loader.photos.samples[index].path)
        self._signals = StopSignals()
        self._restored: dict[str, Any] | None = None
        self._seconds_before = 0.0
        self._begun = self._epoch_begun = self._saved_at = time.perf_counter()
        self._saved_step = 0
        self._shown_loss = float("nan")
        self._photos = 0
        self._pending: dict[str, Any] | None = None  # the row of an epoch that is saved and not yet evaluated
        self._trained = False

    @property
    def finished(self) -> str:
        """Why there was nothing left to train when the run was resumed, '' where something was."""
        if self._trained or self._restored is None:
            return ""
        if self._out_of_patience():
            return f"stopped early, its best epoch is {self.best['epoch'] + 1}"
        if self.pace.seconds is not None and self.pace.done and len(self.rows) < self.plan.total_epochs:
            return "train.max_minutes are over"
        steps = self.plan.recipe.train.max_steps
        done = steps is not None and len(self.rows) < self.plan.total_epochs
        return f"all {steps} steps are done" if done else f"all {len(self.rows)} epochs are done"

    @property
    def seconds(self) -> float:
        """Time of training so far, earlier parts of a resumed run included."""
        return self._seconds_before + time.perf_counter() - self._begun

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock, put restored random states back, finish the epoch before, and take over the signals."""
        self._begun = self._epoch_begun = self._saved_at = time.perf_counter()
        self._saved_step = trainer.global_step
        if self._restored is not None:
            states = self._restored["random"]
            if len(states) == self.plan.processes.world_size:
                set_random_state(states[self.plan.processes.rank])
            if self.loader.consumed:  # in mid-epoch no epoch start will follow
                self.watch.load_state_dict(self._restored["watch"], pl_module.device)
                self._shown_loss = self.watch.mean()
            self.settle(trainer, pl_module, pl_module.device)
            (trainer.should_stop,) = self.plan.processes.any(self._out_of_patience() or self._out_of_time())
        self.pace.begin(trainer.global_step)
        self._signals.take_over()
        self.view.start(trainer.fit_loop.epoch_loop.total_batch_idx + 1)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell the loader which epoch it is."""
        self.loader.begin_epoch(trainer.current_epoch)
        self._epoch_begun = time.perf_counter()
        self._photos = 0
        self.watch.begin_epoch()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count, look at the losses, save in mid-epoch, and stop where asked to."""
        photos = len(batch[0])
        self._trained = True
        self.pace.advance(trainer.global_step)
        self.loader.consumed += photos
        self._photos += photos * self.plan.processes.world_size
        # fp16's scaler finds gradients that are too large by itself, and skips the step
        norm = None if self.plan.recipe.train.precision == "fp16" else pl_module.gradient_norm
        loss = outputs["loss"].detach() * self.plan.recipe.train.accumulate  # Lightning has divided it
        self.watch.add(trainer.global_step, loss, norm, batch[2])
        batches = self.watch.batches
        looks = batches % _LOOK_EVERY == 0 or batches <= 2
        problem = self.watch.look() if looks else None
        if looks:
            self._shown_loss = self.watch.mean()
            self._log(trainer, pl_module)
        elapsed = time.perf_counter() - self._epoch_begun
        self.view.step(trainer.current_epoch, self._shown_loss, self._photos / elapsed, _gpu_memory(pl_module.device))
        # between accumulated batches nothing can be saved: half a step is in the gradients
        accumulate = self.plan.recipe.train.accumulate
        at_step = (batch_idx + 1) % accumulate == 0
        every = 1 if self.plan.processes.world_size == 1 else _AGREE_EVERY * accumulate
        if not looks and not (at_step and (batch_idx + 1) % every == 0):
            return
        self._fit_pace()
        bad, stop, late, due = self.plan.processes.any(
            problem is not None, bool(self._signals.received), self._out_of_time(), self._due(trainer)
        )
        if bad:
            self._diverged(trainer, problem)
        # behind an epoch's last batch its end comes first: evaluated and recorded, then saved
        if at_step and not self.loader.at_end and (stop or due):
            self._look(trainer)
            self.save(trainer)
            if stop:
                raise self._interrupted(trainer)
        if late:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Save, then evaluate and record: whatever happens to the held-out photos, the epoch is not lost.

        A run that is resumed from this checkpoint evaluates and records first (``settle``).
        """
        self._look(trainer)
        processes, device = self.plan.processes, pl_module.device
        train_seconds = time.perf_counter() - self._epoch_begun
        loss, batches, waited = processes.sum(
            float(self.watch.sum) if self.watch.sum is not None else 0.0, self.watch.batches, self.loader.waited
        )
        epoch = trainer.current_epoch
        row: dict[str, Any] = dict.fromkeys(_COLUMNS)
        row |= {"epoch": epoch, "step": trainer.global_step, "lr": _rate(trainer)}
        row |= {"train_loss": loss / batches, "images_per_second": self._photos / train_seconds}
        row |= {"data_wait": min(1.0, waited / processes.world_size / train_seconds)}
        row["gradient_norm"] = float(pl_module.gradient_norm) if pl_module.gradient_norm is not None else None
        row["ema_distance"] = self.ema.distance(pl_module.model) if self.ema is not None else None
        row["gpu_memory_gb"] = _gpu_memory(device)
        (over,) = processes.any(self._out_of_time())
        last = epoch + 1 >= self.plan.total_epochs or trainer.should_stop or over
        wanted = last or (epoch + 1) % self.plan.recipe.train.eval_every == 0
        self._pending = {"row": row, "evaluate": wanted}
        self.save(trainer)
        self.settle(trainer, pl_module, device)
        if self._out_of_patience() or over:
            trainer.should_stop = True
        (stop,) = processes.any(bool(self._signals.received))
        if stop and not last:
            raise self._interrupted(trainer)
        if self.plan.on_epoch is not None:
            self.plan.on_epoch(dict(row))

    def settle(self, trainer: pl.Trainer, pl_module: Any, device: torch.device) -> None:
        """Evaluate and record an epoch that is saved already; nothing to do where that was done."""
        if self._pending is None:
            return
        row, epoch = self._pending["row"], self._pending["row"]["epoch"]
        if self._pending["evaluate"] and self.val_loader is not None:
            network: nn.Module = pl_module.whole(self.ema.network if self.ema is not None else pl_module.model)
            begun = time.perf_counter()
            row |= self._held_out(network.to(device), device)
            self._keep_best(row["val_top1"] if row["val_top1"] is not None else row["val_map"], epoch, network)
            self.pace.evaluated(begun)
        row["seconds"] = self.seconds
        self.rows.append(row)
        self._pending = None
        self._log_row(trainer, row)
        if self.plan.processes.is_first:
            write_text(self.plan.out / METRICS_FILE, metrics_csv(self.rows))
        self.view.epoch(row, self.seconds / (epoch + 1) * self.pace.epochs_left)

    @property
    def signal(self) -> str:
        """The signal that asked the run to stop, '' for none."""
        return self._signals.received

    def save(self, trainer: pl.Trainer) -> None:
        """Write checkpoints/last.ckpt, whole or not at all, with all processes taking part."""
        save_checkpoint(self.plan.out, trainer.save_checkpoint, self.plan.processes)
        self._saved_at, self._saved_step = time.perf_counter(), trainer.global_step

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give the signals back and take the bar away."""
        self.close()

    def close(self) -> None:
        """The same, where training ended by an error: Lightning tears nothing down then."""
        self._signals.give_back()
        self.view.stop()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beyond weights and optimiser; gathered, so every process must call it."""
        return {
            "rows": self.rows,
            "seconds": self.seconds,
            "random": self.plan.processes.gather(random_state()),
            "best": self.best,
            "watch": self.plan.processes.gather(self.watch.state_dict()),
            "pending": self._pending,
            "pace": self.pace.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on recording where the saved run stood."""
        self.rows = state_dict["rows"]
        self._seconds_before = state_dict["seconds"]
        self.best = state_dict["best"]
        self._pending = state_dict.get("pending")  # earlier versions saved behind the evaluation
        if "pace" in state_dict:
            self.pace.load_state_dict(state_dict["pace"])
        else:  # of an earlier version
            self.pace.add_spent(state_dict["seconds"])
        watches, rank = state_dict["watch"], self.plan.processes.rank
        self._restored = {"random": state_dict["random"], "watch": watches[min(rank, len(watches) - 1)]}

    def _due(self, trainer: pl.Trainer) -> bool:
        train = self.plan.recipe.train
        minutes, steps = train.checkpoint_minutes, train.checkpoint_steps
        in_time = minutes is not None and time.perf_counter() - self._saved_at > minutes * 60
        taken = trainer.global_step - self._saved_step
        return taken > 0 and (in_time or (steps is not None and taken >= steps))

    def _held_out(self, network: nn.Module, device: torch.device) -> dict[str, float]:
        """The figures of one pass over the held-out photos."""
        forward = network_forward(network, device, self.plan.recipe.train.channels_last)
        with eval_mode(network):
            seen = look_at(forward, self.val_loader, self.plan.processes)
        found = {"val_loss": seen.mean_loss()}
        if self.plan.recipe.data.multi_label:
            return found | {"val_map": mean_average_precision(seen.logits, seen.targets)}
        count = len(seen.targets)
        return found | {"val_top1": seen.correct() / count, "val_top5": seen.correct_among_five() / count}

    def _interrupted(self, trainer: pl.Trainer) -> TrainingInterrupted:
        names = [name for name in self.plan.processes.gather(self._signals.received) if name]
        return TrainingInterrupted(
            f"stopped by {names[0]} at epoch {trainer.current_epoch + 1}, step {trainer.global_step}; "
            f"the state is saved, go on with: {self.plan.resume_hint}"
        )

    def _look(self, trainer: pl.Trainer) -> None:
        """Look at the last losses before anything of them is saved."""
        problem = self.watch.look()
        self._shown_loss = self.watch.mean()
        (bad,) = self.plan.processes.any(problem is not None)
        if bad:
            self._diverged(trainer, problem)

    def _diverged(self, trainer: pl.Trainer, problem: str | None) -> None:
        found = [one for one in self.plan.processes.gather(problem) if one]
        kept = f"the checkpoint of step {self._saved_step} is kept" if self._saved_step else "nothing was saved yet"
        raise TrainingDiverged(
            f"{found[0]} (epoch {trainer.current_epoch + 1}); {kept}. Lower optim.lr or set optim.clip_grad_norm=1.0"
        )

    def _keep_best(self, score: float, epoch: int, network: nn.Module) -> None:
        if self.plan.recipe.train.early_stop_patience is not None and score > self.best["score"]:
            weights = {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}
            self.best = {"score": score, "epoch": epoch, "weights": weights}

    def _out_of_patience(self) -> bool:
        """Whether the last evaluation was one too many without a better score."""
        patience = self.plan.recipe.train.early_stop_patience
        if patience is None or self.best["weights"] is None or not self.rows or self.rows[-1]["val_loss"] is None:
            return False
        return bool(self.rows[-1]["epoch"] - self.best["epoch"] >= patience)

    def _out_of_time(self) -> bool:
        return self.pace.seconds is not None and self.pace.done

    def _fit_pace(self) -> None:
        """Fit what is left of the schedule to what is left of the time, by the first process's clock."""
        if self.pace.seconds is None:
            return
        self.pace.fit()
        if self.plan.processes.world_size > 1:
            (self.pace.stride,) = self.plan.processes.sum(self.pace.stride * self.plan.processes.is_first)
        epochs = self.pace.steps_in_all / self.pace.steps_per_epoch
        self.view.resize(ceil(epochs * len(self.loader)), ceil(epochs))

    def _log(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Figures of this moment for TensorBoard and the others."""
        elapsed = max(1e-9, time.perf_counter() - self._epoch_begun)
        values = {
            "step/loss": self._shown_loss,
            "step/lr": _rate(trainer),
            "step/images_per_second": self._photos / elapsed,
            "step/data_wait": min(1.0, self.loader.waited / elapsed),
        }
        if pl_module.gradient_norm is not None:
            values["step/gradient_norm"] = float(pl_module.gradient_norm)
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)

    def _log_row(self, trainer: pl.Trainer, row: dict[str, Any]) -> None:
        values = {name: value for name, value in row.items() if value is not None and name not in ("epoch", "step")}
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)


def metrics_csv(rows: list[dict[str, Any]]) -> str:
    """Rows as CSV text with a header; what was not measured is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _gpu_memory(device: torch.device) -> float | None:
    """The most memory the run has taken of its GPU so far, in GB; None without one."""
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None


def _rate(trainer: pl.Trainer) -> float:
    """The learning rate of the layer that learns fastest."""
    return max(float(group["lr"]) for group in trainer.optimizers[0].param_groups)
