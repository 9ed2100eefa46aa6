"""Real odd image files and small data sets for the data tests."""

import io
from pathlib import Path

import numpy as np
from PIL import Image


def photo(height: int = 40, width: int = 60, seed: int = 0) -> Image.Image:
    """A smooth colour picture with noise on it, different for each seed."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    base = np.stack([rows * 255 / height, columns * 255 / width, (rows + columns) % 256], axis=2)
    return Image.fromarray(np.clip(base + generator.normal(0, 20, base.shape), 0, 255).astype(np.uint8))


def folder_dataset(root: Path, counts: dict[str, int], size: int = 12) -> Path:
    """Class folders with that many PNG photos each."""
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for index in range(count):
            photo(size, size, seed=1000 * number + index).save(root / name / f"{index:03d}.png")
    return root


def truncated_jpeg() -> bytes:
    """The first two thirds of a JPEG."""
    out = io.BytesIO()
    photo(200, 200).save(out, format="JPEG")
    return out.getvalue()[: len(out.getvalue()) * 2 // 3]


def odd_images(folder: Path) -> dict[str, Path]:
    """Files that must work: 16-bit, palette, CMYK, RGBA and others, by name."""
    folder.mkdir(parents=True, exist_ok=True)
    picture = photo()
    gray = np.asarray(picture.convert("L"))
    made = {
        "sixteen_bit.png": Image.fromarray(gray.astype(np.uint16) * 257),
        "sixteen_bit.tif": Image.fromarray(gray.astype(np.uint16) * 257),
        "palette.png": picture.quantize(64),
        "palette.gif": picture.quantize(64),
        "one_bit.png": picture.convert("1"),
        "gray.png": picture.convert("L"),
        "cmyk.jpg": picture.convert("CMYK"),
        "rgb.jpg": picture,
        "rgb.webp": picture,
        "rgb.bmp": picture,
        "lab.tif": picture.convert("LAB"),
    }
    rgba = picture.convert("RGBA")
    rgba.putalpha(Image.new("L", picture.size, 128))
    made["rgba.png"] = rgba
    la = picture.convert("LA")
    la.putalpha(Image.new("L", picture.size, 0))
    made["la.png"] = la
    for name, image in made.items():
        image.save(folder / name)
    return {name: folder / name for name in made}
