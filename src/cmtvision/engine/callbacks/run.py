"""The order of a run: what happens in which turn when it begins, after each batch, after each epoch and at its end.

A batch:   count -> look at the losses -> (wanted, or asked to stop) save -> stop
An epoch:  look at the losses -> save, its row with it -> evaluate -> record -> stop
A resumed run first evaluates and records the epoch that was saved last, where that was not done.

The losses are looked at first so that nothing bad is saved; saving comes before evaluating so that whatever happens to
the held-out photos, the epoch is not lost. All processes of a run call the same things at the same steps, since saving
and evaluating are done together; what one of them notices (a signal, a bad loss, the time) is agreed on before anyone
acts. Only the first writes and speaks.
"""

import time
from math import ceil
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from cmtvision.engine.callbacks.checkpoint import Checkpoint
from cmtvision.engine.callbacks.ema import EmaCallback
from cmtvision.engine.callbacks.held_out import HeldOut
from cmtvision.engine.callbacks.progress import ProgressView
from cmtvision.engine.callbacks.record import Record, gpu_memory
from cmtvision.engine.callbacks.stopping import StopSignals, diverged, interrupted
from cmtvision.engine.callbacks.watch import LossWatch
from cmtvision.engine.checkpoints import random_state, set_random_state
from cmtvision.engine.loaders import TrainLoader
from cmtvision.engine.pace import Pace
from cmtvision.engine.plan import RunPlan
from cmtvision.engine.task import Task

_LOOK_EVERY = 20  # batches between looks at the loss: each look waits for the device
_AGREE_EVERY = 10  # batches between agreements of several processes


