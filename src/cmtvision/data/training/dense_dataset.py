"""The torch data sets of detection and segmentation: (image, target, index), and how a batch is made of them.

What is seen of an image depends on (seed, epoch, index) only, as in ``ImageDataset``: neither the number of workers nor
a restart changes it. An image that can no longer be read in training is replaced by the next readable one and named in
``failures``; in evaluation it is an error.

B batch, C channels, H W height and width in pixels, N objects.
"""

import logging
from collections.abc import Sequence
from typing import Generic, NotRequired, TypedDict, TypeVar

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors

from cmtvision.data.annotations.samples import DetectionSample, SegmentationSample
from cmtvision.data.decode import MAX_BYTES, MAX_PIXELS, open_image
from cmtvision.data.training.augment import keyed_rng
from cmtvision.data.training.dense_augment import DenseTransform
from cmtvision.data.whole_image import WholeImage
from cmtvision.errors import DataError

_log = logging.getLogger(__name__)


class DetectionTarget(TypedDict):
    """The objects of one image, in pixels of the network's input.

    ``size`` is the (height, width) of the input without padding, ``original_size`` of the upright image, ``scale`` (x,
    y) the pixels of the input for each of the original's; after a random crop there is no way back, and it is (nan,
    nan). Groups (``crowd``) are among the objects: a loss leaves them out.
    """

    boxes: torch.Tensor  # (N, 4) float32 x, y, x, y
    labels: torch.Tensor  # (N,) int64
    crowd: torch.Tensor  # (N,) bool
    area: torch.Tensor  # (N,) float32, of the input's pixels
    size: tuple[int, int]
    original_size: tuple[int, int]
    scale: tuple[float, float]
    masks: NotRequired[torch.Tensor]  # (N, H, W) bool
    has_mask: NotRequired[torch.Tensor]  # (N,) bool: which objects have one


class SegmentationTarget(TypedDict):
    """The class of each pixel: in training (H, W) of the input; in evaluation of the original, which is what counts."""

    mask: torch.Tensor  # (H, W) int64, the void value where there is no class
    void: int
    size: tuple[int, int]
    original_size: tuple[int, int]
    scale: tuple[float, float]


_Sample = TypeVar("_Sample", bound=DetectionSample | SegmentationSample)
_Target = TypeVar("_Target", bound=DetectionTarget | SegmentationTarget)
_NO_WAY_BACK = (float("nan"), float("nan"))


