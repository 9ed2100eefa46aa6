"""Intervals, by simulation: of 95% intervals 93% to 97% hold the truth."""

import numpy as np
import pytest

from cmtvision.report.intervals import mean_interval, share_interval, wilson_interval, wilson_intervals
from cmtvision.report.paired import Paired
from cmtvision.report.statistics import class_shares

TIMES = 1000


@pytest.mark.parametrize(("images", "share"), [(500, 0.6), (2000, 0.9)])
def test_bootstrap_intervals_of_accuracy_hold_the_truth(images, share):
    counts = np.random.default_rng(1).binomial(images, share, TIMES).tolist()
    found = [share_interval(count, images, seed=seed) for seed, count in enumerate(counts)]
    assert {one.method for one in found} == {"bootstrap"}
    assert 0.93 <= np.mean([one.low <= share <= one.high for one in found]) <= 0.97


def test_bootstrap_intervals_of_a_mean_hold_the_truth():
    rng = np.random.default_rng(2)
    found = [mean_interval(rng.beta(5, 2, 300), seed, draws=500) for seed in range(400)]
    assert 0.92 <= np.mean([one.low <= 5 / 7 <= one.high for one in found]) <= 0.98


def test_intervals_of_f1_hold_the_truth():
    both, missed, wrong = 0.08, 0.02, 0.03
    drawn = np.random.default_rng(3).multinomial(1500, [both, missed, wrong, 1 - both - missed - wrong], TIMES)
    shares = class_shares(drawn[:, 0] + drawn[:, 1], drawn[:, 0] + drawn[:, 2], drawn[:, 0])
    truth = 2 * both / (2 * both + missed + wrong)
    assert 0.93 <= np.mean([f1.low <= truth <= f1.high for _, _, f1 in shares]) <= 0.97
    counts = drawn[0]
    assert shares[0][2].value == pytest.approx(2 * counts[0] / (2 * counts[0] + counts[1] + counts[2]))


@pytest.mark.parametrize("shares", [(0.85, 0.04, 0.06, 0.05), (0.6, 0.15, 0.05, 0.2)])
def test_paired_intervals_hold_the_truth(shares):
    drawn = np.random.default_rng(4).multinomial(600, shares, TIMES).tolist()
    found = [Paired(*counts).difference() for counts in drawn]
    assert 0.93 <= np.mean([one.low <= shares[2] - shares[1] <= one.high for one in found]) <= 0.97


def test_the_same_seed_gives_the_same_interval_and_few_mistakes_give_wilsons():
    assert share_interval(80, 100, seed=3) == share_interval(80, 100, seed=3)
    assert mean_interval([0.1, 0.5, 0.7], seed=3) == mean_interval([0.1, 0.5, 0.7], seed=3)
    assert share_interval(100, 100)[1:] == (*wilson_interval(100, 100), "Wilson")
    with pytest.raises(ValueError, match="expected"):
        mean_interval([])


def test_many_wilson_intervals_are_those_of_scipy():
    correct, total = np.array([0, 3, 20, 0]), np.array([20, 8, 20, 0])
    low, high = wilson_intervals(correct, total)
    for place in range(3):
        expected = wilson_interval(int(correct[place]), int(total[place]))
        assert (low[place], high[place]) == pytest.approx(expected, abs=1e-12)
    assert np.isnan(low[3])


def test_mcnemar_is_the_fair_coin():
    paired = Paired.of(np.array([1, 1, 0, 0, 0, 0, 0, 1], bool), np.array([1, 0, 1, 1, 1, 1, 1, 1], bool))
    assert (paired.both, paired.only_a, paired.only_b, paired.neither) == (2, 1, 5, 0)
    assert paired.mcnemar() == pytest.approx(2 * (1 + 6) / 2**6)  # 0 or 1 of 6 tosses, either way
    assert paired.top1 == (3 / 8, 7 / 8)
    assert paired.difference().value == 0.5
    same = Paired(5, 0, 0, 3)
    assert same.mcnemar() == 1.0
    assert same.difference().low < 0 < same.difference().high
    with pytest.raises(ValueError, match="expected two"):
        Paired.of(np.ones(3, bool), np.ones(4, bool))
