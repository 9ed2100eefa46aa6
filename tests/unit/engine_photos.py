"""A folder of small real photos for engine tests: shapes that a network learns in seconds."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("cross", "disc", "stripes")


def write_photos(root: Path, per_class: int = 16, seed: int = 0) -> Path:
    """root/<class>/NN.png, 16 x 16 pixels, noisy and shifted."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:16, :16]
    for name in CLASSES:
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            y, x = rng.integers(5, 11, 2)
            masks = {
                "cross": (abs(rows - y) < 2) | (abs(columns - x) < 2),
                "disc": (rows - y) ** 2 + (columns - x) ** 2 < 16,
                "stripes": (columns + x) % 4 < 2,
            }
            pixels = masks[name] * 200 + rng.integers(0, 50, (16, 16))
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i:02}.png")
    return root


TINY = (
    "train.batch_size=8",
    "schedule.epochs=2",
    "schedule.warmup_epochs=0.5",
    "data.val_fraction=0.25",
    "data.split_seed=243",  # which happens to hold out exactly 4 of each 16
)
