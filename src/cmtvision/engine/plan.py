"""What a run does around its steps, as all who take part in it read it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmtvision.engine.distributed.processes import Processes
from cmtvision.recipe import Recipe


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
