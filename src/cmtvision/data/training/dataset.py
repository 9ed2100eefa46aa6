"""The torch data set: a sample's image, transformed, with its label and index.

The augmented image depends on (seed, epoch, index) only: neither the number of workers nor a restart changes it. A
image that can no longer be read in training is replaced by the next readable one of its class (of the same classes,
where an image may have several), and named in ``failures``; in evaluation it is an error, since a figure over other
images than stated would be wrong.
"""

import logging
import mmap
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.utils.data import Dataset

from cmtvision.data.decode import MAX_BYTES, MAX_PIXELS, open_image
from cmtvision.data.listing.index import Sample
from cmtvision.data.photos import PhotoPath
from cmtvision.data.preprocess import Preprocess
from cmtvision.data.training.augment import keyed_rng
from cmtvision.errors import DataError

Target: TypeAlias = int | torch.Tensor
_log = logging.getLogger(__name__)


class ImageDataset(Dataset[tuple[torch.Tensor, Target, int]]):
    """Images as (tensor (C, H, W) float32, target, index).

    The target is the class number, or with ``num_classes`` a float32 row (num_classes,) with 1 for each class of the
    image. An index of n or more (n images) means a repetition, ``index // n``, of image ``index % n``: the same image,
    augmented differently (see ``EpochSampler``); the returned index is ``index % n``.

    Args:
        samples: images and labels.
        transform: ``train_transform(...)``, a ``Preprocess``, or any callable from a PIL image to a tensor or array.
        seed: with epoch and index it decides every random change.
        training: replace unreadable images instead of raising; by default so unless the transform is a ``Preprocess``.
        cache: keep what never changes in memory: pixels after the fixed resize where there is one, shared by forked
            workers; else the decoded images, which each worker keeps for itself.
        short_side: shrink larger images to it as they are read, where a random crop follows; the cache then holds
            pixels for all workers, of images up to twice as long as they are wide.
        max_pixels, max_bytes: refuse larger images and files.
        num_classes: give it where an image may have several classes, for targets of 0 and 1.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        transform: Callable[[Any], Any],
        *,
        seed: int = 0,
        training: bool | None = None,
        cache: bool = False,
        short_side: int | None = None,
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
        self._short_side = short_side if getattr(transform, "fixed_shape", ()) is None else None
        self._cache = _new_cache(len(self.samples), transform, self._short_side) if cache else None

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
        """Images that could not be read so far, in any worker."""
        return [self.samples[index].path for index in self._failed.nonzero().flatten().tolist()]

    def _target(self, sample: Sample) -> Target:
        if self.num_classes is None:
            return sample.label
        row = torch.zeros(self.num_classes)
        row[list(sample.labels)] = 1.0
        return row

    def _prepared(self, index: int) -> Any:
        """The image before random augmentation; in training, an unreadable one is replaced by another of its class."""
        if not bool(self._failed[index]):
            try:
                return self._read(index)
            except DataError as error:
                if not self.training:
                    raise
                _log.warning("%s; another photo of its class takes its place", error)
                self._failed[index] = True
        wanted = self.samples[index][1:]
        # Looking on from the image itself keeps the choice the same in every worker and epoch.
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
        path, limits = self.samples[index].path, (self.max_pixels, self.max_bytes)
        picture: Any = open_image(path, *limits, short_side=self._short_side)
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
    """Pixels in an anonymous shared map: forked workers fill it together, and no /dev/shm is needed.

    Args:
        num_samples: images.
        largest: values (height x width x planes) that one image may have; a larger one is not kept. The system gives
            memory only to what is written.
        pictures: what is kept are PIL images.
    """

    def __init__(self, num_samples: int, largest: int, pictures: bool = False) -> None:
        self._num_samples, self._largest, self._pictures = num_samples, largest, pictures
        self._allocate()

    def _allocate(self) -> None:
        head = 3 * np.dtype(np.int32).itemsize
        memory = mmap.mmap(-1, self._num_samples * (self._largest + head))
        # (height, width, planes) of each image, planes 0 while it is not there
        self._shapes: npt.NDArray[np.int32] = np.frombuffer(memory, np.int32, self._num_samples * 3).reshape(-1, 3)
        self._pixels: npt.NDArray[np.uint8] = np.frombuffer(memory, np.uint8, offset=self._num_samples * head).reshape(
            self._num_samples, self._largest
        )

    def get(self, index: int) -> npt.NDArray[np.uint8] | Image.Image | None:
        height, width, planes = self._shapes[index].tolist()
        if not planes:
            return None
        pixels = self._pixels[index, : height * width * planes].reshape(height, width, planes)
        return Image.fromarray(pixels[:, :, 0] if planes == 1 else pixels) if self._pictures else pixels

    def put(self, index: int, prepared: npt.NDArray[np.uint8] | Image.Image) -> None:
        pixels = np.asarray(prepared)
        if pixels.size > self._largest:
            return
        shape = pixels.shape if pixels.ndim == 3 else (*pixels.shape, 1)
        self._pixels[index, : pixels.size] = pixels.reshape(-1)
        self._shapes[index, :2] = shape[:2]
        self._shapes[index, 2] = shape[2]  # last: whoever sees it finds the pixels complete

    def __getstate__(self) -> dict[str, Any]:
        return {"_num_samples": self._num_samples, "_largest": self._largest, "_pictures": self._pictures}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._allocate()


def _new_cache(num_samples: int, transform: Any, short_side: int | None) -> "_ObjectCache | _PixelCache":
    if short_side is not None:
        return _PixelCache(num_samples, short_side * short_side * 2 * 3, pictures=True)
    shape = (
        (*transform.size, transform.channels)
        if isinstance(transform, Preprocess)
        else getattr(transform, "fixed_shape", None)
    )
    return _ObjectCache() if shape is None else _PixelCache(num_samples, int(np.prod(shape)))
