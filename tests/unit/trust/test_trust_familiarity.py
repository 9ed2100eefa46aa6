"""Familiarity: its two scores by their formulas, and how often images like the held-out ones are called unfamiliar."""

import numpy as np
import pytest
import torch

from cmtvision.trust.familiarity import UNFAMILIAR, energy, neighbour_distance, of_unit_length
from cmtvision.trust.fit import MOST_FEATURES, fit_bank, fit_block


def test_energy_is_minus_log_sum_exp():
    logits = torch.randn(20, 7, generator=torch.Generator().manual_seed(0)) * 50
    assert np.allclose(energy(logits.numpy()), -logits.double().logsumexp(dim=1).numpy())


@pytest.mark.parametrize("own", [True, False])
def test_the_distance_is_to_the_kth_neighbour(own, monkeypatch):
    monkeypatch.setattr("cmtvision.trust.familiarity._CHUNK", 100)  # several chunks
    rng = np.random.default_rng(0)
    bank = of_unit_length(rng.normal(size=(40, 6)))
    given = bank if own else of_unit_length(rng.normal(size=(15, 6)))
    plain = np.sort(np.linalg.norm(given[:, None] - bank[None], axis=2), axis=1)
    expected = plain[:, 3] if own else plain[:, 2]  # its own distance, 0, is left out
    assert np.allclose(neighbour_distance(given, bank, 3, own=own), expected, atol=1e-5)


def test_zero_features_have_a_distance():
    bank = of_unit_length(np.zeros((30, 4)))
    assert np.isfinite(neighbour_distance(bank, bank, 5, own=True)).all()


@pytest.mark.parametrize("total", [400, MOST_FEATURES + 500])
def test_images_like_the_held_out_ones_are_rarely_unfamiliar_and_strange_ones_are(total):
    rng = np.random.default_rng(total)
    centres = rng.normal(size=(8, 16)) * 3

    def features(count):
        return centres[rng.integers(0, 8, count)] + rng.normal(size=(count, 16))

    bank = fit_bank(features(total))
    assert bank.features.shape == (min(total, MOST_FEATURES), 16)

    def share(given):
        known = of_unit_length(given)
        return bank.reference.share_at_least(neighbour_distance(known, bank.features, bank.neighbours))

    assert (share(features(4_000)) <= UNFAMILIAR).mean() == pytest.approx(UNFAMILIAR, abs=0.02)
    assert (share(rng.normal(size=(500, 16)) * 3) <= UNFAMILIAR).mean() > 0.9


def test_too_few_or_senseless_features_are_no_bank():
    assert fit_bank(np.ones((18, 4))) is None
    assert fit_bank(np.ones((19, 4))) is not None
    assert fit_bank(np.full((50, 4), np.nan)) is None
    assert fit_bank(np.ones((40, 1_000_000), np.float16)) is None  # 16 MB hold 8 such images


def test_the_share_by_energy_is_of_the_held_out_images():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(999, 5)).astype(np.float32)
    block = fit_block(logits, rng.integers(0, 5, 999))
    found = block.familiarity(np.array([[9.0] * 5, [-9.0] * 5], np.float32))
    assert found.share.tolist() == [1.0, 0.001]
    assert found.distance is None
