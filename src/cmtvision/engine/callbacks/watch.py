"""Watches a run's losses without making every step wait for the device: they are looked at some twenty at a time.

A loss or gradient that is no number, and a loss that grows without end, are found at the next look, before anything is
saved; the batch that did it is named by its photos.
"""

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch

_SMOOTHED_OVER = 50  # steps
_SHOWN = 8  # photos of a batch that are named


class LossWatch:
    """The losses of an epoch and the last of the run.

    Args:
        divergence_factor: how many times its lowest the smoothed loss may be; None for no limit.
        names: for photo indices, what to call them.

    Attributes:
        shown: the epoch's mean loss at the last look.
    """

    def __init__(self, divergence_factor: float | None, names: Any) -> None:
        self.factor = divergence_factor
        self.names = names
        self.batches = 0
        self.shown = math.nan
        self.sum: torch.Tensor | None = None
        self._waiting: list[tuple[int, torch.Tensor, torch.Tensor | None, torch.Tensor]] = []
        self._recent: deque[float] = deque(maxlen=_SMOOTHED_OVER)
        self._lowest = math.inf
        self._first = math.nan

    def begin_epoch(self) -> None:
        """Start the epoch's mean anew."""
        self.sum, self.batches = None, 0

    def add(self, step: int, loss: torch.Tensor, gradient_norm: torch.Tensor | None, indices: torch.Tensor) -> None:
        """One batch: its optimiser step, loss, the gradient's norm where it was taken, and its photos' indices."""
        self.sum = loss.double() if self.sum is None else self.sum + loss
        self.batches += 1
        self._waiting.append((step, loss, gradient_norm, indices))

    def look(self) -> str | None:
        """Look at the batches since the last time; what is wrong, in words, or None."""
        self.shown = self.mean()
        if not self._waiting:
            return None
        losses = torch.stack([loss for _, loss, _, _ in self._waiting]).tolist()
        for (step, _, norm, indices), loss in zip(self._waiting, losses, strict=True):
            bad_norm = norm is not None and not math.isfinite(float(norm))
            if not math.isfinite(loss) or bad_norm:
                what = "loss" if not math.isfinite(loss) else "gradient"
                self._waiting = []
                return f"the {what} is no longer a number at step {step}, on the batch of {self._named(indices)}"
            grown = self._grown(loss)
            if grown is not None:
                self._waiting = []
                return f"the loss grows: {grown}, at step {step}, on the batch of {self._named(indices)}"
        self._waiting = []
        return None

    def _grown(self, loss: float) -> str | None:
        """How far the smoothed loss has grown, in words, where that is too far."""
        self._recent.append(loss)
        if len(self._recent) < _SMOOTHED_OVER or self.factor is None:
            return None
        smoothed = sum(self._recent) / _SMOOTHED_OVER
        self._lowest = min(self._lowest, smoothed)
        self._first = smoothed if math.isnan(self._first) else self._first
        # a loss near zero may well grow fourfold; diverged is what is worse than at the beginning too
        if smoothed <= max(self.factor * self._lowest, self._first):
            return None
        return (
            f"{smoothed:.3g} over {_SMOOTHED_OVER} steps, it was {self._lowest:.3g} "
            f"(train.divergence_factor={self.factor:g})"
        )

    def mean(self) -> float:
        """The epoch's mean loss in this process so far."""
        return float(self.sum) / self.batches if self.sum is not None else math.nan

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, in numbers."""
        total = float(self.sum) if self.sum is not None else 0.0
        smoothed = {"recent": list(self._recent), "lowest": self._lowest, "first": self._first}
        return {"sum": total, "batches": self.batches, **smoothed}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on where the saved run stood."""
        self.batches = state["batches"]
        self.sum = torch.tensor(state["sum"], dtype=torch.float64, device=device) if self.batches else None
        self._recent = deque(state["recent"], maxlen=_SMOOTHED_OVER)
        self._lowest, self._first = state["lowest"], state["first"]
        self.shown = self.mean()

    def _named(self, indices: torch.Tensor) -> str:
        shown: Sequence[str] = [str(self.names(i)) for i in indices.tolist()[:_SHOWN]]
        more = len(indices) - len(shown)
        return ", ".join(shown) + (f" and {more} more" if more > 0 else "")
