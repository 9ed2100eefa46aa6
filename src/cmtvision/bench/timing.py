"""Seconds of forward passes, one by one, and the figures that are made of them.

A round is a turn of passes that follow one another, the first of which is not counted; a GPU is waited for after each.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

from cmtvision.bench.opening import open_as_trained

SECONDS_A_ROUND = 0.2
PASSES_FOR = {"p50": 1, "p95": 20, "p99": 100}
"""A percentile needs so many passes that at least one lies above it."""


def timed_passes(step: Callable[[], Any], device: str, seconds: float, at_least: int) -> list[float]:
    """Seconds of each of many passes that follow one another, the first one left out.

    Args:
        step: one pass.
        device: whose work is waited for after each.
        seconds: how long to go on.
        at_least: passes, however long they take.
    """
    finish = _finisher(device)
    step()
    finish()
    times: list[float] = []
    ends = time.perf_counter() + seconds
    last = -math.inf
    while len(times) < at_least or last < ends:
        begun = time.perf_counter()
        step()
        finish()
        last = time.perf_counter()
        times.append(last - begun)
    return times


def _finisher(device: str) -> Callable[[], Any]:
    if device.startswith("cuda"):
        return torch.cuda.synchronize
    return torch.mps.synchronize if device.startswith("mps") else lambda: None


def measure_latency(
    model: nn.Module, input_size: Sequence[int], batch: int = 1, device: str = "cpu", rounds: int = 5
) -> list[float]:
    """Time a network's forward pass in this process, on random images, as the engine and the Predictor run it.

    Args:
        model: any network; afterwards it is in eval mode, on the device.
        input_size: (C, H, W) of one image, in pixels.
        batch: images in a forward pass.
        device: 'cpu', 'cuda' or 'mps'.
        rounds: how often to measure, ``SECONDS_A_ROUND`` each.

    Returns:
        Seconds of one forward pass, the median of each round; their median is the figure to report.

    Raises:
        RuntimeError: the network cannot run on such images.
    """
    forward = open_as_trained(model, device, input_size)(batch)
    forward()  # kernels are chosen and memory is fetched here
    return [median(timed_passes(forward, device, SECONDS_A_ROUND, 1)) for _ in range(rounds)]


@dataclass
class Samples:
    """Seconds of single forward passes, round by round."""

    rounds: list[list[float]] = field(default_factory=list)

    @property
    def passes(self) -> list[float]:
        """All of them."""
        return [seconds for one in self.rounds for seconds in one]

    @property
    def medians(self) -> list[float]:
        """Of each round."""
        return [median(one) for one in self.rounds]

    def rates(self, batch: int) -> list[float]:
        """Images a second in each round."""
        return [batch * len(one) / sum(one) for one in self.rounds]

    def latency(self) -> dict[str, float | None]:
        """Seconds: p50, p95, p99 (None where there were too few passes for it), least and most."""
        passes = self.passes
        found: dict[str, float | None] = {
            name: percentile(passes, float(name[1:])) if len(passes) >= needed else None
            for name, needed in PASSES_FOR.items()
        }
        return {**found, "min": min(passes), "max": max(passes)}


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which so many percent lie, linear between two neighbours (NumPy's default).

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("got no values, expected at least one")
    return float(np.percentile(values, percent))


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Median and extremes of rounds, None without any."""
    return {"median": median(values), "min": min(values), "max": max(values)} if values else None


def times_as_fast(own: Sequence[float], base: Sequence[float]) -> dict[str, float]:
    """How many times a rate is another's: of the medians over rounds, and the extremes round by round."""
    by_round = [mine / other for mine, other in zip(own, base, strict=False)]
    return {"median": median(own) / median(base), "min": min(by_round), "max": max(by_round)}
