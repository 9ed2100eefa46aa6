"""Blur: out of focus, behind frosted glass, of a moving camera, and of a moving zoom."""

import math

import numpy as np
import numpy.typing as npt
from PIL import Image

Picture = npt.NDArray[np.float32]
REFERENCE = 224  # pixels; lengths below are for a picture of this side


def scale_of(picture: Picture) -> float:
    """How much larger the picture is than one of REFERENCE pixels."""
    return float(min(picture.shape[:2])) / REFERENCE


def defocus_blur(picture: Picture, severity: int, rng: np.random.Generator) -> Picture:
    """Every point becomes a disk."""
    radius = (3, 4, 6, 8, 10)[severity - 1] * scale_of(picture)
    reach = math.ceil(radius) + 1
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    # the disk's edge is soft, so that radii below a pixel differ
    return filtered(picture, np.clip(radius + 0.5 - np.hypot(x, y), 0, 1))


def glass_blur(picture: Picture, severity: int, rng: np.random.Generator) -> Picture:
    """Every pixel comes from a random place nearby, a few times over, between two light blurs."""
    from scipy.ndimage import gaussian_filter

    sigma, reach, times = ((0.7, 1, 1), (0.9, 1, 2), (1.0, 2, 2), (1.2, 3, 2), (1.5, 4, 3))[severity - 1]
    scale = scale_of(picture)
    spread = (sigma * scale, sigma * scale, 0)
    far = reach * scale + 0.5  # rounded below: a place is up to ``reach`` pixels away, in small pictures seldom any
    height, width = picture.shape[:2]
    out = gaussian_filter(picture, spread)
    y, x = np.mgrid[:height, :width]
    for _ in range(times):
        dy, dx = np.round(rng.uniform(-far, far, (2, height, width))).astype(int)
        out = out[np.clip(y + dy, 0, height - 1), np.clip(x + dx, 0, width - 1)]
    return np.asarray(gaussian_filter(out, spread), np.float32)


def motion_blur(picture: Picture, severity: int, rng: np.random.Generator) -> Picture:
    """Every point becomes a line, in a random direction."""
    length = (9, 14, 20, 27, 36)[severity - 1] * scale_of(picture)
    return filtered(picture, line(length, rng.uniform(-math.pi / 4, math.pi / 4)))


def zoom_blur(picture: Picture, severity: int, rng: np.random.Generator) -> Picture:
    """The mean of the picture and of larger and larger parts from its middle."""
    most = (1.11, 1.16, 1.21, 1.26, 1.33)[severity - 1]
    height, width = picture.shape[:2]
    factors = np.linspace(1, most, 11)
    image = Image.fromarray(np.round(255 * picture).astype(np.uint8))
    total = np.zeros_like(picture)
    for factor in factors.tolist():
        h, w = height / factor, width / factor
        box = ((width - w) / 2, (height - h) / 2, (width + w) / 2, (height + h) / 2)
        total += np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, box=box), np.float32) / 255
    return np.asarray(total / len(factors), np.float32)


def line(length: float, angle: float) -> npt.NDArray[np.float64]:
    """A kernel of a line of so many pixels through its middle, drawn softly."""
    reach = math.ceil(length / 2) + 1
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    for step in np.linspace(-length / 2, length / 2, 4 * reach + 1).tolist():
        y, x = reach + step * math.sin(angle), reach + step * math.cos(angle)
        top, left = math.floor(y), math.floor(x)
        down, right = y - top, x - left
        for row, share in ((top, 1 - down), (top + 1, down)):
            kernel[row, left] += share * (1 - right)
            kernel[row, left + 1] += share * right
    return kernel


def filtered(picture: Picture, kernel: npt.NDArray[np.float64]) -> Picture:
    """A picture (H, W, 3) or plane (H, W) convolved with a kernel whose sum is made 1; its border is mirrored."""
    from scipy.signal import fftconvolve

    kernel = kernel / kernel.sum()
    up, left = (side // 2 for side in kernel.shape)
    around = [(up, up), (left, left), *([(0, 0)] * (picture.ndim - 2))]
    wide = np.pad(picture, around, mode="symmetric")
    shaped = kernel.reshape(*kernel.shape, *([1] * (picture.ndim - 2)))
    return np.asarray(fftconvolve(wide, shaped, mode="valid", axes=(0, 1)), np.float32)
