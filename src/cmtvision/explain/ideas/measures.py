"""Figures of a trace, from which the page chooses its words: nothing is claimed that was not measured on this photo.

Shapes as in trace.py.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from cmtvision.explain.ideas.trace import AttentionTrace, Trace, evaluated
from cmtvision.models import CMT

ALIKE = 0.6
"""The correlation from which on a map is said to follow another."""


def between_positions(features: torch.Tensor) -> float:
    """The share of a map (C, H, W) that differs from position to position: 0 where all positions are the same."""
    apart = features - features.mean(dim=(1, 2), keepdim=True)
    return float(apart.square().sum() / features.square().sum().clamp_min(1e-12))


def evenness(attention: AttentionTrace, with_bias: bool = True) -> float:
    """How evenly queries look at keys: mean entropy over its largest value, 1 where all keys get the same."""
    weights = attention.weights(with_bias)
    num_keys = weights.shape[-1]
    if num_keys == 1:
        return 1.0
    return float(entropy(weights).mean()) / math.log(num_keys)


def entropy(weights: torch.Tensor) -> torch.Tensor:
    """The mean entropy of the queries' attention (h, N, M) for each head, (h,), in nats."""
    return -(weights * weights.clamp_min(1e-12).log()).sum(dim=-1).mean(dim=-1)


def moved_by_bias(attention: AttentionTrace) -> float:
    """The share of a query's attention that B gives to other keys, a mean over heads and queries, 0 to 1."""
    return float((attention.weights() - attention.weights(with_bias=False)).abs().sum(dim=-1).mean() / 2)


def spread(rows: torch.Tensor) -> float:
    """The standard deviation within rows (h, N, M): what softmax sees of them, for it ignores a row's mean."""
    return float((rows - rows.mean(dim=-1, keepdim=True)).square().mean().sqrt())


def followers(features: torch.Tensor, image: torch.Tensor) -> tuple[int, int]:
    """How many channels of a map (C, H, W) follow the image's brightness, and how many others its edges."""
    brightness = F.interpolate(image.mean(dim=0)[None, None], size=features.shape[1:], mode="area")[0, 0]
    right, down = F.pad(brightness.diff(dim=1), (0, 1)), F.pad(brightness.diff(dim=0), (0, 0, 0, 1))
    edges = (right, down, (right.square() + down.square()).sqrt())
    bright = _correlations(features, brightness).abs() >= ALIKE
    edged = torch.stack([_correlations(features, one).abs() for one in edges]).amax(dim=0) >= ALIKE
    return int(bright.sum()), int((edged & ~bright).sum())


def _correlations(features: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    rows = F.normalize((features - features.mean(dim=(1, 2), keepdim=True)).flatten(1), dim=1)
    return rows @ F.normalize((other - other.mean()).flatten(), dim=0)


@dataclass(frozen=True)
class Silenced:
    """What the network says of the photo without one idea.

    Attributes:
        idea: which, in words.
        logits: (classes,).
        change: the norm of the difference of the logits, relative to that of the whole network's logits.
    """

    idea: str
    logits: torch.Tensor
    change: float


def silenced(network: CMT, trace: Trace) -> list[Silenced]:
    """The network without one idea at a time, in all blocks: its part gives zero, and the rest runs as it is."""
    blocks: list[Any] = [block for stage in network.stages for block in stage.blocks]  # type: ignore[union-attr]
    stages: list[Any] = list(network.stages)
    first = trace.blocks[0]
    parts: list[tuple[str, bool, list[nn.Module | None]]] = [
        ("the LPU's convolution", first.lpu is not None, [getattr(block.lpu, "conv", None) for block in blocks]),
        (
            "the position bias B",
            first.attention.bias is not None,
            [one.position_bias for one in (*stages, *(block.lmhsa for block in blocks))],
        ),
        (
            "the IRFFN's depthwise convolution",
            first.irffn is not None,
            [getattr(block.irffn, "conv", None) for block in blocks],
        ),
    ]
    found = []
    for idea, has, modules in parts:
        if has:
            with _zeroed([module for module in modules if module is not None]):
                logits = evaluated(network, trace.image)
            change = float((logits - trace.logits).norm() / trace.logits.norm().clamp_min(1e-12))
            found.append(Silenced(idea, logits, change))
    return found


@contextmanager
def _zeroed(modules: list[nn.Module]) -> Iterator[None]:
    zero: Callable[..., torch.Tensor] = lambda *given: torch.zeros_like(given[-1])  # noqa: E731
    with ExitStack() as hooks:
        for module in modules:
            hooks.callback(module.register_forward_hook(zero).remove)
        yield
