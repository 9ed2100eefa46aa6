"""Arrays as small pictures: PNGs in data URIs, in colour maps whose steps look equally large.

Both maps are steps of equal lightness in OKLab (B. Ottosson, 2020): one for sizes, from dark to light, and one for
signed values, from blue through a light gray, which is zero, to orange. Positions with similar features get similar
colours from ``feature_colours``.
"""

import base64
import io
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]
Values = npt.NDArray[np.float32]

EXACT = 128
"""Pixels on a side up to which a photo is kept as it is, since each pixel of it can be seen."""
_TO_LMS = np.array(
    [
        [1.0, 0.3963377774, 0.2158037573],
        [1.0, -0.1055613458, -0.0638541728],
        [1.0, -0.0894841775, -1.2914855480],
    ]
)
_TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)
_SIZES = ((0.24, 0.01, -0.07), (0.45, -0.03, -0.09), (0.68, -0.08, 0.02), (0.94, -0.02, 0.11))
_BLUE, _ZERO, _ORANGE = (0.50, -0.045, -0.125), (0.95, 0.0, 0.0), (0.50, 0.075, 0.105)


def oklab_to_rgb(lab: npt.NDArray[np.floating]) -> Pixels:
    """OKLab colours (..., 3) as 8-bit sRGB; what sRGB cannot show is clipped."""
    linear = (lab @ _TO_LMS.T) ** 3 @ _TO_RGB.T
    linear = linear.clip(0, 1)
    curved = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    rounded: Pixels = np.rint(255 * curved).astype(np.uint8)
    return rounded


@cache
def sequential_map() -> Pixels:
    """256 colours for sizes, dark to light, (256, 3)."""
    return _between(_SIZES)


@cache
def diverging_map() -> Pixels:
    """256 colours for signed values: blue below zero, orange above, (256, 3)."""
    return _between((_BLUE, _ZERO, _ORANGE))


def _between(stops: tuple[tuple[float, float, float], ...]) -> Pixels:
    """256 colours between stops that lie at equal steps of lightness, or on both sides of a middle."""
    corners = np.array(stops)
    lightness = np.abs(np.diff(corners[:, 0]))
    places = np.concatenate([[0.0], np.cumsum(lightness) / lightness.sum()])
    wanted = np.linspace(0, 1, 256)
    return oklab_to_rgb(np.stack([np.interp(wanted, places, corners[:, axis]) for axis in range(3)], axis=1))


def sizes_picture(values: Values, low: float | None = None, high: float | None = None) -> Pixels:
    """A map (H, W) in the colours for sizes, stretched from low to high; by default from its least to its largest."""
    low = float(values.min()) if low is None else low
    high = float(values.max()) if high is None else high
    return sequential_map()[_levels((values - low) / max(high - low, 1e-12))]


def signed_picture(values: Values, limit: float) -> Pixels:
    """A map (H, W) in the colours for signed values; ``limit`` is the size at which they are strongest."""
    return diverging_map()[_levels(0.5 + 0.5 * values / max(limit, 1e-12))]


def _levels(shares: Values) -> npt.NDArray[np.intp]:
    levels: npt.NDArray[np.intp] = np.rint(255 * shares.clip(0, 1)).astype(np.intp)
    return levels


def feature_colours(features: Values) -> Pixels:
    """A map of features (C, H, W) as one picture (H, W, 3): its three main components as lightness and two hues.

    They are the principal components over the positions, each stretched to two standard deviations.
    """
    channels, height, width = features.shape
    centred = features.reshape(channels, -1).T.astype(np.float64)  # (N, C)
    centred = centred - centred.mean(axis=0)
    left, strength, _ = np.linalg.svd(centred, full_matrices=False)
    scores = np.zeros((height * width, 3))
    for axis in range(min(3, len(strength))):
        column = left[:, axis] * strength[axis]
        if column.std() > 1e-9:
            column = column * np.sign(column[np.abs(column).argmax()])  # a component's sign is arbitrary
            scores[:, axis] = (column / (2 * column.std())).clip(-1, 1)
    lab = np.stack([0.62 + 0.26 * scores[:, 0], 0.11 * scores[:, 1], 0.11 * scores[:, 2]], axis=1)
    return oklab_to_rgb(lab).reshape(height, width, 3)


def png(pixels: Pixels) -> str:
    """Pixels (H, W) or (H, W, 3) as the data URI of a PNG."""
    return _uri(Image.fromarray(np.ascontiguousarray(pixels)), "png")


def thumbnail(photo: Image.Image, side: int) -> str:
    """A photo with at most ``side`` pixels on its longer side as a data URI; small ones stay exact."""
    small = photo.copy()
    small.thumbnail((side, side))
    return _uri(small, "png" if max(small.size) <= EXACT else "jpeg")


def _uri(picture: Image.Image, kind: str) -> str:
    out = io.BytesIO()
    picture.save(out, format=kind, **({"quality": 88} if kind == "jpeg" else {"optimize": True}))
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"
