"""Compact descriptors for finding copies: the 64-bit perceptual hash, and shape gradients of an image and its crops.

- **Perceptual hash**: the signs of the 64 lowest frequencies (DCT, without the mean) of the gray 32 x 32 thumbnail.
  Resizing and re-encoding change a few bits.
- **Shape gradients** (HOG): gradients in 8 directions, collected on an 8 x 8 grid, reduced to 64 numbers by PCA. They
  tell images apart that share their low frequencies.
- **Virtual crops**: a cropped copy is found because each image is also looked up as five crops of itself (93.5% of each
  side), which are closer to the copy than the image itself is.

Legend: B images, 32 x 32 px.
"""

import math

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.fft import dctn

WIDTH = 64
_DIRECTIONS = 8
_SCALE = 0.935
_OFFSET = 0.7 * (1 - _SCALE)
CROPS: tuple[tuple[float, float, float, float], ...] = (
    (1.0, 1.0, 0.0, 0.0),
    (_SCALE, _SCALE, 0.0, 0.0),
    *((_SCALE, _SCALE, x * _OFFSET, y * _OFFSET) for x in (-1, 1) for y in (-1, 1)),
)
"""Views of an image as (scale x, scale y, shift x, shift y), in halves of its side: first itself, then the crops."""
_PCA_IMAGES = 8_000


def perceptual_hash(gray: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Hashes (B, 64) of gray thumbnails (B, 32, 32), as -1 and 1: their product is 64 - 2 * (bits that differ)."""
    low = dctn(gray, axes=(1, 2), norm="ortho")[:, :8, :8].reshape(len(gray), 64)
    low[:, 0] = 0.0
    middle = np.median(low, axis=1, keepdims=True)
    return np.where(low > middle, np.float32(1), np.float32(-1))


def blurred(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """Images (B, C, H, W) under a Gaussian of that many pixels."""
    radius = int(3 * sigma + 0.5)
    kernel = torch.exp(-(torch.arange(-radius, radius + 1) ** 2) / (2 * sigma * sigma))
    kernel = kernel / kernel.sum()
    channels = images.shape[1]
    row = kernel.view(1, 1, 1, -1).repeat(channels, 1, 1, 1)
    wide = F.conv2d(F.pad(images, (radius, radius, 0, 0), mode="replicate"), row, groups=channels)
    column = row.transpose(2, 3)
    return F.conv2d(F.pad(wide, (0, 0, radius, radius), mode="replicate"), column, groups=channels)


def view(images: torch.Tensor, crop: tuple[float, float, float, float]) -> torch.Tensor:
    """One of ``CROPS`` of images (B, C, H, W), enlarged to their size."""
    if crop == CROPS[0]:
        return images
    scale_x, scale_y, shift_x, shift_y = crop
    matrix = torch.tensor([[scale_x, 0.0, shift_x], [0.0, scale_y, shift_y]]).expand(len(images), 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bicubic", padding_mode="border", align_corners=False)


def gradients(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Central differences in x and y, each (B, C, H, W)."""
    wide = F.pad(images, (1, 1, 0, 0), mode="replicate")
    tall = F.pad(images, (0, 0, 1, 1), mode="replicate")
    return (wide[..., 2:] - wide[..., :-2]) / 2, (tall[..., 2:, :] - tall[..., :-2, :]) / 2


def shape_gradients(gray: torch.Tensor) -> torch.Tensor:
    """HOG (B, 512) of gray thumbnails (B, 1, 32, 32)."""
    across, down = gradients(gray)
    strength = (across.square() + down.square()).sqrt()
    direction = (torch.atan2(down, across) / (2 * math.pi) * _DIRECTIONS) % _DIRECTIONS
    bins = torch.arange(_DIRECTIONS).view(1, -1, 1, 1)
    off = (direction - bins).abs()
    share = F.relu(1 - torch.minimum(off, _DIRECTIONS - off))  # of the two nearest directions
    return blurred(strength * share, 1.5)[:, :, 2::4, 2::4].flatten(1).clamp(min=0).sqrt()


class ShapeSpace:
    """Shape gradients as ``WIDTH`` numbers, of length 1: centred and turned by PCA of a sample of the same images."""

    def __init__(self, gray: torch.Tensor, seed: int = 0) -> None:
        chosen = torch.randperm(len(gray), generator=torch.Generator().manual_seed(seed))[:_PCA_IMAGES]
        sample = torch.cat([shape_gradients(part) for part in gray[chosen].split(500)])
        self.mean = sample.mean(0)
        centred = F.normalize(sample - self.mean, dim=1)
        _, vectors = torch.linalg.eigh(centred.T @ centred)
        self.axes = vectors[:, -WIDTH:]

    def __call__(self, gray: torch.Tensor) -> torch.Tensor:
        """Descriptors (B, 64) of gray thumbnails (B, 1, 32, 32)."""
        return F.normalize(F.normalize(shape_gradients(gray) - self.mean, dim=1) @ self.axes, dim=1)
