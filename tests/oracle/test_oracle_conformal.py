"""Prediction sets beside mapie's, and calibration errors beside torchmetrics': other people's code, equal to 1e-6."""

import numpy as np
import pytest
import torch

from cmtvision.trust import conformal
from cmtvision.trust.calibration import expected_calibration_error
from cmtvision.trust.order import OrderStatistics
from cmtvision.trust.probability import probabilities

LEVELS = [0.6, 0.8, 0.9, 0.95]


def made(count, classes, seed, scale=3.0):
    """Logits and labels of a network that is right more often than not, and surer than it should be."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, classes, count)
    targets[:classes] = np.arange(classes)  # mapie wants each class once
    logits = rng.normal(size=(count, classes))
    logits[np.arange(count), targets] += rng.uniform(0, 3, count)
    return logits * scale, targets


class Table:
    """A classifier of scikit-learn's kind whose images are row numbers."""

    def __init__(self, odds):
        self.odds, self.classes_, self.n_features_in_ = odds, np.arange(odds.shape[1]), 1

    def fit(self, *_):
        return self

    def __sklearn_is_fitted__(self):
        return True

    def predict_proba(self, rows):
        return self.odds[rows[:, 0].astype(int)]

    def predict(self, rows):
        return self.predict_proba(rows).argmax(axis=1)


class Always(np.random.RandomState):
    """mapie takes a random part of a class's own probability off its RAPS score; all of it off gives ours."""

    def uniform(self, *_args, size=None, **_more):
        return np.ones(size)


@pytest.fixture
def classifier():
    mapie = pytest.importorskip("mapie.classification")
    kind = type("Table", (Table, mapie.ClassifierMixin), {})  # scikit-learn's

    def make(odds, score, **options):
        return mapie.SplitConformalClassifier(
            kind(odds), confidence_level=LEVELS, conformity_score=score, prefit=True, **options
        )

    return make


def same_but_for_ties(ours, theirs, above):
    """Sets of both; ours also have a class that is above the threshold by less than the slack for runtimes."""
    ties = (above > 0) & (above <= conformal.SLACK)
    assert (ours == theirs)[~ties].all()
    assert ours[ties].all()
    assert ties.mean() < 0.005


@pytest.mark.parametrize("classes", [2, 10])
def test_lac_is_mapies(classifier, classes):
    logits, targets = made(700, classes, seed=classes)
    odds, rows = probabilities(logits), np.arange(700)[:, None]
    theirs = classifier(odds, "lac")
    theirs.conformalize(rows[:300], targets[:300])
    _, sets = theirs.predict_set(rows[300:])
    own = OrderStatistics.of(conformal.of_the_class(conformal.lac_scores(odds[:300]), targets[:300]))
    found = theirs._mapie_classifier.conformity_score_function_.quantiles_
    assert np.allclose(found, [own.quantile(level) for level in LEVELS], atol=1e-6)
    for place, level in enumerate(LEVELS):
        scores = conformal.lac_scores(odds[300:])
        inside = conformal.members(scores, own.quantile(level), odds[300:], allow_empty=True)
        same_but_for_ties(inside, sets[:, :, place], scores - own.quantile(level))


def test_raps_without_its_random_number_is_mapies(classifier):
    from mapie.conformity_scores import RAPSConformityScore

    class Inverted(RAPSConformityScore):
        """A set goes on while the score of the place before is below the quantile; this asks the place itself."""

        def get_prediction_sets(self, *args, **more):
            self.k_star = self.k_star - 1
            try:
                return super().get_prediction_sets(*args, **more)
            finally:
                self.k_star = self.k_star + 1

    logits, targets = made(900, 12, seed=5)
    odds, rows = probabilities(logits), np.arange(900)[:, None]
    theirs = classifier(odds, Inverted(), random_state=Always(0))
    theirs.conformalize(rows[:500], targets[:500])
    _, sets = theirs.predict_set(rows[500:], conformity_score_params={"include_last_label": True})
    score = theirs._mapie_classifier.conformity_score_function_
    # they choose penalty and k on a fifth of the images for each level; quantiles are of the others
    counted = np.setdiff1d(np.arange(500), np.asarray(score.X_raps)[:, 0])
    penalties = np.broadcast_to(score.lambda_star, len(LEVELS))
    for place, level in enumerate(LEVELS):
        how = conformal.Regularisation(int(score.k_star[place]), float(penalties[place]))
        scores = conformal.raps_scores(odds, how)
        own = OrderStatistics.of(conformal.of_the_class(scores[counted], targets[counted])).quantile(level)
        assert own == pytest.approx(float(score.quantiles_[place]), abs=1e-6)
        inside = conformal.members(scores[500:], own, odds[500:])
        same_but_for_ties(inside, sets[:, :, place], scores[500:] - own)


@pytest.mark.parametrize("num_bins", [10, 15])
def test_the_calibration_error_is_torchmetrics(num_bins):
    from torchmetrics.functional.classification import multiclass_calibration_error

    logits, targets = made(2_000, 7, seed=1)
    odds = probabilities(logits)
    theirs = multiclass_calibration_error(
        torch.from_numpy(odds), torch.from_numpy(targets), num_classes=7, n_bins=num_bins, norm="l1"
    )
    own = expected_calibration_error(odds.max(axis=1), odds.argmax(axis=1) == targets, num_bins)
    assert own == pytest.approx(float(theirs), abs=1e-6)
