"""What software and screens do: little contrast, stretching, large pixels, strong compression."""

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

Picture = npt.NDArray[np.float32]


def contrast(picture: Picture, severity: int, rng: np.random.Generator) -> Picture:
    """Every value nearer to the mean of its channel."""
    kept = (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1]
    mean = picture.mean(axis=(0, 1), keepdims=True)
    return np.asarray((picture - mean) * kept + mean, np.float32)


def elastic(picture: Picture, severity: int, rng: np.random.Generator) -> Picture:
    """The picture stretched unevenly, as if on rubber."""
    from scipy.ndimage import gaussian_filter, map_coordinates

    most = (0.012, 0.018, 0.026, 0.036, 0.048)[severity - 1]  # of the side
    height, width = picture.shape[:2]
    side = min(height, width)
    shifts = []
    for _ in range(2):
        field = gaussian_filter(rng.uniform(-1, 1, (height, width)), 0.04 * side, mode="reflect")
        shifts.append(field / max(float(np.abs(field).max()), 1e-12) * most * side)
    y, x = np.mgrid[:height, :width]
    places = [y + shifts[0], x + shifts[1]]
    planes = [map_coordinates(picture[..., c], places, order=1, mode="reflect") for c in range(picture.shape[2])]
    return np.asarray(np.stack(planes, axis=2), np.float32)


def pixelate(picture: Picture, severity: int, rng: np.random.Generator) -> Picture:
    """Fewer pixels, drawn as squares."""
    kept = (0.6, 0.5, 0.4, 0.3, 0.25)[severity - 1]
    height, width = picture.shape[:2]
    small = _image(picture).resize((max(1, int(width * kept)), max(1, int(height * kept))), Image.Resampling.BOX)
    return _pixels(small.resize((width, height), Image.Resampling.NEAREST))


def jpeg(picture: Picture, severity: int, rng: np.random.Generator) -> Picture:
    """Compressed to low quality."""
    out = io.BytesIO()
    _image(picture).save(out, "JPEG", quality=(25, 18, 15, 10, 7)[severity - 1])
    with Image.open(out) as opened:
        return _pixels(opened.convert("RGB"))


def _image(picture: Picture) -> Image.Image:
    return Image.fromarray(np.round(255 * np.clip(picture, 0, 1)).astype(np.uint8))


def _pixels(image: Image.Image) -> Picture:
    return np.asarray(np.asarray(image, np.float32) / 255, np.float32)
