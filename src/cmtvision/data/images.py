"""The torch data set: a sample's photo, transformed, with its label and index.

What an image becomes depends on (seed, epoch, index) only: neither the number of workers nor a restart changes it. A
photo that can no longer be read in training is replaced by the next readable one of its class (of the same classes,
where a photo may have several), and named in ``failures``; in evaluation it is an error, since a figure over other
photos than stated would be false.
"""

import logging
import mmap
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from cmtvision.data.augment import keyed_rng
from cmtvision.data.decode import MAX_BYTES, MAX_PIXELS, open_image
from cmtvision.data.index import Sample
from cmtvision.data.photos import PhotoPath
from cmtvision.data.preprocess import Preprocess
from cmtvision.errors import DataError

Target: TypeAlias = int | torch.Tensor
_log = logging.getLogger(__name__)


class ImageDataset(Dataset[tuple[torch.Tensor, Target, int]]):
    """Photos as (tensor (C, H, W) float32, target, index).

    The target is the class number, or with ``num_classes`` a float32 row (num_classes,) with 1 for each class of the
    photo. An index of n or more (n photos) means a repetition, ``index // n``, of photo ``index % n``: the same photo,
    changed differently (see ``EpochSampler``); what is returned is ``index % n``.

    Args:
        samples: photos and labels.
        transform: ``train_transform(...)``, a ``Preprocess``, or any callable from a PIL image to a tensor or array.
        seed: with epoch and index it decides every random change.
        training: replace unreadable photos instead of raising; by default so unless the transform is a ``Preprocess``.
        cache: keep what never changes in memory: pixels after the fixed resize where there is one, shared by forked
            workers; else the decoded images, which each worker keeps for itself.
        max_pixels, max_bytes: refuse larger images and files.
        num_classes: give it where a photo may have several classes, for targets of 0 and 1.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        transform: Callable[[Any], Any],
        *,
        seed: int = 0,
        training: bool | None = None,
        cache: bool = False,
        max_pixels: int = MAX_PIXELS,
        max_bytes: int = MAX_BYTES,
        num_classes: int | None = None,
    ) -> None:
        if not samples:
            raise DataError("a data set without a single photo; check the split")
        self.samples = list(samples)
        self.transform = transform
        self.seed = seed
        self.training = not isinstance(transform, Preprocess) if training is None else training
        self.max_pixels, self.max_bytes = max_pixels, max_bytes
        self.num_classes = num_classes
        # In shared memory, so that workers that live on see a new epoch, and the main process what they could not read.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._failed: torch.Tensor = torch.zeros(len(self.samples), dtype=torch.bool)
        self._failed.share_memory_()
        self._prepare = getattr(transform, "prepare", None)
        self._finish = getattr(transform, "finish", None) if self._prepare is not None else None
        self._random = not isinstance(transform, Preprocess)
        self._python_only = bool(getattr(transform, "python_only", False))
        self._cache = _new_cache(len(self.samples), transform) if cache else None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, Target, int]:
        virtual, index = index, index % len(self.samples)
        prepared = self._prepared(index)
        finish = self._finish or self.transform
        if self._random:
            with keyed_rng(self.seed, int(self._epoch), virtual, self._python_only):
                out = finish(prepared)
        else:
            out = finish(prepared)
        tensor = torch.from_numpy(out) if isinstance(out, np.ndarray) else out
        return tensor, self._target(self.samples[index]), index

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that random changes are keyed by; reaches running workers too."""
        self._epoch.fill_(epoch)

    @property
    def failures(self) -> list[PhotoPath]:
        """Photos that could not be read so far, in any worker."""
        return [self.samples[index].path for index in self._failed.nonzero().flatten().tolist()]

    def _target(self, sample: Sample) -> Target:
        if self.num_classes is None:
            return sample.label
        row = torch.zeros(self.num_classes)
        row[list(sample.labels)] = 1.0
        return row

    def _prepared(self, index: int) -> Any:
        """The photo before anything random; a stand-in of the same class where it cannot be read in training."""
        if not bool(self._failed[index]):
            try:
                return self._read(index)
            except DataError as error:
                if not self.training:
                    raise
                _log.warning("%s; another photo of its class takes its place", error)
                self._failed[index] = True
        wanted = self.samples[index][1:]
        # Looking on from the photo itself keeps the choice the same in every worker and epoch.
        for step in range(1, len(self.samples)):
            other = (index + step) % len(self.samples)
            if self.samples[other][1:] != wanted or bool(self._failed[other]):
                continue
            try:
                return self._read(other)
            except DataError as error:
                _log.warning("%s; another photo of its class takes its place", error)
                self._failed[other] = True
        raise DataError(f"{self.samples[index].path}: no photo of its class can be read any more")

    def _read(self, index: int) -> Any:
        if self._cache is not None:
            kept = self._cache.get(index)
            if kept is not None:
                return kept
        picture: Any = open_image(self.samples[index].path, self.max_pixels, self.max_bytes)
        try:
            prepared = self._prepare(picture) if self._prepare is not None else picture
        except DataError as error:  # of a decoded picture, which has no name any more
            raise DataError(f"{self.samples[index].path}: {error}") from error
        if self._cache is not None:
            self._cache.put(index, prepared)
        return prepared


class _ObjectCache:
    """Decoded images of any size, in this process."""

    def __init__(self) -> None:
        self._kept: dict[int, Any] = {}

    def get(self, index: int) -> Any:
        return self._kept.get(index)

    def put(self, index: int, prepared: Any) -> None:
        self._kept[index] = prepared

    def __getstate__(self) -> dict[str, Any]:
        return {"_kept": {}}  # a spawned worker starts with an empty cache


class _PixelCache:
    """Pixels of one shape in an anonymous shared map: forked workers fill it together, and no /dev/shm is needed."""

    def __init__(self, num_samples: int, shape: tuple[int, int, int]) -> None:
        self._num_samples, self._shape = num_samples, shape
        self._allocate()

    def _allocate(self) -> None:
        size = int(np.prod(self._shape))
        memory = np.frombuffer(mmap.mmap(-1, self._num_samples * (size + 1)), dtype=np.uint8)
        # One byte for each photo: 0 not yet there, else its number of planes (1 for gray).
        self._planes: npt.NDArray[np.uint8] = memory[: self._num_samples]
        self._pixels: npt.NDArray[np.uint8] = memory[self._num_samples :].reshape(self._num_samples, size)

    def get(self, index: int) -> npt.NDArray[np.uint8] | None:
        planes = int(self._planes[index])
        height, width, _ = self._shape
        return self._pixels[index, : height * width * planes].reshape(height, width, planes) if planes else None

    def put(self, index: int, prepared: npt.NDArray[np.uint8]) -> None:
        self._pixels[index, : prepared.size] = prepared.reshape(-1)
        self._planes[index] = prepared.shape[2]  # last: whoever sees it finds the pixels complete

    def __getstate__(self) -> dict[str, Any]:
        return {"_num_samples": self._num_samples, "_shape": self._shape}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._allocate()


def _new_cache(num_samples: int, transform: Any) -> "_ObjectCache | _PixelCache":
    shape = (
        (*transform.size, transform.channels)
        if isinstance(transform, Preprocess)
        else getattr(transform, "fixed_shape", None)
    )
    return _ObjectCache() if shape is None or shape[2] > 255 else _PixelCache(num_samples, shape)
