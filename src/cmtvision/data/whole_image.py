"""Preparing an image whole for detection and segmentation: resized to a short or long side, normalised, not cropped.

The filter, the arithmetic and its JSON block are those of ``Preprocess``; only the geometry differs, since what is near
the edge counts too. NumPy and Pillow only. H W height and width in pixels, C channels, N boxes.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from cmtvision.data.decode import MAX_BYTES, MAX_PIXELS, ImageSource, open_image
from cmtvision.data.preprocess import MAX_EDGE, Preprocess
from cmtvision.errors import DataError


class Prepared(NamedTuple):
    """An image as the network's input, and how to get back.

    Attributes:
        image: (C, H, W) float32.
        scale: (x, y): pixels of the input for each pixel of the original.
        original: (height, width) of the upright original.
    """

    image: npt.NDArray[np.float32]
    scale: tuple[float, float]
    original: tuple[int, int]


@dataclass(frozen=True)
class WholeImage:
    """The steps from an image to an input of detection and segmentation.

    Args:
        preprocess: filter, mean, std and channels (1 or 3); its size and crop are not used.
        short_side: the pixels that the shorter side gets; None keeps the size.
        longest: the pixels that the longer side has at most; the shorter one is then shorter than ``short_side``.
        fit: (height, width) that the image has to fit into, of a network of one size; None for any.

    Raises:
        DataError: at construction, sides that are no edge of an image, or another number of channels.
    """

    preprocess: Preprocess
    short_side: int | None = None
    longest: int | None = None
    fit: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name in ("short_side", "longest"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= MAX_EDGE:
                raise DataError(f"{name}: got {value}, expected 1 to {MAX_EDGE:,} pixels")
        if self.preprocess.channels not in (1, 3):
            raise DataError(f"channels: got {self.preprocess.channels}, expected 1 or 3 for detection and segmentation")

    def __call__(self, source: ImageSource, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES) -> Prepared:
        """An image (whatever ``open_image`` takes) as the network's input.

        Raises:
            DataError: what ``open_image`` refuses.
        """
        picture = self.opened(source, max_pixels, max_bytes)
        height, width = self.resized(picture.height, picture.width)
        scale = (width / picture.width, height / picture.height)
        original = (picture.height, picture.width)
        if (width, height) != picture.size:
            picture = picture.resize((width, height), Image.Resampling[self.preprocess.interpolation.upper()])
        pixels = np.asarray(picture)
        return Prepared(self.preprocess.finish(pixels if pixels.ndim == 3 else pixels[:, :, None]), scale, original)

    def opened(self, source: ImageSource, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES) -> Image.Image:
        """The upright image, gray for a network of one channel; a gray image of an RGB network stays gray."""
        picture = open_image(source, max_pixels, max_bytes)
        return picture.convert("L") if self.preprocess.channels == 1 and picture.mode != "L" else picture

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) in pixels after the resize, of an image of the given size."""
        factor = 1.0 if self.short_side is None else self.short_side / min(height, width)
        if self.longest is not None:
            factor = min(factor, self.longest / max(height, width))
        if self.fit is not None:
            factor = min(factor, self.fit[0] / height, self.fit[1] / width)
        return max(1, round(height * factor)), max(1, round(width * factor))


def original_boxes(
    boxes: npt.NDArray[np.floating], scale: tuple[float, float], original: tuple[int, int]
) -> npt.NDArray[np.float32]:
    """Boxes (N, 4) x, y, x, y of the network's input as boxes of the original image, cut at its edges."""
    height, width = original
    back = np.asarray(boxes, dtype=np.float32) / np.array([*scale, *scale], dtype=np.float32)
    return np.clip(back, 0, np.array([width, height, width, height], dtype=np.float32))