class _DenseDataset(Dataset[tuple[torch.Tensor, _Target, int]], Generic[_Sample, _Target]):
    """What both have in common: the epoch, repetitions, and images that cannot be read."""

    def __init__(
        self,
        samples: Sequence[_Sample],
        transform: DenseTransform | WholeImage,
        *,
        seed: int = 0,
        max_pixels: int = MAX_PIXELS,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        if not samples:
            raise DataError("a data set without a single image; check the split")
        self.samples = list(samples)
        self.transform = transform
        self.seed = seed
        self.max_pixels, self.max_bytes = max_pixels, max_bytes
        # In shared memory, so that workers that live on see a new epoch, and the main process what they could not read.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._failed = torch.zeros(len(self.samples), dtype=torch.bool)
        self._failed.share_memory_()

    @property
    def training(self) -> bool:
        """Whether images are changed at random, and unreadable ones replaced."""
        return isinstance(self.transform, DenseTransform)

    def __len__(self) -> int:
        return len(self.samples)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that random changes are keyed by; reaches running workers too."""
        self._epoch.fill_(epoch)

    @property
    def failures(self) -> list[str]:
        """Images that could not be read so far, in any worker."""
        return [str(self.samples[index].path) for index in self._failed.nonzero().flatten().tolist()]

    def __getitem__(self, index: int) -> tuple[torch.Tensor, _Target, int]:
        virtual, index = index, index % len(self.samples)
        transform = self.transform
        if isinstance(transform, WholeImage):
            return (*self._whole(self.samples[index], transform), index)
        for step in range(len(self.samples)):  # the same choice in every worker and epoch
            place: int = (index + step) % len(self.samples)
            if bool(self._failed[place]):
                continue
            try:
                with keyed_rng(self.seed, int(self._epoch), virtual):
                    return (*self._changed(self.samples[place], transform), index)
            except DataError as error:
                _log.warning("%s; another image takes its place", error)
                self._failed[place] = True
        raise DataError(f"{self.samples[index].path}: no image of this data set can be read any more")

    def _whole(self, sample: _Sample, transform: WholeImage) -> tuple[torch.Tensor, _Target]:
        raise NotImplementedError

    def _changed(self, sample: _Sample, transform: DenseTransform) -> tuple[torch.Tensor, _Target]:
        raise NotImplementedError


class DetectionDataset(_DenseDataset[DetectionSample, DetectionTarget]):
    """Images as (tensor (C, H, W) float32, ``DetectionTarget``, index).

    An index of n or more (n images) means a repetition, ``index // n``, of image ``index % n``: the same image, changed
    differently; the returned index is ``index % n``.

    Args:
        samples: images and objects.
        transform: ``DenseTransform`` to train, ``WholeImage`` to evaluate.
        seed: with epoch and index it decides every random change.
        masks: give the objects' masks too.
        max_pixels, max_bytes: refuse larger images and files.
    """

    def __init__(
        self,
        samples: Sequence[DetectionSample],
        transform: DenseTransform | WholeImage,
        *,
        seed: int = 0,
        masks: bool = False,
        max_pixels: int = MAX_PIXELS,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        super().__init__(samples, transform, seed=seed, max_pixels=max_pixels, max_bytes=max_bytes)
        self.masks = masks

    def _whole(self, sample: DetectionSample, transform: WholeImage) -> tuple[torch.Tensor, DetectionTarget]:
        prepared = transform(sample.path, self.max_pixels, self.max_bytes)
        _check_size(sample, prepared.original)
        x, y = prepared.scale
        height, width = prepared.image.shape[1:]
        boxes = torch.from_numpy(sample.boxes) * torch.tensor([x, y, x, y])
        target = _target(sample, boxes, (height, width), prepared.scale)
        if self.masks:
            rows, columns = (
                ((np.arange(new) + 0.5) * old / new).astype(np.int64)  # the nearest pixel centre
                for new, old in zip((height, width), sample.size, strict=True)
            )
            masks = sample.masks()[:, rows][:, :, columns]
            target["masks"], target["has_mask"] = torch.from_numpy(masks), torch.from_numpy(sample.has_mask)
        return torch.from_numpy(prepared.image), target

    def _changed(self, sample: DetectionSample, transform: DenseTransform) -> tuple[torch.Tensor, DetectionTarget]:
        picture = open_image(sample.path, self.max_pixels, self.max_bytes)
        _check_size(sample, (picture.height, picture.width))
        scene = {
            "image": picture,
            "boxes": tv_tensors.BoundingBoxes(torch.from_numpy(sample.boxes), format="XYXY", canvas_size=sample.size),
        }
        if self.masks:
            scene["masks"] = tv_tensors.Mask(torch.from_numpy(sample.masks()))
        out = transform(scene)
        image, kept = out["image"], out["objects"]
        target = _target(sample, out["boxes"], tuple(image.shape[1:]), _NO_WAY_BACK, kept)
        if self.masks:
            target["masks"], target["has_mask"] = out["masks"], torch.from_numpy(sample.has_mask)[kept]
        return image, target


class SegmentationDataset(_DenseDataset[SegmentationSample, SegmentationTarget]):
    """Images as (tensor (C, H, W) float32, ``SegmentationTarget``, index); arguments as for ``DetectionDataset``."""

    def _whole(self, sample: SegmentationSample, transform: WholeImage) -> tuple[torch.Tensor, SegmentationTarget]:
        prepared = transform(sample.path, self.max_pixels, self.max_bytes)
        _check_size(sample, prepared.original)
        height, width = prepared.image.shape[1:]
        return torch.from_numpy(prepared.image), {
            "mask": torch.from_numpy(_class_map(sample)), "void": sample.void, "size": (height, width),
            "original_size": sample.size, "scale": prepared.scale,
        }  # fmt: skip

    def _changed(
        self, sample: SegmentationSample, transform: DenseTransform
    ) -> tuple[torch.Tensor, SegmentationTarget]:
        picture = open_image(sample.path, self.max_pixels, self.max_bytes)
        _check_size(sample, (picture.height, picture.width))
        out = transform({"image": picture, "mask": tv_tensors.Mask(torch.from_numpy(_class_map(sample)))})
        height, width = out["image"].shape[1:]
        return out["image"], {
            "mask": out["mask"], "void": sample.void, "size": (height, width), "original_size": sample.size,
            "scale": _NO_WAY_BACK,
        }  # fmt: skip


def collate_detection(
    batch: Sequence[tuple[torch.Tensor, DetectionTarget, int]], divisor: int = 32
) -> tuple[torch.Tensor, list[DetectionTarget], torch.Tensor]:
    """Images (B, C, H, W), their targets, and their indices (B,) int64.

    Images get zeros, which are mean colour, at the right and bottom, up to the largest of the batch and to a multiple
    of ``divisor``; boxes stay as they are, and masks grow with their image.
    """
    images = _stacked([image for image, _, _ in batch], divisor)
    targets = []
    for _, target, _ in batch:
        target = target.copy()  # noqa: PLW2901
        if "masks" in target:
            target["masks"] = _padded(target["masks"], images.shape[2:], False)
        targets.append(target)
    return images, targets, torch.tensor([index for *_, index in batch])


def collate_segmentation(
    batch: Sequence[tuple[torch.Tensor, SegmentationTarget, int]], divisor: int = 32
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For training: images (B, C, H, W), masks (B, H, W) int64 with void where an image was padded, indices (B,)."""
    images = _stacked([image for image, _, _ in batch], divisor)
    masks = torch.stack([_padded(target["mask"], images.shape[2:], target["void"]) for _, target, _ in batch])
    return images, masks, torch.tensor([index for *_, index in batch])


def collate_whole(
    batch: Sequence[tuple[torch.Tensor, SegmentationTarget, int]], divisor: int = 32
) -> tuple[torch.Tensor, list[SegmentationTarget], torch.Tensor]:
    """For evaluation: images (B, C, H, W), targets with masks of the original size, indices (B,)."""
    images = _stacked([image for image, _, _ in batch], divisor)
    return images, [target for _, target, _ in batch], torch.tensor([index for *_, index in batch])


def _target(
    sample: DetectionSample,
    boxes: torch.Tensor,
    size: tuple[int, ...],
    scale: tuple[float, float],
    kept: torch.Tensor | None = None,
) -> DetectionTarget:
    """The target of boxes in the input's pixels; an object's area shrinks and grows as its box does."""
    kept = torch.arange(len(boxes)) if kept is None else kept
    before = torch.from_numpy(sample.boxes)[kept]
    share = _areas(boxes) / _areas(before)
    return {
        "boxes": boxes,
        "labels": torch.from_numpy(sample.labels)[kept],
        "crowd": torch.from_numpy(sample.crowd)[kept],
        "area": torch.from_numpy(sample.area)[kept] * share,
        "size": (size[0], size[1]),
        "original_size": sample.size,
        "scale": scale,
    }


def _areas(boxes: torch.Tensor) -> torch.Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)


