"""Common corruptions: what cameras, weather and software do to pictures, in fifteen kinds at five severities.

The families are those of ImageNet-C (Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations, ICLR 2019). The code is our own, in NumPy, SciPy and Pillow: fog, frost and snow are made
of noise, lengths are shares of the picture's side, so that small pictures are harmed as much as large ones. So results
compare between models here, and not with figures published for ImageNet-C.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cmtvision.data.corruptions.blur import defocus_blur, glass_blur, motion_blur, zoom_blur
from cmtvision.data.corruptions.digital import contrast, elastic, jpeg, pixelate
from cmtvision.data.corruptions.noise import gaussian_noise, impulse_noise, shot_noise
from cmtvision.data.corruptions.weather import brightness, fog, frost, snow

Picture = npt.NDArray[np.float32]
SEVERITIES = (1, 2, 3, 4, 5)


class Corruption(NamedTuple):
    """One kind: its name, its family, and picture (H, W, 3) within 0..1, severity 1 to 5, generator -> picture."""

    name: str
    family: str
    apply: Callable[[Picture, int, np.random.Generator], Picture]


CORRUPTIONS = (
    Corruption("Gaussian noise", "noise", gaussian_noise),
    Corruption("Shot noise", "noise", shot_noise),
    Corruption("Impulse noise", "noise", impulse_noise),
    Corruption("Defocus blur", "blur", defocus_blur),
    Corruption("Glass blur", "blur", glass_blur),
    Corruption("Motion blur", "blur", motion_blur),
    Corruption("Zoom blur", "blur", zoom_blur),
    Corruption("Snow", "weather", snow),
    Corruption("Frost", "weather", frost),
    Corruption("Fog", "weather", fog),
    Corruption("Brightness", "weather", brightness),
    Corruption("Contrast", "digital", contrast),
    Corruption("Elastic", "digital", elastic),
    Corruption("Pixelate", "digital", pixelate),
    Corruption("JPEG", "digital", jpeg),
)


def corrupted(
    pixels: npt.NDArray[np.uint8], corruption: Corruption, severity: int, rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """A picture with a corruption, of the same shape; the same generator state gives the same picture.

    Args:
        pixels: (H, W, 3) RGB, or (H, W, 1) gray.
        corruption: one of CORRUPTIONS.
        severity: 1 to 5.
        rng: draws whatever is random.

    Raises:
        ValueError: pixels of another shape, or another severity.
    """
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3):
        raise ValueError(f"pixels of shape {pixels.shape}, expected (H, W, 3) or (H, W, 1)")
    if severity not in SEVERITIES:
        raise ValueError(f"severity {severity}, expected 1 to 5")
    picture = np.broadcast_to(pixels, (*pixels.shape[:2], 3)).astype(np.float32)
    changed = corruption.apply(np.asarray(picture / 255, np.float32), severity, rng)
    out = np.round(255 * np.clip(changed, 0, 1)).astype(np.uint8)
    return out if pixels.shape[2] == 3 else np.round(out.mean(axis=2, keepdims=True)).astype(np.uint8)
