"""Probable label errors: images whose label a classifier, trained on all the others, finds improbable.

1. Each image's class probabilities come from a ridge regression on embeddings, fitted without its fold (5 folds; copies
   of one image share a fold, so that none vouches for another). With G = X^T X of all images, a fold is left out by
   subtracting its own part: five small linear systems, no matter how many images. Of four strengths of the ridge, the
   one with the lowest cross-entropy is taken.
2. Scores become probabilities by softmax(t * score), t minimising the cross-entropy of the given labels.
3. cleanlab (confident learning: C. Northcutt et al., "Confident learning: estimating uncertainty in dataset labels",
   2021) estimates how many labels are wrong; it is those whose given label is the least probable.

Legend: N images, D numbers of an embedding, C classes.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar

from cmtvision.errors import ConfigError

FOLDS = 5
_RIDGES = (0.02, 0.1, 0.5, 2.0)  # tried, as multiples of the mean square of a standardised feature, which is 1
_BLOCK = 4096
LEAST_PER_CLASS = 10
"""Images of a class, below which nothing can be learned of it."""
NEEDS_CLEANLAB = "needs cleanlab: pip install 'cmtvision[quality]'"


@dataclass(frozen=True)
class LabelErrors:
    """What out-of-fold predictions say of the labels.

    Attributes:
        wrong: positions of the images with probably wrong labels, the most certain first.
        given: the probability of the given label of each image (N,).
        suggested: the most probable class of each image (N,).
        accuracy: the share of labels that agree with the most probable class.
    """

    wrong: npt.NDArray[np.int64]
    given: npt.NDArray[np.float32]
    suggested: npt.NDArray[np.int64]
    accuracy: float


def find_label_errors(
    features: npt.NDArray[np.float16], labels: npt.NDArray[np.int64], groups: npt.NDArray[np.int64], seed: int = 0
) -> LabelErrors:
    """Find labels that are probably wrong.

    Args:
        features: embeddings (N, D).
        labels: class numbers (N,), 0 to C - 1, each class with at least one image.
        groups: (N,); images with the same number are copies of each other.
        seed: of the folds.

    Raises:
        ConfigError: cleanlab is not installed.
    """
    try:
        from cleanlab.count import num_label_issues
    except ImportError:
        raise ConfigError(f"label errors: {NEEDS_CLEANLAB}") from None
    probabilities = out_of_fold(features, labels, groups, seed)
    suggested = probabilities.argmax(axis=1)
    given = probabilities[np.arange(len(labels)), labels]
    number = int(num_label_issues(labels, probabilities))
    ranked = np.argsort(given, kind="stable")
    wrong = ranked[suggested[ranked] != labels[ranked]][:number]
    return LabelErrors(np.asarray(wrong, dtype=np.int64), given, suggested, float((suggested == labels).mean()))


def out_of_fold(
    features: npt.NDArray[np.float16], labels: npt.NDArray[np.int64], groups: npt.NDArray[np.int64], seed: int = 0
) -> npt.NDArray[np.float32]:
    """Class probabilities (N, C) of each image, by a ridge regression that has not seen its fold."""
    num_classes = int(labels.max()) + 1
    fold = _folds(groups, seed)
    mean, scale = _moments(features)
    truth = F.one_hot(torch.from_numpy(labels), num_classes).float()
    centre = truth.mean(0)
    grams, products = [], []
    for number in range(FOLDS):
        gram, product = _sums(features, truth - centre, np.flatnonzero(fold == number), mean, scale)
        grams.append(gram)
        products.append(product)
    gram, product = torch.stack(grams).sum(0), torch.stack(products).sum(0)
    target = torch.from_numpy(labels)
    best = (torch.inf, torch.empty(0))
    for ridge in _RIDGES:
        scores = torch.empty(len(labels), num_classes)
        for number in range(FOLDS):
            inside = np.flatnonzero(fold == number)
            system = gram - grams[number]
            system.diagonal().add_(ridge * len(labels))
            weight = torch.cholesky_solve(product - products[number], torch.linalg.cholesky(system))  # (D, C)
            for start in range(0, len(inside), _BLOCK):
                rows = inside[start : start + _BLOCK]
                scores[torch.from_numpy(rows)] = _standard(features[rows], mean, scale) @ weight + centre
        loss, fitted = _as_probabilities(scores, target)
        if loss < best[0]:
            best = (loss, fitted)
    probabilities: npt.NDArray[np.float32] = best[1].numpy()
    return probabilities


def _as_probabilities(scores: torch.Tensor, target: torch.Tensor) -> tuple[float, torch.Tensor]:
    """The lowest cross-entropy that softmax(t * scores) reaches, and these probabilities (N, C)."""

    def loss(log_factor: float) -> float:
        return float(F.cross_entropy(scores * float(np.exp(log_factor)), target))

    found = minimize_scalar(loss, bounds=(0.0, 5.0), method="bounded")
    return float(found.fun), torch.softmax(scores * float(np.exp(found.x)), dim=1)


def _folds(groups: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.int64]:
    names, place = np.unique(groups, return_inverse=True)
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(names))
    return np.asarray(order[place] % FOLDS)


def _moments(features: npt.NDArray[np.float16]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and scale (D,) that standardise the features."""
    total, squares = (torch.zeros(features.shape[1], dtype=torch.float64) for _ in range(2))
    for start in range(0, len(features), _BLOCK):
        block = torch.from_numpy(features[start : start + _BLOCK].astype(np.float32)).double()
        total += block.sum(0)
        squares += block.square().sum(0)
    mean = total / len(features)
    deviation = (squares / len(features) - mean.square()).clamp(min=0).sqrt()
    return mean.float(), (deviation + 1e-3 * deviation.mean() + 1e-6).float()


def _standard(block: npt.NDArray[np.float16], mean: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (torch.from_numpy(block.astype(np.float32)) - mean) / scale


def _sums(
    features: npt.NDArray[np.float16],
    truth: torch.Tensor,
    rows: npt.NDArray[np.int64],
    mean: torch.Tensor,
    scale: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """X^T X (D, D) and X^T Y (D, C) of some images."""
    width = features.shape[1]
    gram, product = torch.zeros(width, width), torch.zeros(width, truth.shape[1])
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        standard = _standard(features[block], mean, scale)
        gram += standard.T @ standard
        product += standard.T @ truth[torch.from_numpy(block)]
    return gram, product
