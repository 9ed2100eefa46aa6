"""Whether two models give the same calibrated answers: probabilities and prediction sets of the same images."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cmtvision.artefact import Predictor
from cmtvision.trust.block import TrustBlock
from cmtvision.trust.conformal import SetKind

LEVELS = (0.8, 0.9, 0.95)
_KINDS: tuple[SetKind, ...] = ("lac", "raps")
Logits = npt.NDArray[np.float32]


class Answers(NamedTuple):
    """What was compared.

    ``probability`` is the largest |difference| of calibrated probabilities; ``sets_alike`` the share of images whose
    sets are equal, of both kinds at every level of LEVELS; ``differing`` the images with a set that differs by more
    than the allowed difference of the logits explains.
    """

    probability: float
    sets_alike: float
    differing: int


def differing_calibration(a: Predictor, b: Predictor) -> str:
    """Why the second cannot give the calibrated answers of the first, '' where it can, or where there are none."""
    if a.trust is None or b.trust is not None or b.task == "multi-label":
        return ""
    return "the first is calibrated and the second is not; export it again, or calibrate it"


def compare_answers(a: TrustBlock, b: TrustBlock, one: Logits, other: Logits, allowed: float) -> Answers:
    """Compare the answers of two calibrations to the logits (N, C) of two models.

    Args:
        a, b: their calibrations.
        one, other: their logits of the same images.
        allowed: the difference of logits that is permitted.
    """
    odds = a.probabilities(one)
    # a change of all logits by at most d changes no sum of probabilities by more than d / 2T
    slack = allowed / min(a.temperature, b.temperature)
    alike, differing = np.ones(len(one), dtype=bool), np.zeros(len(one), dtype=bool)
    for kind in _KINDS:
        scores = a.scores(odds, kind)
        for level in LEVELS:
            unlike = a.sets(one, level, kind) != b.sets(other, level, kind)  # (N, C)
            alike &= ~unlike.any(axis=1)
            far = np.abs(scores - a.threshold(level, kind)) > slack
            differing |= (unlike & far).any(axis=1) & ~_swapped(unlike, odds, slack)
    return Answers(float(np.abs(odds - b.probabilities(other)).max()), float(alike.mean()), int(differing.sum()))


def _swapped(unlike: npt.NDArray[np.bool_], odds: npt.NDArray[Any], slack: float) -> npt.NDArray[np.bool_]:
    """(N,) whether the classes that differ are as probable as each other, so that either may come first."""
    highest = np.where(unlike, odds, -np.inf).max(axis=1)
    lowest = np.where(unlike, odds, np.inf).min(axis=1)
    return np.asarray((unlike.sum(axis=1) == 2) & (highest - lowest <= slack))
