"""The fastest form of a network that gives the same numbers here: what ``cmtvision.load`` opens a run in.

On a processor, that is

1. for a CMT the fused network (models/accelerate/fusing), from the first image on. It is compared with the plain one
   on the first images that it is given, and taken only if no logit and no feature differs by more than ``SAME``;
   otherwise, and where it cannot be built, the plain network stays;
2. for a batch of ``PART`` images and more for each thread, one part of it a thread: a thread then computes its images
   from beginning to end, and waits for no other after each operation. That counts where threads that open images need
   the same processors.

No choice depends on time, so that the same images in the same order give the same numbers. On a GPU the plain network
computes. OpenVINO's graph of the network was tried as a third form: docs/decisions.md.
"""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from cmtvision.artefact.runtimes.base import Batch, Logits
from cmtvision.artefact.runtimes.torch import NetworkRuntime
from cmtvision.models import CMT
from cmtvision.models.accelerate.fusing.fuse import fuse

SAME = 1e-5
"""Largest difference to the plain network's numbers, relative to max(1, the largest of them)."""
PART = 8
"""Images that a thread computes at a time, at least."""
_COMPARED = 4  # images

Features = npt.NDArray[np.float32] | None
Answer = TypeVar("Answer")
_log = logging.getLogger(__name__)


class FastRuntime(NetworkRuntime):
    """A network in its fastest form. See ``Runtime``.

    Attributes:
        network: the plain one, in eval mode, on the device.
        fused: what computes in its place; None before the first image, and where it is not taken.
    """

    def __init__(self, network: nn.Module, device: str, threads: int | None = None) -> None:
        super().__init__(network, device, threads)
        self.fused: NetworkRuntime | None = None
        self._threads = torch.get_num_threads() if self.device == "cpu" else 1
        self._undecided = self.device == "cpu" and isinstance(network, CMT)
        self._deciding = threading.Lock()

    def __call__(self, batch: Batch) -> Logits:
        """Logits (B, classes) of a batch (B, C, H, W)."""
        self._decide(batch)
        compute = super().__call__ if self.fused is None else self.fused
        return np.concatenate(self._in_parts(compute, batch))

    def with_features(self, batch: Batch) -> tuple[Logits, Features]:
        """See ``NetworkRuntime.with_features``."""
        self._decide(batch)
        compute = super().with_features if self.fused is None else self.fused.with_features
        logits, features = zip(*self._in_parts(compute, batch), strict=True)
        whole = None if any(one is None for one in features) else np.concatenate(features)
        return np.concatenate(logits), whole

    def _in_parts(self, compute: Callable[[Batch], Answer], batch: Batch) -> list[Answer]:
        parts = min(self._threads, len(batch) // PART)
        if parts < 2:
            return [compute(batch)]
        return list(_threads_alone(self._threads).map(compute, np.array_split(batch, parts)))

    def _decide(self, batch: Batch) -> None:
        with self._deciding:
            if not self._undecided or not len(batch):
                return
            self._undecided = False
            some = batch[:_COMPARED]
            expected = super().with_features(some)
            try:
                fused = _Fused(self.network, some)
                found = fused.with_features(some)
            except Exception as error:  # whatever oneDNN raises here: the network itself still works
                _log.info("the fused network does not work here: %s: %s", type(error).__name__, error)
                return
            if all(_same(*pair) for pair in zip(found, expected, strict=True)):
                self.fused = fused
            else:
                _log.info("the fused network differs from the plain one here; the plain one computes")


class _Fused(NetworkRuntime):
    """The fused network, for images of one size."""

    def __init__(self, network: Any, batch: Batch) -> None:
        self.network, self.device = fuse(network, batch.shape[2:]), "cpu"  # moving it would undo its packing


def _same(found: Features, expected: Features) -> bool:
    if found is None or expected is None:
        return found is expected
    if not (np.isfinite(found).all() and np.isfinite(expected).all()):
        return False
    return bool(np.abs(found - expected).max() <= SAME * max(1.0, float(np.abs(expected).max())))


@cache
def _threads_alone(count: int) -> ThreadPoolExecutor:
    """Threads that compute with one thread each, while every other keeps its own number of them."""
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, "cmtvision-network", _alone)
    here = threading.Barrier(count)
    list(pool.map(lambda _: here.wait(), range(count)))  # they have all begun
    torch.set_num_threads(before)  # PyTorch takes the last number for threads to come
    return pool


def _alone() -> None:
    torch.get_num_threads()  # PyTorch gives a thread its number at its first operation, whatever was set before
    torch.set_num_threads(1)
