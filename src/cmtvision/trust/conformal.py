"""Prediction sets with a promised coverage: split conformal prediction, with the scores LAC and RAPS.

For an image x with probabilities p_1 >= p_2 >= ... >= p_C (sorted) and a class y at place r(y) among them:

    LAC    s(x, y) = 1 - p_r(y)
    RAPS   s(x, y) = p_1 + ... + p_(r(y) - 1) + penalty * max(0, r(y) - k_reg)

and the set is {y : s(x, y) <= q}, q being the quantile of s(x_i, y_i) over the held-out images (order.py). The promise:
if new images are exchangeable with the held-out ones, the set contains the right class for at least the share ``level``
of them, on average over images; it says nothing of a single class, or of images of another kind.

LAC (Sadinle, Lei and Wasserman, Least ambiguous set-valued classifiers with bounded error levels, JASA 2019) gives the
smallest sets on average. RAPS (Angelopoulos, Bates, Jordan and Malik, Uncertainty sets for image classifiers using
conformal prediction, ICLR 2021) gives larger sets for harder images. The paper adds p_r(y) times a random number to the
score. Ours adds none of it: one image has one answer, which is as valid, and the most probable class is in every set.
"""

import math
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from .order import OrderStatistics, least_images  # a bundle holds this file as it is, in a package of another name

SetKind = Literal["lac", "raps"]
KINDS: tuple[str, ...] = get_args(SetKind)
LEAST_LEVEL, MOST_LEVEL = 0.5, 0.999
# A threshold is itself the score of an image, and the same image has another one in another runtime, by so much: its
# set stays the same, and a set that is larger by a tie covers no less.
SLACK = 1e-5
PENALTIES = (0.001, 0.01, 0.1, 0.2, 0.5)  # those of the paper
TUNED_AT = 0.9  # the level for which k_reg and the penalty are chosen; they are valid at any
_LEAST_TO_TUNE = 500
Probabilities = npt.NDArray[np.float64]


class Regularisation(NamedTuple):
    """What RAPS adds to the score of a class at place r: penalty * max(0, r - k_reg)."""

    k_reg: int = 1
    penalty: float = 0.01


def check_level(level: float) -> float:
    """The level itself. Raises ValueError where it is no share that can be promised."""
    if not isinstance(level, int | float) or not LEAST_LEVEL <= level <= MOST_LEVEL:
        raise ValueError(f"level {level}: expected a share of images from {LEAST_LEVEL} to {MOST_LEVEL}, such as 0.9")
    return float(level)


def lac_scores(probabilities: Probabilities) -> Probabilities:
    """(B, C) of every class, from probabilities (B, C)."""
    return 1 - probabilities


def raps_scores(probabilities: Probabilities, how: Regularisation) -> Probabilities:
    """(B, C) of every class, from probabilities (B, C)."""
    order = np.argsort(-probabilities, axis=1, kind="stable")  # (B, C)
    ordered = np.take_along_axis(probabilities, order, axis=1)
    sums = np.cumsum(ordered, axis=1) - ordered  # of the classes in front
    places = np.arange(1, probabilities.shape[1] + 1)
    scores = np.empty_like(probabilities)
    np.put_along_axis(scores, order, sums + how.penalty * np.maximum(0, places - how.k_reg), axis=1)
    return scores


def of_the_class(scores: npt.NDArray[Any], targets: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """(N,) the score of each image's own class, from scores (N, C)."""
    return np.take_along_axis(scores, targets[:, None], axis=1)[:, 0]


def members(
    scores: Probabilities, threshold: float, probabilities: Probabilities, *, allow_empty: bool = False
) -> npt.NDArray[np.bool_]:
    """(B, C) which classes are in the set of each image.

    Args:
        scores: (B, C) of every class.
        threshold: the quantile; infinite for all classes.
        probabilities: (B, C); the most probable class is in every set.
        allow_empty: leave a set empty where even the most probable class is out.
    """
    inside = scores <= threshold + SLACK
    if not allow_empty:
        inside[np.arange(len(inside)), probabilities.argmax(axis=1)] = True
    return np.asarray(inside)


def choose_regularisation(
    probabilities: Probabilities, targets: npt.NDArray[np.int64], seed: int = 0
) -> tuple[Regularisation, npt.NDArray[np.bool_]]:
    """k_reg and penalty by a fifth of the images (the paper's appendix E), which then count for no quantile.

    k_reg is the place within which the right class is for 90% of them; the penalty the one with the smallest sets.

    Returns:
        Both, and (N,) which images are left for the quantiles. Where there are fewer than 500 images, fixed values
        and all images.
    """
    everyone = np.ones(len(targets), dtype=bool)
    if len(targets) < _LEAST_TO_TUNE:
        return Regularisation(), everyone
    chosen = np.random.default_rng(seed).permutation(len(targets))[: len(targets) // 5]
    odds, own = probabilities[chosen], of_the_class(probabilities[chosen], targets[chosen])
    places = 1 + (odds > own[:, None]).sum(axis=1)
    k_reg = int(OrderStatistics.of(places).quantile(TUNED_AT))
    sizes = []
    for penalty in PENALTIES:
        scores = raps_scores(odds, Regularisation(k_reg, penalty))
        threshold = OrderStatistics.of(of_the_class(scores, targets[chosen])).quantile(TUNED_AT)
        sizes.append((float(members(scores, threshold, odds).sum(axis=1).mean()), penalty))
    everyone[chosen] = False
    return Regularisation(k_reg, min(sizes)[1]), everyone


def too_few(num_images: int, level: float) -> str:
    """What to say where so few images cannot promise a level, so that each set is all classes; '' where they can."""
    needed = least_images(level)
    if num_images >= needed:
        return ""
    return (
        f"{num_images} held-out image{'s' * (num_images != 1)} cannot promise {percent(level)}, for which {needed} are "
        "needed: every set is all classes"
    )


def percent(level: float) -> str:
    """A level in words: '90%', '99.9%'."""
    return f"{math.floor(level * 1e4 + 0.5) / 1e2:g}%"
