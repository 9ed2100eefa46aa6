"""Activation checkpointing that updates BatchNorm's running statistics only once.

A checkpointed block runs twice, once forward and once more in the backward pass. BatchNorm would count its batch twice
(PyTorch's own checkpoint lets it), so that a run with checkpointing would end with other statistics than one without.
In the second run the momentum is zero here.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recomputed(block: nn.Module, x: torch.Tensor, second: Any) -> torch.Tensor:
    """``block(x, second)``, keeping no activations inside it; ``second`` is CMT's position bias or CeiT's grid."""
    if torch.compiler.is_compiling():  # the compiler recomputes values only, never the update of a buffer
        return checkpoint(block, x, second, use_reentrant=False)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _frozen_statistics(block)

    return checkpoint(block, x, second, use_reentrant=False, context_fn=contexts)


@contextmanager
def _frozen_statistics(block: nn.Module) -> Iterator[None]:
    norms = [m for m in block.modules() if isinstance(m, nn.BatchNorm2d) and m.training and m.track_running_stats]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked = norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
