"""Random augmentation for training, built from timm's transforms, determined by (seed, epoch, index) alone.

Without random_resized_crop the image takes the evaluation geometry (``Preprocess.prepare``: the constant part can be
cached), gets a black border of ``crop_padding`` pixels and is cropped at random, so training and evaluation see objects
at the same scale.
"""

import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from timm.data.mixup import Mixup, mixup_target
from timm.data.random_erasing import RandomErasing
from timm.data.transforms_factory import transforms_imagenet_train
from torch.utils.data import get_worker_info

from cmtvision.data.decode import ImageSource, open_image
from cmtvision.data.preprocess import Preprocess
from cmtvision.errors import ConfigError
from cmtvision.recipe import AugmentSection

Pixels: TypeAlias = npt.NDArray[np.uint8]  # (H, W, C), C 1 for gray


@contextmanager
def keyed_rng(seed: int, epoch: int, index: int, python_only: bool = False) -> Iterator[None]:
    """Seed Python's, NumPy's and torch's CPU generators by the three numbers, and restore them afterwards.

    ``python_only`` leaves NumPy's and torch's alone, for transforms that don't use them: it is four times as fast. In
    a loader's worker process nothing is restored: nothing else draws there, and reading states takes longest.
    """
    key = blake2b(struct.pack("<qqq", seed, epoch, index), digest_size=8).digest()
    number = int.from_bytes(key, "little")
    states = None if get_worker_info() is not None else _generator_states(python_only)
    try:
        random.seed(number)
        if not python_only:
            np.random.seed(number & 0xFFFFFFFF)
            # Not torch.manual_seed: it would reseed every GPU as well.
            torch.default_generator.manual_seed(number >> 1)
        yield
    finally:
        if states is not None:
            python, others = states
            random.setstate(python)
            if others is not None:
                np.random.set_state(others[0])
                torch.set_rng_state(others[1])


def _generator_states(python_only: bool) -> tuple[Any, tuple[Any, torch.Tensor] | None]:
    return random.getstate(), None if python_only else (np.random.get_state(), torch.get_rng_state())


class TrainTransform:
    """Turns an image into a randomly augmented network input; see ``train_transform``.

    ``prepare`` is the deterministic part (which can be cached), ``finish`` the random part; calling does both.
    ``fixed_shape`` is the (H, W, C) of the result of ``prepare``, or None if that depends on the image.
    """

    def __init__(self, preprocess: Preprocess, augment: AugmentSection) -> None:
        self.preprocess = preprocess
        self.augment = augment
        self.fixed_shape: tuple[int, int, int] | None = (
            None if augment.random_resized_crop else (*preprocess.size, preprocess.channels)
        )
        # timm's crop and our flips draw from Python's generator; RandAugment, jitter and erasing from the others too.
        self.python_only = not (augment.auto_augment or augment.color_jitter or augment.random_erasing)
        if preprocess.channels not in (1, 3) and (
            augment.random_resized_crop or augment.auto_augment or augment.color_jitter
        ):
            raise ConfigError(
                f"augment: {preprocess.channels} channels can only be padded, cropped, flipped and erased; set "
                "augment.random_resized_crop=false augment.auto_augment=null augment.color_jitter=null"
            )
        self._random_crop, self._pixel_changes = self._from_timm()
        self._erase = RandomErasing(augment.random_erasing, mode="pixel", max_count=1, device="cpu")

    def __call__(self, image: ImageSource) -> torch.Tensor:
        """An image as a float32 tensor (C, H, W), changed by the global generators (see ``keyed_rng``)."""
        return self.finish(self.prepare(image))

    def prepare(self, image: ImageSource) -> Image.Image | Pixels:
        """Decoded, and resized and centre-cropped where no random crop follows."""
        if self.fixed_shape is not None:
            return self.preprocess.prepare(image)
        picture = open_image(image)
        return picture.convert("L") if self.preprocess.channels == 1 and picture.mode != "L" else picture

    def finish(self, prepared: Image.Image | Pixels) -> torch.Tensor:
        """The random part: crop, flips, RandAugment or colour jitter; normalise; erase. Float32 (C, H, W)."""
        hflip, vflip = self.augment.hflip, self.augment.vflip
        if isinstance(prepared, Image.Image):
            picture = self._random_crop(prepared)
            if hflip and random.random() < hflip:
                picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            if vflip and random.random() < vflip:
                picture = picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
            pixels = _pixels(self._changed(picture))
        else:
            pixels = _padded_crop(prepared, self.augment.crop_padding)
            if hflip and random.random() < hflip:
                pixels = pixels[:, ::-1]
            if vflip and random.random() < vflip:
                pixels = pixels[::-1]
            if self._pixel_changes is not None:
                gray = pixels.shape[2] == 1
                changed = self._changed(Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if gray else pixels)))
                pixels = _pixels(changed)
        tensor = torch.from_numpy(self.preprocess.finish(pixels))
        if self.augment.random_erasing:
            tensor = self._erase(tensor)
        return tensor

    def _changed(self, picture: Image.Image) -> Image.Image:
        if self._pixel_changes is None:
            return picture
        # timm's colour operations are written for RGB; for a gray network the result is turned back to gray.
        picture = self._pixel_changes(picture if picture.mode == "RGB" else picture.convert("RGB"))
        return picture.convert("L") if self.preprocess.channels == 1 else picture

    def _from_timm(self) -> tuple[Any, Any]:
        augment, preprocess = self.augment, self.preprocess
        crop, changes, _ = transforms_imagenet_train(
            preprocess.size,
            scale=augment.scale,
            ratio=augment.ratio,
            hflip=0.0,
            color_jitter=augment.color_jitter,  # type: ignore[arg-type]  # None is what it tests for
            auto_augment=augment.auto_augment,
            interpolation=preprocess.interpolation,
            mean=preprocess.mean if preprocess.channels == 3 else preprocess.mean[:1] * 3,
            separate=True,
        )
        allow_no_bits(changes)
        return crop, changes if changes.transforms else None


