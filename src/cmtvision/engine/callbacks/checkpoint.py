"""Saves a run, and says when it is time to."""

import time

import pytorch_lightning as pl

from cmtvision.engine.checkpoints import save_checkpoint
from cmtvision.engine.plan import RunPlan


class Checkpoint:
    """checkpoints/last.ckpt of a run.

    Attributes:
        step: the optimiser step of the one that was saved last, or that the run went on from; 0 for none.
    """

    def __init__(self, plan: RunPlan) -> None:
        self.plan = plan
        self.begin(0)

    def begin(self, step: int) -> None:
        """Count time and steps from here."""
        self._saved_at, self.step = time.perf_counter(), step

    def due(self, step: int) -> bool:
        """Whether the recipe wants one in mid-epoch, after so many optimiser steps of the run."""
        train = self.plan.recipe.train
        minutes, steps = train.checkpoint_minutes, train.checkpoint_steps
        in_time = minutes is not None and time.perf_counter() - self._saved_at > minutes * 60
        taken = step - self.step
        return taken > 0 and (in_time or (steps is not None and taken >= steps))

    def save(self, trainer: pl.Trainer) -> None:
        """Write it, whole or not at all, with all processes taking part."""
        save_checkpoint(self.plan.out, trainer.save_checkpoint, self.plan.processes)
        self.begin(trainer.global_step)
