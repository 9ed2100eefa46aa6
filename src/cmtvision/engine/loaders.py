"""Loaders of photos for training and evaluation: same order and same augmentation whatever the number of workers."""

import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from cmtvision.data import DatasetIndex, EpochSampler, Preprocess, Sample, balanced_weights, group_numbers
from cmtvision.data.training.augment import train_transform
from cmtvision.data.training.dataset import ImageDataset
from cmtvision.engine.distributed.processes import SINGLE, Processes
from cmtvision.machine import usable_processors
from cmtvision.recipe import DataSection, Recipe

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class TrainLoader(DataLoader[Batch]):
    """A DataLoader whose place in the epoch can be saved.

    Args:
        dataset: gives images by number, the same in every process for the same epoch; has ``samples``, each with a
            ``path``, ``failures`` and ``set_epoch``.
        sampler: their order.

    Attributes:
        consumed: photos of the epoch that training has used, in this process.
        waited: seconds that training has waited for batches since the epoch began.
        accept_changed: go on at a saved place although photos were added or removed since.
    """

    def __init__(self, dataset: Any, sampler: EpochSampler, **kwargs: Any) -> None:
        super().__init__(dataset, sampler=sampler, **kwargs)
        self.photos = dataset
        self.order = sampler
        self.consumed = 0
        self.waited = 0.0
        self.accept_changed = False
        self._restored_epoch = -1

    def __len__(self) -> int:
        """Whole batches of a whole epoch; several processes make as many as one with the larger batch would."""
        # where photos don't divide, the sampler fills up, and a batch of fill would be one more
        return self.order.without_fill // (self.batch_size or 1)

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """The batches that are left of the epoch, with the wait for each counted."""
        begun = time.perf_counter()
        batches = super().__iter__()
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.waited += time.perf_counter() - begun
            yield batch
            begun = time.perf_counter()

    def begin_epoch(self, epoch: int) -> None:
        """Choose the epoch that order and augmentation depend on; a restored one goes on where it stood."""
        self.order.set_epoch(epoch)
        self.photos.set_epoch(epoch)
        self.waited = 0.0
        if epoch != self._restored_epoch:
            self.consumed = 0
        self._restored_epoch = -1

    @property
    def at_end(self) -> bool:
        """Whether every whole batch of the epoch has been used."""
        return self.consumed >= len(self) * (self.batch_size or 1)

    def state_dict(self) -> dict[str, int]:
        """The place of the next photo that training has not used; the same in every process."""
        return self.order.state_dict(len(self.order) if self.at_end else self.consumed)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on at a saved place; after a finished epoch that is the beginning of the next."""
        if self.accept_changed:
            state = {**state, "num_samples": self.order.num_samples, "offset": min(state["offset"], len(self.order))}
        self.order.load_state_dict(state)
        self.consumed = state["offset"] if self.order.epoch == state["epoch"] else 0
        self._restored_epoch = self.order.epoch
        self.photos.set_epoch(self.order.epoch)


def train_loader(
    index: DatasetIndex, preprocess: Preprocess, recipe: Recipe, batch_size: int, processes: Processes = SINGLE
) -> TrainLoader:
    """The loader of an index's training photos, changed at random as the recipe says; whole batches only.

    With several processes each sees its part of the epoch: batch t of all of them together is batch t of one process
    with as many times the batch size. Photos in shards are an exception: there each process reads shards of its own.
    """
    data = recipe.data
    dataset = ImageDataset(
        index.train,
        train_transform(preprocess, recipe.augment),
        seed=recipe.seed,
        cache=data.cache,
        short_side=None if data.shrink is None else math.ceil(data.shrink * max(preprocess.size)),
        max_pixels=data.max_pixels,
        max_bytes=data.max_bytes,
        num_classes=len(index.classes) if data.multi_label else None,
    )
    balanced = data.class_balance == "sampling"
    sampler = EpochSampler(
        len(index.train),
        recipe.seed,
        rank=processes.rank,
        num_replicas=processes.world_size,
        repeats=data.repeated_aug,
        weights=balanced_weights([sample.label for sample in index.train]) if balanced else None,
        groups=group_numbers(index.train),
        window=data.shard_window,
    )
    return TrainLoader(
        dataset, sampler, batch_size=batch_size, drop_last=True, **loader_settings(data, processes.local_world_size)
    )


def eval_loader(
    samples: Sequence[Sample],
    preprocess: Preprocess,
    data: DataSection,
    batch_size: int,
    *,
    cache: bool = False,
    share: Sequence[int] | None = None,
    num_classes: int | None = None,
    local_world_size: int = 1,
) -> DataLoader[Batch]:
    """The loader of photos as evaluation sees them: preprocessed, in order, every one of them.

    Args:
        share: the places in ``samples`` that this process looks at; None for all.
        num_classes: width of the targets where a photo may have several labels (data.multi_label).
        local_world_size: processes that share this machine's cores.
    """
    dataset = ImageDataset(
        samples,
        preprocess,
        cache=cache,
        max_pixels=data.max_pixels,
        max_bytes=data.max_bytes,
        num_classes=num_classes if data.multi_label else None,
    )
    places: Any = list(share) if share is not None else None
    return DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_size=batch_size,
        sampler=places,
        shuffle=False,
        **loader_settings(data, local_world_size),
    )


def class_counts(samples: Sequence[Sample], num_classes: int) -> list[int]:
    """Photos of each class; one with several labels counts for each of them."""
    numbers = [label for sample in samples for label in (sample.labels or (sample.label,)) if label >= 0]
    return np.bincount(np.asarray(numbers, dtype=np.int64), minlength=num_classes).tolist()


def num_workers(data: DataSection, local_world_size: int = 1) -> int:
    """Loader processes of each process that trains; one processor is left to the one that computes."""
    own = usable_processors() // local_world_size
    return data.workers if data.workers is not None else max(0, min(own - 1, 8))


def forks() -> bool:
    """Whether loader processes begin as copies of this one, with whose cache they share memory."""
    return multiprocessing.get_context().get_start_method() == "fork"


def loader_settings(data: DataSection, local_world_size: int = 1) -> dict[str, Any]:
    """Arguments of a DataLoader that follow from recipe and machine: its processes, and how they behave."""
    workers = num_workers(data, local_world_size)
    return {
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "pin_memory": torch.cuda.is_available(),
        # a generator of its own: starting an iterator must not draw from the one that dropout uses
        "generator": torch.Generator().manual_seed(0),
        "worker_init_fn": _leave_signals_to_the_run,
    }


def _leave_signals_to_the_run(_: int) -> None:
    """Ctrl-C and a queue's signals reach loader processes too; these must survive until the run has saved.

    SIGTERM is also how the run itself ends them, so there the sender decides.
    """
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS, Windows
        return
    run = os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait_for_the_run() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid not in (run, 0):
            pass
        os._exit(0)

    threading.Thread(target=wait_for_the_run, daemon=True).start()
