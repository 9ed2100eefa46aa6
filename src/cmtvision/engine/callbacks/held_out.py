"""Evaluates a run on its held-out photos, keeps its best weights, and says when better ones have not come for long."""

from typing import Any

import torch
from torch import nn

from cmtvision.engine.plan import RunPlan
from cmtvision.engine.task import Task


class HeldOut:
    """What the held-out photos say.

    Args:
        plan: what the run does.
        task: measures.
        loader: this process's share of the photos, None for none.

    Attributes:
        best: the highest score so far as "score", its "epoch" and its "weights"; nothing is kept where no patience can
            end.
    """

    def __init__(self, plan: RunPlan, task: Task, loader: Any) -> None:
        self.plan, self.task, self.loader = plan, task, loader
        self.best: dict[str, Any] = {"score": -1.0, "epoch": -1, "weights": None}

    def evaluate(self, network: nn.Module, epoch: int, device: torch.device) -> dict[str, float]:
        """The figures of an epoch's network, which is kept where it is the best; every process must call it."""
        recipe = self.plan.recipe
        figures, score = self.task.judge(network.to(device), self.loader, self.plan, device)
        if recipe.train.early_stop_patience is not None and score > self.best["score"]:
            weights = {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}
            self.best = {"score": score, "epoch": epoch, "weights": weights}
        return figures

    def out_of_patience(self, rows: list[dict[str, Any]]) -> bool:
        """Whether the last evaluation was one too many without a better score; ``rows`` of metrics.csv."""
        patience = self.plan.recipe.train.early_stop_patience
        if patience is None or self.best["weights"] is None or not rows:
            return False
        if all(rows[-1][name] is None for name in self.task.figures):  # not evaluated
            return False
        return bool(rows[-1]["epoch"] - self.best["epoch"] >= patience)
