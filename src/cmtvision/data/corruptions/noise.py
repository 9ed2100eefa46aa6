"""Noise of sensors: of the electronics (Gaussian), of few photons (shot), of dead pixels (impulse)."""

import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.float32]


def gaussian_noise(picture: Picture, severity: int, rng: np.random.Generator) -> Picture:
    """Normal noise on every value."""
    deviation = (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1]
    return picture + rng.normal(0, deviation, picture.shape).astype(np.float32)


def shot_noise(picture: Picture, severity: int, rng: np.random.Generator) -> Picture:
    """Poisson noise: so many photons make white."""
    photons = (60, 25, 12, 5, 3)[severity - 1]
    return (rng.poisson(picture * photons) / photons).astype(np.float32)


def impulse_noise(picture: Picture, severity: int, rng: np.random.Generator) -> Picture:
    """Some values are all dark or all bright."""
    amount = (0.03, 0.06, 0.09, 0.17, 0.27)[severity - 1]
    drawn = rng.random(picture.shape)
    out = picture.copy()
    out[drawn < amount / 2] = 0
    out[drawn > 1 - amount / 2] = 1
    return out
