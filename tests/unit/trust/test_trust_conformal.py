"""Prediction sets: what they promise holds, and where it cannot be promised they say so."""

import math

import numpy as np
import pytest

from cmtvision.trust import conformal
from cmtvision.trust.conformal import Regularisation
from cmtvision.trust.order import MOST, OrderStatistics, least_images
from cmtvision.trust.probability import probabilities

SPLITS = 200


@pytest.fixture(scope="module")
def answers():
    """(probabilities, class numbers) of 3,000 images of 10 classes, 62% of them right."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 10, 3_000)
    logits = rng.normal(size=(3_000, 10))
    logits[np.arange(3_000), targets] += rng.uniform(0, 4, 3_000)
    odds = probabilities(logits, 0.5)
    assert 0.5 < (odds.argmax(axis=1) == targets).mean() < 0.75
    return odds, targets


@pytest.mark.parametrize("level", [0.8, 0.9, 0.95])
@pytest.mark.parametrize("kind", ["lac", "raps"])
def test_coverage_over_200_splits_is_the_level(answers, kind, level):
    odds, targets = answers
    how = Regularisation(2, 0.05)
    scores = conformal.lac_scores(odds) if kind == "lac" else conformal.raps_scores(odds, how)
    own, rng, covered = conformal.of_the_class(scores, targets), np.random.default_rng(1), []
    for _ in range(SPLITS):
        order = rng.permutation(len(own))
        threshold = OrderStatistics.of(own[order[:500]]).quantile(level)
        covered.append((own[order[500:]] <= threshold + conformal.SLACK).mean())
    assert np.mean(covered) == pytest.approx(level, abs=0.01)
    assert np.mean(covered) >= level - 0.002  # promised on average, whatever the scores


def test_what_is_covered_is_in_the_set(answers):
    """The splits above look at scores alone, so the sets must be the classes within the threshold."""
    odds, targets = answers
    for scores in (conformal.lac_scores(odds), conformal.raps_scores(odds, Regularisation(1, 0.1))):
        own = conformal.of_the_class(scores, targets)
        threshold = OrderStatistics.of(own[:500]).quantile(0.9)
        inside = conformal.members(scores, threshold, odds, allow_empty=True)
        assert (inside[np.arange(len(odds)), targets] == (own <= threshold + conformal.SLACK)).all()
        # more probable classes come first
        lowest, highest = np.where(inside, odds, 2).min(axis=1), np.where(inside, -1, odds).max(axis=1)
        assert (lowest >= highest).all()


def test_raps_follows_its_formula():
    odds = np.array([[0.1, 0.6, 0.3], [0.2, 0.2, 0.6]])
    found = conformal.raps_scores(odds, Regularisation(1, 0.5))
    assert np.allclose(found, [[0.9 + 2 * 0.5, 0.0, 0.6 + 0.5], [0.6 + 0.5, 0.8 + 2 * 0.5, 0.0]])


def test_a_set_is_never_empty_unless_asked():
    odds = np.full((4, 5), 0.2)
    scores = conformal.lac_scores(odds)
    assert conformal.members(scores, 0.5, odds, allow_empty=True).sum() == 0
    assert conformal.members(scores, 0.5, odds).sum(axis=1).tolist() == [1] * 4


@pytest.mark.parametrize(("count", "level"), [(3, 0.9), (8, 0.9), (98, 0.99), (0, 0.5), (998, 0.999)])
def test_too_few_images_promise_nothing_and_say_so(count, level):
    assert least_images(level) == {0.9: 9, 0.99: 99, 0.5: 1, 0.999: 999}[level]
    if count:
        assert OrderStatistics.of(np.arange(count)).quantile(level) == math.inf
    assert f"{least_images(level)} are needed" in conformal.too_few(count, level)
    assert OrderStatistics.of(np.arange(least_images(level))).quantile(level) == least_images(level) - 1
    assert conformal.too_few(least_images(level), level) == ""


@pytest.mark.parametrize("level", [1.5, 0.4999, 1.0, 0.9991, math.nan, "0.9"])
def test_a_level_that_cannot_be_promised_is_refused(level):
    with pytest.raises(ValueError, match=r"level .*: expected a share of images from 0\.5 to 0\.999"):
        conformal.check_level(level)


@pytest.mark.parametrize("total", [MOST - 1, MOST, MOST + 1, 7 * MOST + 3])
def test_a_long_list_is_cut_to_the_safe_side(total):
    numbers = np.random.default_rng(total).normal(size=total)
    kept, ordered = OrderStatistics.of(numbers), np.sort(numbers)
    assert len(kept.values) == min(total, MOST)
    assert kept.num_images == total
    for level in (0.5, 0.9, 0.995):
        rank = math.ceil((total + 1) * level - 1e-9)
        latest = min(total, rank + (0 if total <= MOST else math.ceil(total / MOST)))
        assert ordered[rank - 1] - 1e-9 <= kept.quantile(level) <= ordered[latest - 1] + 1e-9
    for x in (-10.0, -0.3, 0.0, 1.7, 10.0):
        exact = (1 + (numbers >= x).sum()) / (total + 1)
        assert exact - 1e-12 <= float(kept.share_at_least(np.array([x]))[0]) <= exact + 1 / MOST


def test_the_same_number_counts_although_it_was_rounded():
    numbers = np.random.default_rng(3).normal(size=50)
    shares = OrderStatistics.of(numbers).share_at_least(np.sort(numbers))
    assert np.allclose(shares, (1 + np.arange(50, 0, -1)) / 51)


def test_k_and_penalty_are_chosen_on_images_that_count_for_nothing_else(answers):
    odds, targets = answers
    how, counted = conformal.choose_regularisation(odds, targets)
    assert counted.sum() == 2_400
    chosen = ~counted
    place = 1 + (odds > conformal.of_the_class(odds, targets)[:, None]).sum(axis=1)
    assert (place[chosen] <= how.k_reg).mean() >= 0.9 > (place[chosen] < how.k_reg).mean()
    assert how.penalty in conformal.PENALTIES
    few, everyone = conformal.choose_regularisation(odds[:30], targets[:30])
    assert few == Regularisation()
    assert everyone.all()
