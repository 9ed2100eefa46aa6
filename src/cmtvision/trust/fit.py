"""A calibration fitted on the logits of held-out images: temperature, scores of prediction sets, familiarity."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cmtvision.trust import conformal, familiarity
from cmtvision.trust.block import TrustBlock
from cmtvision.trust.calibration import expected_calibration_error
from cmtvision.trust.order import OrderStatistics, least_images
from cmtvision.trust.probability import probabilities
from cmtvision.trust.temperature import LEAST_IMAGES, fit_temperature, mean_loss

MOST_IMAGES = 10_000
_MOST_LOGITS = 10_000_000  # 80 MB in float64
MOST_FEATURES = 2_000
_MOST_FEATURE_VALUES = 8_000_000  # 16 MB in float16


class Bank(NamedTuple):
    """Features of held-out images that others are compared with.

    Attributes:
        features: (M, D) float16 of unit length.
        neighbours: k.
        reference: each one's distance to the others.
    """

    features: npt.NDArray[np.float16]
    neighbours: int
    reference: OrderStatistics


def num_to_fit(num_images: int, num_classes: int) -> int:
    """How many of the held-out images are used: at most 10,000, fewer where there are more than 1,000 classes."""
    return min(num_images, MOST_IMAGES, max(1, _MOST_LOGITS // max(1, num_classes)))


def fit_block(
    logits: npt.NDArray[np.float32],
    targets: npt.NDArray[np.int64],
    *,
    split: str = "val",
    chose_epoch: bool = False,
    arithmetic: str = "fp32",
) -> TrustBlock:
    """Fit everything that needs logits alone.

    Args:
        logits: (N, C) of held-out images.
        targets: (N,) their class numbers.
        split, chose_epoch, arithmetic: see ``TrustBlock``.

    Raises:
        ValueError: no images, or logits that are no numbers.
    """
    if not len(logits) or not np.isfinite(logits).all():
        raise ValueError("no images to calibrate on" if not len(logits) else "logits that are no numbers")
    temperature = fit_temperature(logits, targets)
    odds = probabilities(logits, temperature)
    how, counted = conformal.choose_regularisation(odds, targets)
    lac = 1 - conformal.of_the_class(odds, targets)
    raps = conformal.of_the_class(conformal.raps_scores(odds[counted], how), targets[counted])
    before, after = measured(logits, targets)
    return TrustBlock(
        temperature=round(temperature, 6),
        num_images=len(logits),
        split=split,
        chose_epoch=chose_epoch,
        arithmetic=arithmetic,
        loss=(before[0], after[0]),
        ece=(before[1], after[1]),
        lac=OrderStatistics.of(lac),
        raps=OrderStatistics.of(raps),
        regularisation=how,
        energy=OrderStatistics.of(familiarity.energy(logits)),
        notes=tuple(_notes(len(logits))),
    )


def measured(
    logits: npt.NDArray[np.float32], targets: npt.NDArray[np.int64], seed: int = 0
) -> tuple[tuple[float, float], tuple[float, float]]:
    """(loss, calibration error) before and after, each image by the temperature of the half that it is not in."""
    first = np.zeros(len(logits), dtype=bool)
    first[np.random.default_rng(seed).permutation(len(logits))[: len(logits) // 2]] = True
    losses, confidence = [], np.empty(len(logits))
    for half in (first, ~first):
        if not half.any():
            continue
        temperature = fit_temperature(logits[~half], targets[~half])
        losses.append(mean_loss(logits[half], targets[half], temperature) * half.mean())
        confidence[half] = probabilities(logits[half], temperature).max(axis=1)
    right = logits.argmax(axis=1) == targets
    plain = expected_calibration_error(probabilities(logits).max(axis=1), right)
    return (mean_loss(logits, targets), plain), (float(sum(losses)), expected_calibration_error(confidence, right))


def fit_bank(features: npt.NDArray[Any], seed: int = 0) -> Bank | None:
    """The features that are kept, at most 2,000 images of them; None where there are too few or they are no numbers.

    Args:
        features: (N, D) of held-out images.
        seed: which are kept.
    """
    most = min(MOST_FEATURES, _MOST_FEATURE_VALUES // max(1, features.shape[1]))
    if min(most, len(features)) < least_images(1 - familiarity.UNFAMILIAR) or not np.isfinite(features).all():
        return None
    kept = np.sort(np.random.default_rng(seed).permutation(len(features))[:most])
    bank = familiarity.of_unit_length(features[kept]).astype(np.float16)
    neighbours = min(familiarity.NEIGHBOURS, len(bank) - 1)
    distances = familiarity.neighbour_distance(bank, bank, neighbours, own=True)
    return Bank(bank, neighbours, OrderStatistics.of(distances))


def _notes(num_images: int) -> list[str]:
    notes = []
    if num_images < LEAST_IMAGES:
        notes.append(f"{num_images} held-out images are too few for a temperature ({LEAST_IMAGES} needed): it is 1")
    needed = least_images(1 - familiarity.UNFAMILIAR)
    if num_images < needed:
        notes.append(
            f"{num_images} held-out images are too few to call an image unfamiliar, for which {needed} are needed"
        )
    return notes
