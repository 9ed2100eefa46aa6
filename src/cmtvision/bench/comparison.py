"""What a comparison found: a row for each model, the order of the table, the Pareto fronts, plain data to write down.

Rows stand by multiply-adds, then by name, and those that failed stand last, by name: nothing measured has a say, so
the order is the same in every run.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any, Literal

from cmtvision.bench.target import AS_TRAINED
from cmtvision.bench.timing import spread

Kind = Literal["trained", "published", "run"]
Cost = Literal["gmacs", "latency"]


@dataclass(frozen=True)
class Accuracy:
    """A top-1 accuracy in percent and where it comes from.

    Attributes:
        kind: 'trained' here, for this comparison; 'published' by somebody; or of a finished 'run', on its own photos.
        percent: the figure; over several seeds their mean.
        source: who says so, or what was counted.
        low, high: its 95% interval over seeds, None where there is none.
        counts: (recognised, of how many) photos, for each seed.
        system: of a published one, the name of the network in the literature.
    """

    kind: Kind
    percent: float
    source: str
    low: float | None = None
    high: float | None = None
    counts: tuple[tuple[int, int], ...] = ()
    system: str | None = None


@dataclass(frozen=True)
class Row:
    """One model; None for what is not known of it.

    Attributes:
        model: its name in the comparison.
        architecture: its registered name.
        family: the kind of network that it is.
        input_size: (C, H, W) of one image, in pixels.
        parameters: learned values.
        macs: multiply-adds for one image.
        activations: output elements of convolutions and matrix products for one image.
        memory_bytes_batch_1, memory_bytes: peak memory at batch 1 and at the comparison's batch.
        latency: seconds of a forward pass of one image, for each round.
        batch_seconds: seconds of a forward pass of the batch, for each round.
        published: published accuracy at this input size.
        trained: accuracy of trainings made for this comparison.
        own: accuracy of a finished run on its own held-out photos.
        training_failure: why it could not be trained.
        failure: why it could not be measured.
        runtime, precision: in which it was timed; 'as-trained' is PyTorch as the engine runs it.
        refused: runtimes that did not take it, with the precision, and why.
        of_paper: whether it is one of the systems that CMT's paper compares itself with (models/peers/systems.py).
        front: costs ('gmacs', 'latency') for whose Pareto front against accuracy it stands.
        paper_front: the same among the systems of the paper, where there are others.
    """

    model: str
    architecture: str
    family: str = ""
    input_size: tuple[int, int, int] | None = None
    parameters: int | None = None
    macs: int | None = None
    activations: int | None = None
    memory_bytes_batch_1: int | None = None
    memory_bytes: int | None = None
    latency: tuple[float, ...] = ()
    batch_seconds: tuple[float, ...] = ()
    published: Accuracy | None = None
    trained: Accuracy | None = None
    own: Accuracy | None = None
    training_failure: str | None = None
    failure: str | None = None
    runtime: str = AS_TRAINED
    precision: str = "fp32"
    refused: dict[str, str] = field(default_factory=dict)
    of_paper: bool = False
    front: tuple[Cost, ...] = ()
    paper_front: tuple[Cost, ...] = ()

    @property
    def measured(self) -> bool:
        """Whether everything about it was measured."""
        return self.failure is None

    def accuracy(self, kind: Kind | None) -> Accuracy | None:
        """Its accuracy of a kind."""
        return {"trained": self.trained, "published": self.published, "run": self.own, None: None}[kind]


def in_order(rows: Sequence[Row]) -> list[Row]:
    """Rows as the table shows them."""
    return sorted(rows, key=lambda row: (not row.measured, row.macs or 0 if row.measured else 0, row.model))


def chosen_kind(rows: Sequence[Row]) -> Kind | None:
    """The accuracy that models are compared by: trained here, else published, else that of runs; None without any.

    Figures of different kinds are of different photos, so only those of one kind can be set against each other; those
    of runs only where all have the same photos.
    """
    known: dict[Kind, set[str]] = {"trained": set(), "published": set(), "run": set()}
    for row in rows:
        for kind, sources in known.items():
            accuracy = row.accuracy(kind)
            if row.measured and accuracy is not None:
                sources.add(accuracy.source)
    if len(known["run"]) > 1:
        known["run"] = set()
    return next((kind for kind, sources in known.items() if sources), None)


def with_fronts(rows: Sequence[Row]) -> list[Row]:
    """Rows with the Pareto fronts marked, of accuracy against multiply-adds and against median latency.

    Where there are systems of CMT's paper and others, the front of the paper's systems is marked too.
    """
    kind = chosen_kind(rows)
    known = {place for place, row in enumerate(rows) if row.measured and row.accuracy(kind) is not None}
    of_paper = {place for place in known if rows[place].of_paper}
    fronts, paper = _fronts(rows, kind, known), _fronts(rows, kind, of_paper if of_paper < known else set())
    return [
        replace(row, front=_costs(fronts, place), paper_front=_costs(paper, place)) for place, row in enumerate(rows)
    ]


def _fronts(rows: Sequence[Row], kind: Kind | None, among: set[int]) -> dict[Cost, set[int]]:
    places = sorted(among)
    gains = [accuracy.percent for place in places if (accuracy := rows[place].accuracy(kind)) is not None]
    fronts: dict[Cost, set[int]] = {}
    for cost in ("gmacs", "latency"):
        points = [(_cost(rows[place], cost), gain) for place, gain in zip(places, gains, strict=True)]
        fronts[cost] = {places[i] for i in pareto_front(points)}
    return fronts


def _costs(fronts: dict[Cost, set[int]], place: int) -> tuple[Cost, ...]:
    return tuple(cost for cost, front in fronts.items() if place in front)


def _cost(row: Row, cost: Cost) -> float:
    return float(row.macs or 0) if cost == "gmacs" else median(row.latency)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Places of the points on the front, by rising cost.

    Args:
        points: (cost, gain) of each; less cost is better, more gain is better.

    Returns:
        A point is on the front unless another costs no more and gains no less, one of the two strictly. Equal points
        are on it together, or not at all.
    """
    front: list[int] = []
    best = float("-inf")
    order = sorted(range(len(points)), key=lambda place: (points[place][0], -points[place][1]))
    for place in order:
        cost, gain = points[place]
        if gain > best:
            front.append(place)
            best = gain
        elif front and (cost, gain) == points[front[-1]]:
            front.append(place)
    return front


def row_record(row: Row, batch: int) -> dict[str, Any]:
    """A row as plain data, with the figures that people read: GMACs, millions, images a second."""
    rates = [batch / seconds for seconds in row.batch_seconds]
    return {
        **asdict(row),
        "input_size": list(row.input_size) if row.input_size else None,
        "gmacs": None if row.macs is None else row.macs / 1e9,
        "activations_m": None if row.activations is None else row.activations / 1e6,
        "latency": list(row.latency),
        "latency_seconds": spread(row.latency),
        "batch_seconds": list(row.batch_seconds),
        "images_per_second": spread(rates),
        "front": list(row.front),
        "paper_front": list(row.paper_front),
    }
