"""Weather and light: snow, frost, fog, and too much light. What falls or grows is made of noise."""

import math

import numpy as np
import numpy.typing as npt

from cmtvision.data.corruptions.blur import filtered, line, scale_of

Picture = npt.NDArray[np.float32]
Plane = npt.NDArray[np.float32]
_GRAY = np.array([0.299, 0.587, 0.114], np.float32)


def snow(picture: Picture, severity: int, rng: np.random.Generator) -> Picture:
    """Flakes blown in one direction before a paler picture."""
    from scipy.ndimage import gaussian_filter

    cover, pale, length = ((0.02, 0.1, 8), (0.04, 0.15, 11), (0.07, 0.2, 13), (0.1, 0.25, 15), (0.14, 0.3, 18))[
        severity - 1
    ]
    size, scale = picture.shape[:2], scale_of(picture)
    radius = max(0.4, 1.5 * scale)  # of a flake
    fallen = rng.random(size) < cover / (2 * math.pi * radius**2)
    flakes = 2 * math.pi * radius**2 * gaussian_filter(fallen.astype(np.float32), radius)
    blown = filtered(flakes, line(max(1.0, length * scale), rng.uniform(-3 * math.pi / 4, -math.pi / 4)))
    gray = (picture @ _GRAY)[..., None]
    paler = (1 - pale) * picture + pale * np.maximum(picture, 0.5 + 0.5 * gray)
    return np.asarray(paler + np.minimum(2.5 * blown, 1)[..., None], np.float32)


def frost(picture: Picture, severity: int, rng: np.random.Generator) -> Picture:
    """Bright crystals with sharp ridges over a darker picture."""
    kept, ice = ((0.95, 0.4), (0.85, 0.55), (0.75, 0.7), (0.65, 0.8), (0.55, 0.9))[severity - 1]
    ridges = 1 - np.abs(2 * clouds(picture.shape[:2], 2.2, rng) - 1)  # a ridge where the noise crosses its middle
    cover = clouds(picture.shape[:2], 2.6, rng)
    bluish = np.array([0.88, 0.95, 1.0], np.float32)
    return np.asarray(kept * picture + ice * (ridges**4 * (0.3 + 0.7 * cover))[..., None] * bluish, np.float32)


def fog(picture: Picture, severity: int, rng: np.random.Generator) -> Picture:
    """Uneven pale gray in front of everything."""
    amount = (0.3, 0.42, 0.54, 0.66, 0.78)[severity - 1]
    uneven = clouds(picture.shape[:2], 2.8, rng)[..., None]
    thick = amount * (0.6 + 0.4 * uneven)
    return np.asarray((1 - thick) * picture + thick * (0.7 + 0.2 * uneven), np.float32)


def brightness(picture: Picture, severity: int, rng: np.random.Generator) -> Picture:
    """More light: the value of HSV is raised, hue and saturation stay."""
    more = (0.1, 0.2, 0.3, 0.4, 0.5)[severity - 1]
    value = picture.max(axis=2, keepdims=True)
    raised = np.minimum(value + more, 1)
    # black has no hue: it becomes gray
    return np.asarray(np.where(value > 0, picture * (raised / np.maximum(value, 1e-6)), raised), np.float32)


def clouds(size: tuple[int, int], power: float, rng: np.random.Generator) -> Plane:
    """Noise whose amplitude falls with frequency, as f ** (-power / 2), within 0..1."""
    frequency = np.hypot(np.fft.fftfreq(size[0])[:, None], np.fft.rfftfreq(size[1])[None])
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.normal(size=size)) * frequency ** (-power / 2)
    plane = np.fft.irfft2(spectrum, size)
    plane -= plane.min()
    return np.asarray(plane / max(float(plane.max()), 1e-12), np.float32)