def train_transform(preprocess: Preprocess, augment: AugmentSection) -> TrainTransform:
    """The training transform of a recipe: PIL image (or path, bytes, array) to float32 tensor (C, H, W).

    Raises:
        ConfigError: augmentations that the number of channels does not allow, or an auto_augment string timm cannot
            read.
    """
    try:
        return TrainTransform(preprocess, augment)
    except (AssertionError, KeyError, ValueError) as error:
        raise ConfigError(
            f"augment.auto_augment: got {augment.auto_augment!r}, which timm cannot read ({error})"
        ) from None


class Mixer(Mixup):
    """timm's mixup and cutmix, with keyed randomness, for odd batch sizes too, and with an epoch to stop at."""

    def __init__(self, augment: AugmentSection, num_classes: int) -> None:
        super().__init__(  # type: ignore[no-untyped-call]
            mixup_alpha=augment.mixup,
            cutmix_alpha=augment.cutmix,
            prob=augment.mix_prob,
            switch_prob=augment.mix_switch_prob,
            label_smoothing=augment.label_smoothing,
            num_classes=num_classes,
        )
        self.off_epoch = augment.mix_off_epoch

    def __call__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        *,
        seed: int = 0,
        epoch: int = 0,
        step: int = 0,
        scheduled: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mix a batch with itself reversed.

        Args:
            images: (B, C, H, W), changed in place.
            labels: (B,) class numbers, or (B, num_classes) 0 and 1 where an image may have several labels.
            seed, epoch, step: decide what is mixed; the global generators are restored.
            scheduled: the schedule's epoch, which a time limit may advance: it decides when mixing ends.

        Returns:
            The images, and soft labels (B, num_classes) float32 that add up to 1 in each row, smoothed also where
            nothing is mixed.
        """
        factor = 1.0
        if not (self.off_epoch and (epoch if scheduled is None else scheduled) >= self.off_epoch):
            with keyed_rng(seed, epoch, -1 - step):
                factor = self._mix_batch(images)  # type: ignore[no-untyped-call]
        if labels.ndim == 2:  # several labels a image: the loss smooths them
            return images, labels * factor + labels.flip(0) * (1 - factor)
        soft = mixup_target(labels, self.num_classes, factor, self.label_smoothing)
        return images, soft


def mixer(augment: AugmentSection, num_classes: int) -> Mixer | None:
    """The recipe's mixup and cutmix, or None where both are off."""
    return Mixer(augment, num_classes) if augment.mix_prob and (augment.mixup or augment.cutmix) else None


def allow_no_bits(changes: Any) -> None:
    """Let timm's posterize keep 0 bits, which RandAugment draws now and then and Pillow 13 refuses: black, as before.

    Args:
        changes: torchvision's Compose of timm's transforms; its operations are changed in place.
    """
    for change in changes.transforms:
        policies = getattr(change, "policy", None) or [getattr(change, "ops", ())]
        for operation in (operation for policy in policies for operation in policy):
            if operation.name.startswith("Posterize"):
                operation.aug_fn = _posterize


def _posterize(picture: Image.Image, bits_to_keep: int, **_: Any) -> Image.Image:
    if bits_to_keep >= 8:
        return picture
    return ImageOps.posterize(picture, bits_to_keep) if bits_to_keep >= 1 else Image.new(picture.mode, picture.size)


def _pixels(picture: Image.Image) -> Pixels:
    pixels = np.asarray(picture)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _padded_crop(pixels: Pixels, padding: int) -> Pixels:
    """A random (H, W) window of the image with a black border; without building the bordered image."""
    if not padding:
        return pixels
    height, width, _ = pixels.shape
    down = random.randint(-padding, padding)
    right = random.randint(-padding, padding)
    out = np.zeros_like(pixels)
    # The window moved by (down, right) shows the part of the image that both share.
    out[max(0, -down) : height - max(0, down), max(0, -right) : width - max(0, right)] = pixels[
        max(0, down) : height + min(0, down), max(0, right) : width + min(0, right)
    ]
    return out
