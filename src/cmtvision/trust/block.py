"""What a card says of a model's answers: the block "trust" of model.json, and the arithmetic that serves by it.

A bundle holds this file and those it imports as they are, so that it answers as the run does.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from . import conformal, familiarity  # a bundle holds this file as it is, in a package of another name
from .order import OrderStatistics, is_number
from .probability import probabilities

LEAST_TEMPERATURE, MOST_TEMPERATURE = 0.01, 1_000.0
Logits = npt.NDArray[Any]


@dataclass(frozen=True)
class Distance:
    """What feature distances are compared with.

    Attributes:
        reference: of each held-out image to the others.
        neighbours: which nearest image counts, k.
        sha256: of the file with the features, which lies beside the card of a run.
    """

    reference: OrderStatistics
    neighbours: int
    sha256: str


class Familiarity(NamedTuple):
    """How familiar images are (see familiarity.py); arrays (B,).

    ``distance`` is None where no features are at hand; ``share`` is then by energy.
    """

    energy: npt.NDArray[np.float64]
    distance: npt.NDArray[np.float64] | None
    share: npt.NDArray[np.float64]


@dataclass(frozen=True)
class TrustBlock:
    """A calibration, fitted on held-out images.

    Attributes:
        temperature: the logits are divided by it.
        num_images: held-out images it was fitted on.
        split: which images: 'val', or 'all' and 'test' of data that has nothing else.
        chose_epoch: the same images also chose which epoch's weights are kept, which makes all of it a little
            optimistic.
        arithmetic: what the logits were computed in.
        loss, ece: (before, after): mean cross-entropy in nats and expected calibration error, each image by the
            temperature of the half that it is not in.
        lac, raps: scores of the held-out images' own classes.
        regularisation: of RAPS.
        energy: of the held-out images.
        distance: None where a model gives no features.
        notes: what a person should know, a sentence each.
    """

    temperature: float
    num_images: int
    split: str
    chose_epoch: bool
    arithmetic: str
    loss: tuple[float, float]
    ece: tuple[float, float]
    lac: OrderStatistics
    raps: OrderStatistics
    regularisation: conformal.Regularisation
    energy: OrderStatistics
    distance: Distance | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, block: Any) -> "TrustBlock":
        """From the JSON block. Raises ValueError, one line, where it makes no sense."""
        if not isinstance(block, Mapping):
            raise ValueError(f"trust: expected a block, got {type(block).__name__}")
        try:
            return cls(
                temperature=_between(block["temperature"], LEAST_TEMPERATURE, MOST_TEMPERATURE),
                num_images=_whole(block["num_images"]),
                split=str(block["split"])[:20],
                chose_epoch=bool(block["chose_epoch"]),
                arithmetic=str(block["arithmetic"])[:20],
                loss=_pair(block["loss"]),
                ece=_pair(block["ece"]),
                lac=_scores(block["lac"]),
                raps=_scores(block["raps"]),
                regularisation=conformal.Regularisation(
                    _whole(block["raps"]["k_reg"]), _between(block["raps"]["penalty"], 0.0, 1.0)
                ),
                energy=_scores(block["energy"]),
                distance=_distance(block.get("distance")),
                notes=tuple(str(note)[:1_000] for note in list(block.get("notes", ()))[:20]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            missing = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"trust: {missing}; calibrate the model again") from error
        except ValueError as error:
            raise ValueError(f"trust: {error}; calibrate the model again") from error

    def to_dict(self) -> dict[str, Any]:
        """The JSON block."""
        distance = None
        if self.distance is not None:
            distance = {**_listed(self.distance.reference), "neighbours": self.distance.neighbours}
            distance["sha256"] = self.distance.sha256
        return {
            "temperature": self.temperature,
            "num_images": self.num_images,
            "split": self.split,
            "chose_epoch": self.chose_epoch,
            "arithmetic": self.arithmetic,
            "loss": list(self.loss),
            "ece": list(self.ece),
            "lac": _listed(self.lac),
            "raps": {**_listed(self.raps), **self.regularisation._asdict()},
            "energy": _listed(self.energy),
            "distance": distance,
            "notes": list(self.notes),
        }

    def summary(self) -> dict[str, Any]:
        """The figures without the lists, ready for JSON."""
        found = self.to_dict()
        for name in ("lac", "energy"):
            del found[name]
        found["raps"] = {name: found["raps"][name] for name in ("k_reg", "penalty")}
        found["distance"] = None if self.distance is None else {"neighbours": self.distance.neighbours}
        return found

    def without_distance(self) -> "TrustBlock":
        """The same for a model that gives logits alone."""
        return replace(self, distance=None)

    def probabilities(self, logits: Logits) -> npt.NDArray[np.float64]:
        """Calibrated, (B, C) of logits (B, C)."""
        return probabilities(logits, self.temperature)

    def sets(
        self, logits: Logits, level: float, kind: conformal.SetKind = "lac", *, allow_empty: bool = False
    ) -> npt.NDArray[np.bool_]:
        """(B, C) which classes are in each image's set, of logits (B, C).

        Raises:
            ValueError: a level outside 0.5 to 0.999, or an unknown kind.
        """
        odds = self.probabilities(logits)
        return conformal.members(self.scores(odds, kind), self.threshold(level, kind), odds, allow_empty=allow_empty)

    def scores(self, odds: npt.NDArray[np.float64], kind: conformal.SetKind) -> npt.NDArray[np.float64]:
        """(B, C) of calibrated probabilities (B, C). Raises ValueError for an unknown kind."""
        if kind not in conformal.KINDS:
            raise ValueError(f"sets {kind!r}: expected {' or '.join(conformal.KINDS)}")
        return conformal.lac_scores(odds) if kind == "lac" else conformal.raps_scores(odds, self.regularisation)

    def threshold(self, level: float, kind: conformal.SetKind) -> float:
        """The largest score in a set; infinite where the held-out images are too few to promise the level."""
        return (self.raps if kind == "raps" else self.lac).quantile(conformal.check_level(level))

    def too_few(self, level: float, kind: conformal.SetKind) -> str:
        """What to say where every set is all classes, '' where it is not."""
        return conformal.too_few((self.raps if kind == "raps" else self.lac).num_images, level)

    def familiarity(self, logits: Logits, distances: npt.NDArray[np.float64] | None = None) -> Familiarity:
        """Of logits (B, C), and of distances (B,) to the neighbours where there are any."""
        energy = familiarity.energy(logits)
        if distances is None or self.distance is None:
            return Familiarity(energy, None, self.energy.share_at_least(energy))
        return Familiarity(energy, distances, self.distance.reference.share_at_least(distances))

    def assumption(self) -> str:
        """What all of it assumes, in a sentence."""
        these = f"the {self.num_images:,} held-out images of the calibration (exchangeable with them)"
        chosen = "; those also chose the epoch, which makes them slightly optimistic" if self.chose_epoch else ""
        return f"new images are like {these}{chosen}"


def _listed(scores: OrderStatistics) -> dict[str, Any]:
    return {"num_images": scores.num_images, "values": list(scores.values)}


def _scores(block: Mapping[str, Any]) -> OrderStatistics:
    return OrderStatistics.from_list(block["values"], block["num_images"])


def _distance(block: Any) -> Distance | None:
    if block is None:
        return None
    sha256 = str(block["sha256"])
    if len(sha256) != 64:
        raise ValueError("distance without the SHA-256 of its file")
    return Distance(_scores(block), _whole(block["neighbours"]), sha256)


def _between(value: Any, least: float, most: float) -> float:
    if not is_number(value) or not least <= value <= most:
        raise ValueError(f"got {str(value)[:30]}, expected a number from {least:g} to {most:g}")
    return float(value)


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"got {str(value)[:30]}, expected a whole number of at least 1")
    return value


def _pair(values: Any) -> tuple[float, float]:
    if not isinstance(values, list) or len(values) != 2 or not all(is_number(value) for value in values):
        raise ValueError(f"got {str(values)[:30]}, expected two numbers")
    return float(values[0]), float(values[1])
