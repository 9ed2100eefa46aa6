"""Common corruptions: on real pictures, large and tiny."""

from importlib import resources
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from cmtvision.data.corruptions import CORRUPTIONS, SEVERITIES, corrupted
from cmtvision.data.idx import read_idx


@pytest.fixture(scope="module")
def pictures():
    photos = read_idx(
        resources.files("cmtvision.data") / "fashion_mnist" / "t10k-images-idx3-ubyte.gz", (10_000, 28, 28)
    )[:3]
    large = np.repeat(np.asarray(Image.fromarray(photos[0]).resize((120, 96)))[..., None], 3, axis=2)
    return [*photos[..., None], large]


@pytest.mark.parametrize("corruption", CORRUPTIONS, ids=lambda one: one.name)
def test_a_corruption_harms_more_with_severity_and_repeats_itself(corruption, pictures):
    harm = []
    for severity in SEVERITIES:
        changes = []
        for pixels in pictures:
            once, again = (corrupted(pixels, corruption, severity, np.random.default_rng(5)) for _ in range(2))
            assert (once.shape, once.dtype) == (pixels.shape, np.uint8)
            assert (once == again).all()
            changes.append(np.abs(once.astype(int) - pixels.astype(int)).mean())
        harm.append(float(np.mean(changes)))
    assert harm[0] > 0
    assert harm[-1] > 1.15 * harm[0]
    assert all(after > 0.9 * before for before, after in pairwise(harm))


def test_there_are_fifteen_in_four_families_and_odd_input_is_refused(pictures):
    assert len({one.name for one in CORRUPTIONS}) == 15
    assert {one.family for one in CORRUPTIONS} == {"noise", "blur", "weather", "digital"}
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="shape"):
        corrupted(np.zeros((4, 4), np.uint8), CORRUPTIONS[0], 1, rng)
    with pytest.raises(ValueError, match="severity"):
        corrupted(pictures[0], CORRUPTIONS[0], 6, rng)
    for one in CORRUPTIONS:  # a single pixel is a picture too
        assert corrupted(np.full((1, 1, 3), 7, np.uint8), one, 5, rng).shape == (1, 1, 3)
