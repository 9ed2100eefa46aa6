"""A folder of JPEG photos of an ordinary size, for benchmarks: mosaics of the bundled Fashion-MNIST photos."""

from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image

from cmtvision.data.idx import read_idx

WIDTH, HEIGHT, TILE = 500, 375, 84
QUALITY = 90


def write_photos(folder: Path, count: int) -> Path:
    """Write folder/CLASS/NNNN.jpg, RGB, 500 x 375, quality 90, in two classes; always the same."""
    bundled = resources.files("cmtvision.data") / "fashion_mnist"
    tiles = read_idx(bundled / "t10k-images-idx3-ubyte.gz", (10_000, 28, 28))
    generator = np.random.default_rng(0)
    rows, columns = -(-HEIGHT // TILE), -(-WIDTH // TILE)
    for number in range(count):
        picture = Image.new("RGB", (WIDTH, HEIGHT))
        for place in range(rows * columns):
            tile = Image.fromarray(tiles[generator.integers(len(tiles))]).resize((TILE, TILE), Image.Resampling.BICUBIC)
            tint = generator.uniform(0.4, 1.0, 3)  # colour, so that the two chroma planes are not empty
            pixels = np.asarray(tile)[:, :, None] * tint + generator.normal(0, 4, (TILE, TILE, 1))
            tinted = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            picture.paste(tinted, (place % columns * TILE, place // columns * TILE))
        file = folder / ("odd" if number % 2 else "even") / f"{number:04d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture.save(file, quality=QUALITY)
    return folder
