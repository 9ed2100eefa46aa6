"""Calibrated answers of two models: what the permitted difference of logits explains is no difference of answers."""

from dataclasses import replace

import numpy as np
import pytest

from cmtvision.deploy.answers import LEVELS, compare_answers
from cmtvision.trust.fit import fit_block


@pytest.fixture(scope="module")
def model():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 6, 400)
    logits = rng.normal(size=(400, 6)).astype(np.float32)
    logits[np.arange(400), targets] += rng.uniform(0, 4, 400).astype(np.float32)
    return fit_block(logits, targets), logits


def test_equal_logits_give_equal_answers(model):
    block, logits = model
    assert compare_answers(block, block, logits, logits.copy(), 1e-4) == (0.0, 1.0, 0)


@pytest.mark.parametrize("size", [1e-3, 0.02])
def test_sets_on_the_edge_may_fall_on_either_side(model, size):
    block, logits = model
    other = logits + np.random.default_rng(1).uniform(-size, size, logits.shape).astype(np.float32)
    found = compare_answers(block, block, logits, other, size)
    assert found.differing == 0
    assert 0 < found.probability <= size / block.temperature
    assert found.sets_alike > 0.8
    # an image that lies exactly on a threshold, for which any change of the logits is enough
    edge = (
        np.abs(block.scores(block.probabilities(logits), "lac") - block.threshold(LEVELS[1], "lac")).min(axis=1) < 1e-9
    )
    assert edge.any()


def test_other_logits_or_another_calibration_are_seen(model):
    block, logits = model
    other = logits + np.random.default_rng(1).normal(size=logits.shape).astype(np.float32)
    assert compare_answers(block, block, logits, other, 1e-3).differing > 40
    found = compare_answers(block, replace(block, temperature=block.temperature * 2), logits, logits, 1e-3)
    assert found.differing > 40
    assert found.sets_alike < 0.9
