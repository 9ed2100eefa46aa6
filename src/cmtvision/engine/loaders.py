"""Loaders of photos for training and evaluation: same order and same augmentation whatever the number of workers."""

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader

from cmtvision.data import DatasetIndex, EpochSampler, Preprocess, Sample
from cmtvision.data.augment import train_transform
from cmtvision.data.images import ImageDataset
from cmtvision.recipe import DataSection, Recipe

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class TrainLoader(DataLoader[Batch]):
    """A DataLoader whose place in the epoch can be saved: ``consumed`` counts the photos that training has used."""

    def __init__(self, dataset: ImageDataset, sampler: EpochSampler, **kwargs: Any) -> None:
        super().__init__(dataset, sampler=sampler, **kwargs)  # type: ignore[arg-type]
        self.photos = dataset
        self.order = sampler
        self.consumed = 0
        self._restored_epoch = -1

    def __len__(self) -> int:
        """Whole batches of a whole epoch."""
        return len(self.order) // (self.batch_size or 1)

    def begin_epoch(self, epoch: int) -> None:
        """Choose the epoch that order and augmentation depend on; a restored one goes on where it stood."""
        self.order.set_epoch(epoch)
        self.photos.set_epoch(epoch)
        if epoch != self._restored_epoch:
            self.consumed = 0
        self._restored_epoch = -1

    @property
    def at_end(self) -> bool:
        """Whether every whole batch of the epoch has been used."""
        return self.consumed >= len(self) * (self.batch_size or 1)

    def state_dict(self) -> dict[str, int]:
        """The place of the next photo that training has not used."""
        return self.order.state_dict(len(self.order) if self.at_end else self.consumed)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on at a saved place; after a finished epoch that is the beginning of the next."""
        self.order.load_state_dict(state)
        self.consumed = state["offset"] if self.order.epoch == state["epoch"] else 0
        self._restored_epoch = self.order.epoch
        self.photos.set_epoch(self.order.epoch)


def train_loader(index: DatasetIndex, preprocess: Preprocess, recipe: Recipe, batch_size: int) -> TrainLoader:
    """The loader of an index's training photos, changed at random as the recipe says; whole batches only."""
    dataset = ImageDataset(
        index.train,
        train_transform(preprocess, recipe.augment),
        seed=recipe.seed,
        cache=recipe.data.cache,
        max_pixels=recipe.data.max_pixels,
        max_bytes=recipe.data.max_bytes,
    )
    sampler = EpochSampler(len(index.train), recipe.seed)
    return TrainLoader(dataset, sampler, batch_size=batch_size, drop_last=True, **_workers(recipe.data))


def eval_loader(
    samples: Sequence[Sample], preprocess: Preprocess, data: DataSection, batch_size: int, cache: bool = False
) -> DataLoader[Batch]:
    """The loader of photos as evaluation sees them: preprocessed, in order, every one of them."""
    dataset = ImageDataset(samples, preprocess, cache=cache, max_pixels=data.max_pixels, max_bytes=data.max_bytes)
    return DataLoader(dataset, batch_size=batch_size, shuffle=False, **_workers(data))  # type: ignore[arg-type]


def _workers(data: DataSection) -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = data.workers if data.workers is not None else min(cores - 1, 8)
    return {
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "pin_memory": torch.cuda.is_available(),
        # a generator of its own: starting an iterator must not draw from the one that dropout uses
        "generator": torch.Generator().manual_seed(0),
    }
