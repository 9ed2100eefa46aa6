import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.segmentation import mean_iou

from cmtvision.errors import DataError
from cmtvision.segmentation.metrics import (
    boundary_counts,
    confusion_counts,
    count,
    figures,
    no_counts,
    region_counts,
)

VOID = 255


def maps(seed, classes=4, size=(17, 23), void=True):
    """A blotchy truth with void in it, and a prediction that is mostly right."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, classes, size=(4, 5)).repeat(5, axis=0).repeat(5, axis=1)[: size[0], : size[1]]
    predicted = np.where(generator.random(size) < 0.8, coarse, generator.integers(0, classes, size=size))
    truth = np.where(generator.random(size) < 0.1, VOID, coarse) if void else coarse
    return truth, predicted


def test_counts_are_those_of_a_loop_over_pixels():
    truth, predicted = maps(0)
    expected = np.zeros((4, 4), dtype=int)
    for true, found in zip(truth.flat, predicted.flat, strict=True):
        if true != VOID:
            expected[true, found] += 1
    counts = confusion_counts(truth, predicted, 4, VOID)
    np.testing.assert_array_equal(counts, expected)
    assert counts.dtype == np.int64
    assert counts.sum() == (truth != VOID).sum()


def test_mean_iou_is_that_of_torchmetrics():
    truth, predicted = maps(1, void=False)
    found = figures(count(truth, predicted, 4, VOID))
    theirs = mean_iou(
        torch.from_numpy(predicted)[None], torch.from_numpy(truth)[None], num_classes=4, input_format="index",
        per_class=True,
    )  # fmt: skip
    np.testing.assert_allclose(found.iou, theirs[0].numpy(), atol=1e-6)
    assert found.mean_iou == pytest.approx(float(theirs.mean()), abs=1e-6)
    assert found.pixel_accuracy == (truth == predicted).mean()
    assert found.pixels == np.bincount(truth.reshape(-1), minlength=4).tolist()


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=5), st.integers(0, 4))
def test_counts_of_images_add_up_in_any_order(seeds, split):
    single = [count(*maps(seed), 4, VOID) for seed in seeds]
    whole = sum(single, no_counts(4))
    merged = sum(single[split:], no_counts(4)) + sum(single[:split], no_counts(4))
    assert figures(whole) == figures(merged)
    stacked = [np.concatenate(pair) for pair in zip(*(maps(seed) for seed in seeds), strict=True)]
    np.testing.assert_array_equal(whole.confusion, confusion_counts(*stacked, 4, VOID))


def test_void_pixels_change_nothing_whatever_was_predicted_there():
    truth, predicted = maps(2)
    other = np.where(truth == VOID, (predicted + 1) % 4, predicted)
    assert figures(count(truth, predicted, 4, VOID)).iou == figures(count(truth, other, 4, VOID)).iou
    perfect = np.where(truth == VOID, 0, truth)
    assert figures(count(truth, perfect, 4, VOID)).mean_iou == 1.0


def test_a_perfect_prediction_and_none():
    truth, _ = maps(3, void=False)
    found = figures(count(truth, truth, 5, VOID, tolerance=0))
    assert (found.mean_iou, found.pixel_accuracy, found.mean_boundary_f1) == (1.0, 1.0, 1.0)
    assert found.iou[4] is found.boundary_f1[4] is None  # a class that is nowhere counts nowhere
    empty = figures(no_counts(3))
    assert (empty.mean_iou, empty.pixel_accuracy, empty.mean_boundary_f1, empty.iou) == (None, None, None, [None] * 3)
    assert figures(count(truth, np.full_like(truth, 4), 5, VOID)).iou[4] == 0.0


def half(column, width=20):
    """Two classes, divided at a column."""
    return np.repeat((np.arange(width) >= column)[None], 10, axis=0).astype(int)


@pytest.mark.parametrize(("shift", "tolerance", "expected"), [(1, 1, 1.0), (2, 1, 0.0), (2, 2, 1.0), (4, 2, 0.0)])
def test_a_boundary_may_be_off_by_the_tolerance(shift, tolerance, expected):
    """Each class has one column of boundary pixels; moved by s, they are s apart."""
    found = figures(count(half(10), half(10 + shift), 2, VOID, tolerance))
    assert found.mean_boundary_f1 == expected
    assert found.tolerance == tolerance


def test_boundaries_are_those_of_a_slow_restatement():
    truth, predicted = maps(5)

    def edges(classes, label):
        out = set()
        for row in range(classes.shape[0]):
            for column in range(classes.shape[1]):
                for down, right in ((0, 1), (1, 0), (0, -1), (-1, 0)):
                    y, x = row + down, column + right
                    if not (0 <= y < classes.shape[0] and 0 <= x < classes.shape[1]) or classes[row, column] != label:
                        continue
                    if classes[y, x] not in (label, VOID):
                        out.add((row, column))
        return out

    def near(point, points):
        return any((point[0] - y) ** 2 + (point[1] - x) ** 2 <= 1.5**2 for y, x in points)

    counts = boundary_counts(truth, predicted, 4, VOID, 1.5)
    for label in range(4):
        true = edges(truth, label)
        found = {point for point in edges(predicted, label) if truth[point] != VOID}
        expected = [sum(near(p, true) for p in found), len(found), sum(near(p, found) for p in true), len(true)]
        assert counts[label].tolist() == expected


def test_regions_are_counted_by_size_as_a_loop_that_walks_them_counts():
    truth = np.zeros((130, 130), dtype=int)
    truth[:20, :20], truth[40:100, 40:100] = 1, 2  # 400 and 3,600 pixels of a background of 16,900
    truth[102:106, 102:106], truth[106:110, 106:110] = 1, 1  # two squares that touch at a corner
    truth[60:70, 60:70] = VOID
    predicted = np.where(np.random.default_rng(0).random(truth.shape) < 0.3, 3, np.where(truth == VOID, 2, truth))

    expected = np.zeros((3, 2), dtype=int)
    left = {(y, x) for y, x in np.argwhere(truth != VOID).tolist()}
    while left:
        start = left.pop()
        region, border = [start], [start]
        while border:
            y, x = border.pop()
            for point in ((y, x + 1), (y, x - 1), (y + 1, x), (y - 1, x)):
                if point in left and truth[point] == truth[start]:
                    left.remove(point)
                    region.append(point)
                    border.append(point)
        size = 0 if len(region) < 32**2 else 1 if len(region) < 96**2 else 2
        expected[size] += [sum(truth[point] == predicted[point] for point in region), len(region)]

    counts = region_counts(truth, predicted, 4, VOID)
    np.testing.assert_array_equal(counts, expected)
    assert counts[:, 1].tolist() == [400 + 2 * 16, 3500, 16900 - 3600 - 400 - 32]
    found = figures(count(truth, predicted, 4, VOID)).right_by_size
    assert found == [right / whole for right, whole in expected.tolist()]
    assert figures(no_counts(4)).right_by_size == [None, None, None]


def test_an_image_of_one_class_has_no_boundary():
    found = figures(count(np.zeros((5, 5), int), np.zeros((5, 5), int), 2, VOID))
    assert (found.mean_iou, found.mean_boundary_f1) == (1.0, None)
    missed = figures(count(half(10), np.zeros((10, 20), int), 2, VOID))
    assert missed.boundary_f1 == [0.0, 0.0]


def test_numbers_that_are_no_class_are_refused():
    good = np.zeros((3, 3), dtype=int)
    with pytest.raises(DataError, match=r"truth \(3, 3\) and prediction \(2, 3\)"):
        count(good, good[:2], 2, VOID)
    with pytest.raises(DataError, match=r"truth has numbers from 7 to 7, expected 0 to 1, or void \(255\)"):
        count(good + 7, good, 2, VOID)
    with pytest.raises(DataError, match="prediction has numbers from 255 to 255"):
        count(good, good + VOID, 2, VOID)
    with pytest.raises(DataError, match="other classes or another tolerance"):
        no_counts(2) + no_counts(3)