def _class_map(sample: SegmentationSample) -> "np.ndarray[tuple[int, ...], np.dtype[np.int64]]":
    mask = sample.mask.read().astype(np.int64)
    if mask.shape != sample.size:
        raise DataError(
            f"{sample.path}: its mask has {mask.shape[1]} x {mask.shape[0]} pixels, the image {sample.size[1]} x "
            f"{sample.size[0]}"
        )
    return mask


def _check_size(sample: DetectionSample | SegmentationSample, size: tuple[int, int]) -> None:
    if size != sample.size:
        was, now = (f"{width} x {height}" for height, width in (sample.size, size))
        raise DataError(f"{sample.path}: {now} pixels, and {was} when its annotations were read; read them again")


def _stacked(images: Sequence[torch.Tensor], divisor: int) -> torch.Tensor:
    height, width = (
        -(-max(image.shape[axis] for image in images) // divisor) * divisor for axis in (1, 2)
    )  # up to a multiple
    return torch.stack([_padded(image, (height, width), 0.0) for image in images])


def _padded(planes: torch.Tensor, size: Sequence[int], value: float) -> torch.Tensor:
    """Planes (..., H, W) with a value at the right and bottom up to a size."""
    height, width = planes.shape[-2:]
    if (height, width) == tuple(size):
        return planes
    out = planes.new_full((*planes.shape[:-2], *size), value)
    out[..., :height, :width] = planes
    return out
