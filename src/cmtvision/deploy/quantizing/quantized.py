"""What quantisation measured and decided: layers, accuracy before and after on the same images, candidates, files."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Kind = Literal["conv", "1x1 conv", "depthwise conv", "linear", "attention", "addition", "other"]
Rest = Literal["fp32", "bf16"]
_Z = 1.959963984540054  # of a 95% interval


@dataclass
class Layer:
    """An operation of the graph that could compute in 8 bits.

    Attributes:
        name: its name in the graph.
        kind: what it computes.
        group: layers of one kind and one shape, which are measured and decided together.
        weights: numbers in its weight; 0 for operations without.
        noise: sensitivity: with this group alone in 8 bits, the mean square change of the logits over their mean
            square, on calibration images.
        ms_int8, ms_rest: milliseconds in the 8-bit network and in the one that is not quantised, by the runtime's own
            profile; conversions and other operations in front of a layer count to it.
        int8: what was decided.
        why: and why.
    """

    name: str
    kind: Kind
    group: str
    weights: int
    noise: float | None = None
    ms_int8: float | None = None
    ms_rest: float | None = None
    int8: bool = True
    why: str = ""


@dataclass(frozen=True)
class Accuracy:
    """Right decisions before and after, on the same images (of a multi-label model: on each image's classes).

    Attributes:
        num_decisions: images; of a multi-label model images times classes.
        before, after: right decisions.
        lost: right before and wrong after.
        gained: wrong before and right after.
    """

    num_decisions: int
    before: int
    after: int
    lost: int
    gained: int

    @classmethod
    def compare(cls, before: npt.NDArray[np.bool_], after: npt.NDArray[np.bool_]) -> "Accuracy":
        """From what was right, decision by decision."""
        lost, gained = int((before & ~after).sum()), int((~before & after).sum())
        return cls(before.size, int(before.sum()), int(after.sum()), lost, gained)

    @property
    def drop(self) -> float:
        """Points lost, 100 being all decisions; negative where accuracy rose."""
        return 100 * (self.lost - self.gained) / self.num_decisions

    @property
    def interval(self) -> tuple[float, float]:
        """A 95% interval of the drop in points, paired: only changed decisions count (Bonett and Price, 2012)."""
        total = self.num_decisions + 2
        lost, gained = (self.lost + 1) / total, (self.gained + 1) / total
        spread = _Z * math.sqrt((lost + gained - (lost - gained) ** 2) / total)
        return 100 * (lost - gained - spread), 100 * (lost - gained + spread)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {**vars(self), "drop": self.drop, "interval": list(self.interval)}


@dataclass
class Candidate:
    """A choice of layers, and what it measured.

    Attributes:
        name: how it was chosen.
        int8: names of its 8-bit layers.
        put_back: groups put back for accuracy.
        accuracy: None where it was not measured.
        ms: median time of a batch in milliseconds; None for a candidate that missed the budget.
        within: whether it meets the budget.
    """

    name: str
    int8: frozenset[str]
    put_back: list[str] = field(default_factory=list)
    accuracy: Accuracy | None = None
    ms: float | None = None
    within: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; the layers as their number."""
        accuracy = None if self.accuracy is None else self.accuracy.to_dict()
        return {**vars(self), "int8": len(self.int8), "accuracy": accuracy}


@dataclass(frozen=True)
class Speed:
    """Times of one batch in milliseconds, medians of interleaved rounds, all cores of the process.

    Attributes:
        batch_size: images at a time.
        int8: the network that was written.
        rest: the same not quantised, in the precision of the rest.
        fp32: the same in fp32.
        ratio: rest / int8, the median of the rounds' own ratios.
    """

    batch_size: int
    int8: float
    rest: float
    fp32: float
    ratio: float


@dataclass(frozen=True)
class Quantized:
    """A quantised export.

    Attributes:
        folder: holds the runtime's files, model.json and quantization.json.
        runtime: 'onnx' or 'openvino'.
        rest: precision of what is not in 8 bits.
        weight_only: only the stored weights are in 8 bits.
        layers: the table.
        accuracy: fp32 export against the quantised files.
        num_images: images that it was measured on.
        num_calibration: training images that the ranges come from; 0 for weight_only.
        bytes_before, bytes_after: all files of the fp32 export and of this one that the runtime opens.
        speed: None where it was not measured.
        candidates: the choices that were compared.
    """

    folder: Path
    runtime: str
    rest: Rest
    weight_only: bool
    layers: list[Layer]
    accuracy: Accuracy
    num_images: int
    num_calibration: int
    bytes_before: int
    bytes_after: int
    speed: Speed | None
    candidates: list[Candidate]

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON: what quantization.json holds."""
        return {
            **vars(self),
            "folder": str(self.folder),
            "layers": [vars(layer) for layer in self.layers],
            "groups": group_rows(self.layers),
            "accuracy": self.accuracy.to_dict(),
            "speed": None if self.speed is None else vars(self.speed),
            "candidates": [one.to_dict() for one in self.candidates],
        }


def group_rows(layers: list[Layer]) -> list[dict[str, Any]]:
    """The table by groups, in the order of the graph: times are sums over a group's layers."""
    rows: dict[str, dict[str, Any]] = {}
    for layer in layers:
        row = rows.setdefault(
            layer.group,
            {"group": layer.group, "kind": layer.kind, "layers": 0, "weights": 0, "noise": layer.noise,
             "ms_int8": None, "ms_rest": None, "int8": layer.int8, "why": layer.why},
        )  # fmt: skip
        row["layers"] += 1
        row["weights"] += layer.weights
        for key in ("ms_int8", "ms_rest"):
            value = getattr(layer, key)
            if value is not None:
                row[key] = (row[key] or 0.0) + value
    return list(rows.values())
