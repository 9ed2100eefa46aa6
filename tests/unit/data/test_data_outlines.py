import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from pycocotools import mask as pycoco

from cmtvision.data.annotations.orientation import turn_needed, turned_box, turned_mask, upright_size
from cmtvision.data.annotations.outlines import (
    Outline,
    checked_counts,
    counts_from_text,
    counts_to_text,
    decode_counts,
    draw_polygon,
    encode_counts,
    mask_box,
)

MASKS = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1)).map(
    lambda drawn: np.random.default_rng(drawn[2]).random(drawn[:2]) < np.random.default_rng(drawn[2] + 1).random()
)


@given(MASKS)
def test_run_lengths_are_those_of_pycocotools(mask):
    theirs = pycoco.encode(np.asfortranarray(mask.astype(np.uint8)))
    counts = encode_counts(mask)
    assert counts_to_text(counts) == theirs["counts"].decode()
    np.testing.assert_array_equal(counts_from_text(theirs["counts"].decode()), counts)
    np.testing.assert_array_equal(decode_counts(checked_counts(counts, *mask.shape), *mask.shape), mask)
    outline = Outline(*mask.shape, counts=counts)
    assert outline.area() == pycoco.area(theirs)
    if mask.any():
        x, y, width, height = pycoco.toBbox(theirs)
        assert outline.box() == mask_box(mask) == (x, y, x + width, y + height)


def test_long_runs_keep_their_text():
    counts = np.array([70_000, 1, 123_456, 99_999, 31, 2_000_000, 16, 15], dtype=np.int64)
    size = [int(counts.sum()), 1]
    theirs = pycoco.frPyObjects({"size": size, "counts": counts.tolist()}, *size)
    assert counts_to_text(counts) == theirs["counts"].decode()
    np.testing.assert_array_equal(counts_from_text(theirs["counts"].decode()), counts)


@pytest.mark.parametrize("text", ["", "P", "0é", "~~", "o" * 8 + "0", "\n"])
def test_text_that_is_no_run_lengths_is_refused(text):
    with pytest.raises(ValueError, match="run"):
        counts_from_text(text)


@pytest.mark.parametrize("counts", [[], [5], [-1, 7], [2**40, 6], [3, 4]])
def test_run_lengths_must_fill_the_image(counts):
    with pytest.raises(ValueError, match="do not fill 3 x 2 pixels"):
        checked_counts(np.array(counts, dtype=np.int64), 2, 3)


def test_a_polygon_covers_the_pixels_whose_centres_are_inside():
    mask = draw_polygon(np.array([[1, 1], [4, 1], [4, 3], [1, 3]], dtype=np.float32), 5, 6)
    expected = np.zeros((5, 6), dtype=bool)
    expected[1:3, 1:4] = True
    np.testing.assert_array_equal(mask, expected)
    half = draw_polygon(np.array([[0.6, 0.4], [2.4, 0.4], [2.4, 5], [0.6, 5]], dtype=np.float32), 2, 3)
    np.testing.assert_array_equal(half, [[False, True, False]] * 2)


@given(st.lists(st.tuples(st.floats(-20, 90), st.floats(-20, 70)), min_size=3, max_size=9))
def test_a_polygon_is_what_an_even_odd_test_of_each_centre_says(points):
    """An independent restatement: the crossings of a ray to the left of each pixel's centre, counted one by one."""
    corners = np.array(points, dtype=np.float32).astype(np.float64)
    mask = draw_polygon(corners.astype(np.float32), 12, 14)
    for row in range(12):
        for column in range(14):
            y, crossings = row + 0.5, 0
            for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
                if (y0 <= y) != (y1 <= y):
                    crossings += x0 + (y - y0) * ((x1 - x0) / (y1 - y0)) <= column + 0.5
            assert mask[row, column] == crossings % 2


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools
def test_large_polygons_agree_with_pycocotools():
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    reach = np.where(np.arange(40) % 2, 80, 45)
    points = np.stack([100 + reach * np.cos(angles), 90 + reach * np.sin(angles)], axis=1).astype(np.float32)
    ours = draw_polygon(points, 180, 200)
    theirs = pycoco.decode(pycoco.merge(pycoco.frPyObjects([points.reshape(-1).tolist()], 180, 200))).astype(bool)
    assert (ours & theirs).sum() / (ours | theirs).sum() > 0.97
    assert abs(Outline(180, 200, (points,)).area() - ours.sum()) < 0.01 * ours.sum()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_and_masks_turn_as_pillow_turns_the_image(orientation):
    stored = np.zeros((4, 7), dtype=np.uint8)
    stored[1, 2:6] = 255
    exif, out = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(out, "PNG", exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(out)))
    assert upright_size((4, 7), orientation) == upright.shape
    turn = turn_needed((4, 7), (4, 7), orientation)
    assert turn == (orientation if orientation >= 5 else 1)  # a size tells of quarter turns only
    assert turn_needed(upright.shape, (4, 7), orientation) == 1
    assert turn_needed((7, 8), (4, 7), orientation) is None
    if orientation >= 5:
        np.testing.assert_array_equal(turned_mask(stored, turn), upright)
        assert turned_box((2.0, 1.0, 6.0, 2.0), (4, 7), turn) == mask_box(upright > 0)


def test_a_turned_outline_gives_the_upright_mask():
    points = np.array([[2, 1], [6, 1], [6, 2], [2, 2]], dtype=np.float32)
    plain, turned = Outline(4, 7, (points,)), Outline(4, 7, (points,), turn=6)
    np.testing.assert_array_equal(turned.mask(), turned_mask(plain.mask(), 6))
    assert turned.mask().shape == (7, 4)
    assert plain.key() != turned.key()
