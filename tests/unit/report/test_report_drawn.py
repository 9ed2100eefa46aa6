"""Masks that are written hold class numbers that a reader of masks finds again."""

import numpy as np
import pytest
from PIL import Image

from cmtvision.data.annotations.mask_files import read_mask
from cmtvision.report.drawn import as_mask


@pytest.mark.parametrize(("classes", "mode"), [(2, "P"), (256, "P"), (257, "I;16"), (1_000, "I;16")])
def test_a_mask_holds_the_class_numbers(tmp_path, classes, mode):
    numbers = np.arange(30 * 40).reshape(30, 40) % classes
    names = ["background", *map(str, range(1, classes))]
    as_mask(numbers, names).save(tmp_path / "mask.png")
    assert np.array_equal(read_mask(tmp_path / "mask.png"), numbers)
    with Image.open(tmp_path / "mask.png") as mask:
        assert mask.mode == mode
        if mode == "P":
            assert mask.convert("RGB").getpixel((0, 0)) == (0, 0, 0)
            assert mask.convert("RGB").getpixel((1, 0)) != (0, 0, 0)
    assert (tmp_path / "mask.png").read_bytes()[24] == (8 if mode == "P" else 16)  # bits of a pixel
