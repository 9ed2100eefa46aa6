"""What a calibrated model can be asked beyond its classes, its answers, and what they assume.

Commands, the Python API and bundles answer by this file, which a bundle holds as it is.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from . import conformal  # a bundle holds this file as it is, in a package of another name
from .block import TrustBlock
from .conformal import SetKind, percent
from .familiarity import UNFAMILIAR

ABSTAIN = 0.9
"""The least probability for which a class is named, where a model may abstain and no level is given."""


class Ask(NamedTuple):
    """What a calibrated model is asked (see docs/trust.md).

    Attributes:
        conformal: the level of prediction sets, the share of images whose set holds the right class: 0.5 to 0.999.
        sets: 'lac' or 'raps'.
        abstain: the least probability for which a class is named; none is for an unfamiliar image either. Of the
            answers that are given, at least this share is right, where the calibration holds.
    """

    conformal: float | None = None
    sets: SetKind = "lac"
    abstain: float | None = None

    @property
    def anything(self) -> bool:
        """Whether it needs a calibration."""
        return self.conformal is not None or self.abstain is not None

    def check(self) -> None:
        """Raises ValueError for what no model can be asked."""
        if self.conformal is not None:
            conformal.check_level(self.conformal)
        if self.sets not in conformal.KINDS:
            raise ValueError(f"sets {self.sets!r}: expected {' or '.join(conformal.KINDS)}")
        if self.abstain is not None and not (math.isfinite(self.abstain) and 0 <= self.abstain <= 1):
            raise ValueError(f"abstain {self.abstain}: expected a probability, 0 to 1")


NOTHING_MORE = Ask()


class Answer(NamedTuple):
    """What a calibration adds to a prediction, by the names of its attributes there; ``set`` as class numbers."""

    set: list[int] | None
    unsure: str | None
    energy: float
    distance: float | None
    familiarity: float


def answers(
    block: TrustBlock,
    logits: npt.NDArray[Any],
    probability: list[float],
    ask: Ask = NOTHING_MORE,
    distances: npt.NDArray[np.float64] | None = None,
) -> list[Answer]:
    """What a calibration says of images.

    Args:
        block: the calibration.
        logits: (B, C).
        probability: of each image's most probable class, calibrated.
        ask: what is asked, checked.
        distances: (B,) to the neighbours in features, None where there are no features.
    """
    familiar = block.familiarity(logits, distances)
    inside = None if ask.conformal is None else block.sets(logits, ask.conformal, ask.sets)
    found = []
    for row, highest in enumerate(probability):
        share, members = float(familiar.share[row]), None
        if inside is not None:
            members = [i for i in np.argsort(-logits[row], kind="stable").tolist() if inside[row, i]]
        found.append(
            Answer(
                set=members,
                unsure=None if ask.abstain is None else _why_unsure(share, highest, ask.abstain),
                energy=float(familiar.energy[row]),
                distance=None if familiar.distance is None else float(familiar.distance[row]),
                familiarity=share,
            )
        )
    return found


def _why_unsure(share: float, probability: float, level: float) -> str:
    """Why no class is named for an image; '' where one is."""
    if share <= UNFAMILIAR:
        return f"unfamiliar: no more than {percent(UNFAMILIAR)} of the held-out images are as strange"
    return f"probability under {percent(level)}" if probability < level else ""


def assumptions(block: TrustBlock, ask: Ask, by_distance: bool = False) -> list[str]:
    """What the answers that are asked for mean and assume, a line each."""
    lines = []
    if ask.conformal is not None:
        promise = f"hold the right class of at least {percent(ask.conformal)} of images, not of each class"
        few = block.too_few(ask.conformal, ask.sets)
        lines.append(few or f"sets ({ask.sets}): {promise}; assuming that {block.assumption()}")
    if ask.abstain is not None:
        by = "feature distance" if by_distance else "energy (no features here)"
        lines.append(
            f"unsure: probability under {percent(ask.abstain)}, or stranger by {by} than {percent(1 - UNFAMILIAR)} of "
            f"the held-out images; assuming that {block.assumption()}"
        )
    return lines


def record(block: TrustBlock, ask: Ask, by_distance: bool = False) -> dict[str, Any]:
    """The same for a machine."""
    few = "" if ask.conformal is None else block.too_few(ask.conformal, ask.sets)
    return {
        "temperature": block.temperature,
        "num_images": block.num_images,
        "familiarity_by": "distance" if by_distance else "energy",
        "assumes": block.assumption(),
        **({} if ask.conformal is None else {"conformal": ask.conformal, "sets": ask.sets}),
        **({"too_few": few} if few else {}),
        **({} if ask.abstain is None else {"abstain": ask.abstain}),
    }
