"""Temperature scaling: the least loss, a lower calibration error on new images, and never another class."""

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from cmtvision.trust.calibration import expected_calibration_error
from cmtvision.trust.fit import fit_block
from cmtvision.trust.probability import probabilities
from cmtvision.trust.temperature import LEAST, LEAST_IMAGES, MOST, fit_temperature, mean_loss


def made(count, classes, seed, factor):
    """Logits whose softmax at temperature ``factor`` is the truth: the labels are drawn from it."""
    rng = np.random.default_rng(seed)
    true = rng.normal(size=(count, classes)) * 2
    odds = softmax(true, axis=1)
    targets = (odds.cumsum(axis=1) < rng.uniform(size=(count, 1))).sum(axis=1).clip(max=classes - 1)
    return (true * factor).astype(np.float32), targets


def ece(logits, targets, temperature):
    odds = probabilities(logits, temperature)
    return expected_calibration_error(odds.max(axis=1), odds.argmax(axis=1) == targets)


@pytest.mark.parametrize("factor", [0.4, 1.0, 3.0])
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_the_true_temperature_is_found_and_helps_on_new_images(classes, factor):
    logits, targets = made(4_000, classes, 0, factor)
    temperature = fit_temperature(logits[:2_000], targets[:2_000])
    assert temperature == pytest.approx(factor, rel=0.12)
    new, right = logits[2_000:], targets[2_000:]
    if factor != 1.0:
        assert ece(new, right, temperature) < 0.5 * ece(new, right, 1.0)
    assert (probabilities(new, temperature).argmax(axis=1) == new.argmax(axis=1)).all()


def test_it_is_the_least_loss():
    logits, targets = made(500, 5, 1, 1.7)
    found = fit_temperature(logits, targets)
    grid = np.exp(np.linspace(np.log(0.3), np.log(8), 400))
    losses = [-log_softmax(logits / t, axis=1)[np.arange(500), targets].mean() for t in grid]
    assert mean_loss(logits, targets, found) <= min(losses) + 1e-7
    assert found == pytest.approx(grid[np.argmin(losses)], rel=0.01)


def test_where_everything_is_right_it_stays_finite_and_modest():
    logits = made(300, 4, 2, 1.0)[0]
    targets = logits.argmax(axis=1)
    assert fit_temperature(logits, targets) == LEAST  # some by a hair's breadth
    logits[np.arange(300), targets] += 2
    temperature = fit_temperature(logits, targets)
    assert LEAST < temperature < 1
    assert probabilities(logits, temperature).max(axis=1).mean() == pytest.approx(301 / 302, abs=1e-4)


@pytest.mark.parametrize(
    ("logits", "targets"),
    [
        (np.zeros((50, 3), np.float32), np.zeros(50, int)),  # an untrained network: nothing to choose by
        (np.ones((50, 1), np.float32), np.zeros(50, int)),
        (np.eye(3, dtype=np.float32), np.arange(3)),
        (np.eye(LEAST_IMAGES - 1, dtype=np.float32), np.arange(LEAST_IMAGES - 1)),
    ],
)
def test_where_nothing_can_be_concluded_it_is_one(logits, targets):
    assert fit_temperature(logits, targets) == 1.0


def test_where_everything_is_wrong_no_class_is_preferred():
    logits = np.tile(np.array([[5.0, 0, 0]], np.float32), (60, 1))
    temperature = fit_temperature(logits, np.ones(60, int))
    assert probabilities(logits, temperature).max() < 0.36


def test_huge_logits_are_no_trouble():
    logits = np.array([[1e30, -1e30], [-1e30, 1e30]] * 20, np.float32)
    assert fit_temperature(logits, np.tile([0, 1], 20)) == MOST
    assert np.isfinite(probabilities(logits, 0.05)).all()


def test_the_figures_of_a_card_are_those_of_images_that_did_not_choose_the_temperature():
    logits, targets = made(1_500, 6, 3, 2.5)
    block = fit_block(logits, targets)
    assert block.temperature == pytest.approx(2.5, rel=0.1)
    assert block.ece[0] == pytest.approx(ece(logits, targets, 1.0))
    assert block.ece[1] < 0.5 * block.ece[0]
    assert mean_loss(logits, targets, block.temperature) < block.loss[1] < block.loss[0]
