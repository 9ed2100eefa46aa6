"""The preprocess contract: an image becomes the network's input, by one implementation everywhere.

Resize (Pillow, antialiased) so that the image covers size / crop_pct, crop the centre, scale to 0..1, normalise. NumPy
and Pillow only, bit-equal to timm's evaluation transform (tests/unit/test_data_preprocess.py); training's evaluation,
prediction and every exported file use this and its JSON block.

H W height and width in pixels, C channels.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from cmtvision_preprocess.decode import MAX_PIXELS, ImageSource, as_array, is_tensor, open_image, to_uint8
from cmtvision_preprocess.errors import DataError

Interpolation = Literal["bicubic", "bilinear", "nearest", "box", "hamming", "lanczos"]
FORMAT_VERSION = 1
MAX_EDGE, MAX_CHANNELS, MIN_CROP_PCT = 8_192, 4_096, 0.01
"""No network has a larger input; a card that says so would fill the memory."""
_FILTER_REACH = 4  # pixels: Pillow's widest filter, enlarging, looks 3 to each side
_KEYS = {"format_version", "size", "crop_pct", "interpolation", "mean", "std", "channels"}


@dataclass(frozen=True)
class Preprocess:
    """What happens to an image before the network sees it.

    Args:
        size: (height, width) of the network's input in pixels.
        crop_pct: share of the resized image's edge that the centre crop keeps, in (0, 1].
        interpolation: Pillow's filter for the resize.
        mean, std: one value per channel, for pixels scaled to 0..1.
        channels: 1 (grayscale), 3 (RGB), or another count, which only arrays of (H, W, C) can have.

    Raises:
        DataError: values that make no sense, at construction; see ``__call__`` for images.
    """

    size: tuple[int, int]
    crop_pct: float
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels: int = 3

    def __post_init__(self) -> None:
        def refuse(key: str, expected: str) -> None:
            raise DataError(f"preprocess {key}: got {getattr(self, key)!r}, expected {expected}")

        if len(self.size) != 2 or min(self.size) < 1 or max(self.size) > MAX_EDGE:
            refuse("size", f"(height, width) in pixels, at most {MAX_EDGE:,} each")
        if not MIN_CROP_PCT <= self.crop_pct <= 1:
            refuse("crop_pct", f"a number from {MIN_CROP_PCT} to 1")
        if self.interpolation not in get_args(Interpolation):
            refuse("interpolation", f"one of {', '.join(get_args(Interpolation))}")
        if not 1 <= self.channels <= MAX_CHANNELS:
            refuse("channels", f"1 to {MAX_CHANNELS:,}")
        with np.errstate(over="ignore"):  # in the type that they are computed with
            mean, std = np.asarray(self.mean, dtype=np.float32), np.asarray(self.std, dtype=np.float32)
        if len(self.mean) != self.channels or not np.isfinite(mean).all():
            refuse("mean", f"{self.channels} numbers, one per channel")
        if len(self.std) != self.channels or not (np.isfinite(std) & (std > np.finfo(np.float32).tiny)).all():
            refuse("std", f"{self.channels} positive numbers, one per channel")

    @classmethod
    def from_timm(cls, data_config: Mapping[str, Any]) -> "Preprocess":
        """From the dict that ``timm.data.resolve_model_data_config(model)`` gives.

        A mean and std for another number of channels (a model built with another in_chans) are averaged for one
        channel and repeated in turn for more, which is how timm adapts the first convolution's weights.

        Raises:
            DataError: a crop mode other than 'center'.
        """
        crop_mode = data_config.get("crop_mode") or "center"
        if crop_mode != "center":
            raise DataError(f"preprocess crop_mode: got {crop_mode!r}, expected 'center', the only one supported")
        channels, height, width = data_config["input_size"]
        return cls(
            size=(int(height), int(width)),
            crop_pct=float(data_config["crop_pct"]),
            interpolation=str(data_config["interpolation"]),
            mean=_for_channels(data_config["mean"], channels),
            std=_for_channels(data_config["std"], channels),
            channels=int(channels),
        )

    @classmethod
    def from_dict(cls, block: Mapping[str, Any]) -> "Preprocess":
        """From the JSON block of ``to_dict``.

        Raises:
            DataError: missing or unknown keys, another format version, or values that make no sense.
        """
        if block.get("format_version") != FORMAT_VERSION:
            raise DataError(
                f"preprocess block: got format_version {block.get('format_version')!r}, expected {FORMAT_VERSION}; "
                "it was written by another version of cmtvision"
            )
        if set(block) != _KEYS:
            raise DataError(f"preprocess block: got keys {sorted(block)}, expected {sorted(_KEYS)}")
        try:
            height, width = (int(edge) for edge in block["size"])
            return cls(
                size=(height, width),
                crop_pct=float(block["crop_pct"]),
                interpolation=str(block["interpolation"]),
                mean=tuple(float(value) for value in block["mean"]),
                std=tuple(float(value) for value in block["std"]),
                channels=int(block["channels"]),
            )
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(f"preprocess block: {error}; expected what Preprocess.to_dict writes") from None

    def to_dict(self) -> dict[str, Any]:
        """The JSON block that an artefact carries; ``from_dict`` gives back an equal object."""
        return {
            "format_version": FORMAT_VERSION,
            "size": list(self.size),
            "crop_pct": self.crop_pct,
            "interpolation": self.interpolation,
            "mean": list(self.mean),
            "std": list(self.std),
            "channels": self.channels,
        }

    def __call__(self, image: ImageSource) -> npt.NDArray[np.float32]:
        """An image (whatever ``open_image`` takes) as the network's input, (C, H, W) float32.

        Raises:
            DataError: what ``open_image`` refuses.
        """
        return self.finish(self.prepare(image))

    def prepare(self, image: ImageSource) -> npt.NDArray[np.uint8]:
        """The geometry: resized and centre-cropped pixels, (H, W, C); C is 1 for a gray image of an RGB network."""
        if self.channels not in (1, 3):
            return self._prepare_planes(image)
        picture = open_image(image)
        if self.channels == 1 and picture.mode != "L":
            picture = picture.convert("L")
        # A gray image stays one plane: its three RGB planes would be equal, before and after the resize.
        pixels = np.asarray(self._resize_and_crop(picture))
        return pixels if pixels.ndim == 3 else pixels[:, :, None]  # (H, W, C)

    def finish(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """The arithmetic: pixels (H, W, C or 1) to (C, H, W) float32, scaled to 0..1 and normalised."""
        planes = pixels.shape[2]
        out = np.empty((self.channels, *pixels.shape[:2]), dtype=np.float32)
        for channel, table in enumerate(self._tables):
            np.take(table, pixels[:, :, channel if planes > 1 else 0], out=out[channel], mode="clip")
        return out  # (C, H, W)

    @cached_property
    def _tables(self) -> list[npt.NDArray[np.float32]]:
        """For each channel the 256 results of (v / 255 - mean) / std, each step rounded to float32 as timm does."""
        values = np.arange(256, dtype=np.float32) / np.float32(255)
        return [(values - np.float32(m)) / np.float32(s) for m, s in zip(self.mean, self.std, strict=True)]

    def _prepare_planes(self, image: ImageSource) -> npt.NDArray[np.uint8]:
        if is_tensor(image):
            image = as_array(image, (self.channels,))
        if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != self.channels:
            given = f"array of shape {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
            raise DataError(f"a {self.channels}-channel model: got {given}, expected an array (H, W, {self.channels})")
        pixels = to_uint8(image, "array")
        planes = [Image.fromarray(np.ascontiguousarray(pixels[:, :, channel])) for channel in range(self.channels)]
        return np.stack([np.asarray(self._resize_and_crop(plane)) for plane in planes], axis=2)

    def _resize_and_crop(self, picture: Image.Image) -> Image.Image:
        width, height = picture.size
        new_height, new_width = self.resized(height, width)
        if (new_height, new_width) != (height, width):
            filter_ = Image.Resampling[self.interpolation.upper()]
            if new_height * new_width > max(MAX_PIXELS, width * height):
                return self._crop_of_resized(picture, (new_height, new_width), filter_)
            picture = picture.resize((new_width, new_height), filter_)
        crop_height, crop_width = self.size
        if (new_height, new_width) == self.size:
            return picture
        # Where the image is smaller than the crop, torchvision first adds black with the odd pixel at the far side;
        # Pillow's crop adds the same black outside the image.
        top = _start(new_height, crop_height)
        left = _start(new_width, crop_width)
        return picture.crop((left, top, left + crop_width, top + crop_height))

    def _crop_of_resized(
        self, picture: Image.Image, new_size: tuple[int, int], filter_: Image.Resampling
    ) -> Image.Image:
        """The centre crop of a picture so long and thin that all of it, resized to (height, width), fills the memory.

        Only what the crop shows is resized: the same pixels, but for the rounding of places to float32.
        """
        starts, ends, cut_starts, cut_ends = [], [], [], []
        for edge, new_edge, crop in zip(reversed(picture.size), new_size, self.size, strict=True):
            start = _start(new_edge, crop) * edge / new_edge
            end = (_start(new_edge, crop) + crop) * edge / new_edge
            # what the filter looks at around the crop; cut first, so that places in it are small numbers and exact
            cut_starts.append(max(0, math.floor(start) - _FILTER_REACH))
            cut_ends.append(min(edge, math.ceil(end) + _FILTER_REACH))
            starts.append(max(0.0, start - cut_starts[-1]))
            ends.append(min(end, edge) - cut_starts[-1])
        part = picture.crop((cut_starts[1], cut_starts[0], cut_ends[1], cut_ends[0]))
        box = (starts[1], starts[0], ends[1], ends[0])
        return part.resize((self.size[1], self.size[0]), filter_, box=box)

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) in pixels after the resize and before the crop, of an image of the given size."""
        target_height, target_width = (math.floor(edge / self.crop_pct) for edge in self.size)
        if target_height == target_width:
            short, long = min(height, width), max(height, width)
            new_long = int(target_height * long / short)
            return (new_long, target_height) if width <= height else (target_height, new_long)
        ratio = min(height / target_height, width / target_width)
        return max(1, round(height / ratio)), max(1, round(width / ratio))


def _start(have: int, want: int) -> int:
    """Where the centre crop begins; negative where the image is the smaller one."""
    return round((have - want) / 2.0) if have >= want else -((want - have) // 2)


def _for_channels(values: Any, channels: int) -> tuple[float, ...]:
    numbers = [float(value) for value in values]
    if channels == 1:
        return (sum(numbers) / len(numbers),)
    return tuple(numbers[channel % len(numbers)] for channel in range(channels))