class RunCallback(pl.Callback):
    """Has each duty done in its turn. Its class name is the name of its state in a checkpoint.

    Args:
        plan: what the run does.
        task: what the run learns.
        loader: the training loader, whose place is saved too.
        val_loader: this process's share of the held-out photos, None for none.
        ema: the averaged network, evaluated instead of the raw one; None for none.
        view: what the person sees.
        pace: where the run stands in its schedule.
    """

    def __init__(
        self,
        plan: RunPlan,
        task: Task,
        loader: TrainLoader,
        val_loader: Any,
        ema: EmaCallback | None,
        view: ProgressView,
        pace: Pace,
    ) -> None:
        self.plan, self.loader, self.ema, self.view, self.pace = plan, loader, ema, view, pace
        self.watch = LossWatch(plan.recipe.train.divergence_factor, lambda index: loader.photos.samples[index].path)
        self.record = Record(plan, loader, task.figures)
        self.checkpoint = Checkpoint(plan)
        self.held_out = HeldOut(plan, task, val_loader)
        self.signals = StopSignals()
        self._restored: dict[str, Any] | None = None
        self._pending: dict[str, Any] | None = None  # the row of an epoch that is saved and not yet evaluated
        self._trained = False

    @property
    def finished(self) -> str:
        """Why there was nothing left to train when the run was resumed, '' where something was."""
        if self._trained or self._restored is None:
            return ""
        epochs = len(self.record.rows)
        if self._out_of_patience():
            return f"stopped early, its best epoch is {self.held_out.best['epoch'] + 1}"
        if self._out_of_time() and epochs < self.plan.total_epochs:
            return "train.max_minutes are over"
        steps = self.plan.recipe.train.max_steps
        done = steps is not None and epochs < self.plan.total_epochs
        return f"all {steps} steps are done" if done else f"all {epochs} epochs are done"

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clocks, put restored random states back, finish the epoch before, and take over the signals."""
        self.record.begin()
        self.checkpoint.begin(trainer.global_step)
        if self._restored is not None:
            states = self._restored["random"]
            if len(states) == self.plan.processes.world_size:
                set_random_state(states[self.plan.processes.rank])
            if self.loader.consumed:  # in mid-epoch no epoch start will follow
                self.watch.load_state_dict(self._restored["watch"], pl_module.device)
            self.settle(trainer, pl_module, pl_module.device)
            (trainer.should_stop,) = self.plan.processes.any(self._out_of_patience() or self._out_of_time())
        self.pace.begin(trainer.global_step)
        self.signals.take_over()
        self.view.start(trainer.fit_loop.epoch_loop.total_batch_idx + 1)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell the loader which epoch it is."""
        self.loader.begin_epoch(trainer.current_epoch)
        self.record.begin_epoch()
        self.watch.begin_epoch()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count, look at the losses, save in mid-epoch, and stop where asked to."""
        train, processes = self.plan.recipe.train, self.plan.processes
        photos = len(batch[0])
        self._trained = True
        self.pace.advance(trainer.global_step)
        self.loader.consumed += photos
        self.record.count(photos)
        # fp16's scaler finds gradients that are too large by itself, and skips the step
        norm = None if train.precision == "fp16" else pl_module.gradient_norm
        loss = outputs["loss"].detach() * train.accumulate  # Lightning has divided it
        self.watch.add(trainer.global_step, loss, norm, batch[2])
        looks = self.watch.batches % _LOOK_EVERY == 0 or self.watch.batches <= 2
        problem = self.watch.look() if looks else None
        if looks:
            self.record.log(trainer, pl_module, self.watch.shown)
        memory = gpu_memory(pl_module.device)
        self.view.step(trainer.current_epoch, self.watch.shown, self.record.images_per_second, memory)
        # between accumulated batches nothing can be saved: half a step is in the gradients
        at_step = (batch_idx + 1) % train.accumulate == 0
        every = 1 if processes.world_size == 1 else _AGREE_EVERY * train.accumulate
        if not looks and not (at_step and (batch_idx + 1) % every == 0):
            return
        self._fit_pace()
        bad, stop, late, due = processes.any(
            problem is not None,
            bool(self.signals.received),
            self._out_of_time(),
            self.checkpoint.due(trainer.global_step),
        )
        if bad:
            raise diverged(self.plan, trainer, problem, self.checkpoint.step)
        # after an epoch's last batch its end comes first: saved, evaluated and recorded, then stopped
        if at_step and not self.loader.at_end and (stop or due):
            self._look(trainer)
            self.checkpoint.save(trainer)
            if stop:
                raise interrupted(self.plan, trainer, self.signals.received)
        if late:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Save, evaluate and record, then stop where asked to."""
        self._look(trainer)
        row = self.record.row(trainer, pl_module, self.watch, self.ema)
        epochs = row["epoch"] + 1
        (over,) = self.plan.processes.any(self._out_of_time())
        last = epochs >= self.plan.total_epochs or trainer.should_stop or over
        self._pending = {"row": row, "evaluate": last or epochs % self.plan.recipe.train.eval_every == 0}
        self.checkpoint.save(trainer)
        self.settle(trainer, pl_module, pl_module.device)
        if self._out_of_patience() or over:
            trainer.should_stop = True
        (stop,) = self.plan.processes.any(bool(self.signals.received))
        if stop and not last:
            raise interrupted(self.plan, trainer, self.signals.received)
        if self.plan.on_epoch is not None:
            self.plan.on_epoch(dict(row))

    def settle(self, trainer: pl.Trainer, pl_module: Any, device: torch.device) -> None:
        """Evaluate and record an epoch that is saved already; nothing to do where that was done."""
        if self._pending is None:
            return
        row, epoch = self._pending["row"], self._pending["row"]["epoch"]
        if self._pending["evaluate"] and self.held_out.loader is not None:
            network: nn.Module = pl_module.whole(self.ema.network if self.ema is not None else pl_module.model)
            begun = time.perf_counter()
            row |= self.held_out.evaluate(network, epoch, device)
            self.pace.evaluated(begun)
        self._pending = None
        self.record.write(trainer, row)
        self.view.epoch(row, self.record.seconds / (epoch + 1) * self.pace.epochs_left)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give the signals back and take the bar away."""
        self.close()

    def close(self) -> None:
        """The same, where training ended by an error: Lightning tears nothing down then."""
        self.signals.give_back()
        self.view.stop()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beyond weights and optimiser; gathered, so every process must call it."""
        return {
            "rows": self.record.rows,
            "seconds": self.record.seconds,
            "random": self.plan.processes.gather(random_state()),
            "best": self.held_out.best,
            "watch": self.plan.processes.gather(self.watch.state_dict()),
            "pending": self._pending,
            "pace": self.pace.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on recording where the saved run stood."""
        self.record.rows, self.record.seconds_before = state_dict["rows"], state_dict["seconds"]
        self.held_out.best = state_dict["best"]
        self._pending = state_dict.get("pending")  # earlier versions saved after the evaluation
        if "pace" in state_dict:
            self.pace.load_state_dict(state_dict["pace"])
        else:  # of an earlier version
            self.pace.add_spent(state_dict["seconds"])
        watches, rank = state_dict["watch"], self.plan.processes.rank
        self._restored = {"random": state_dict["random"], "watch": watches[min(rank, len(watches) - 1)]}

    def _look(self, trainer: pl.Trainer) -> None:
        """Look at the last losses before anything of them is saved."""
        problem = self.watch.look()
        (bad,) = self.plan.processes.any(problem is not None)
        if bad:
            raise diverged(self.plan, trainer, problem, self.checkpoint.step)

    def _out_of_patience(self) -> bool:
        return self.held_out.out_of_patience(self.record.rows)

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
