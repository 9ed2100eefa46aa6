"""What was timed, as figures: percentiles of passes, spread over rounds, ratios, and how near the machine's limit.

A form is a network as one runtime runs it: in a precision, on so many threads. A cell is a form at one batch size.

    FLOP/s    = 2 * MACs * images/s
    bytes     = weights once a pass + 2 * activations an image (written and read) + the image itself
    intensity = FLOPs / bytes of a pass
    roof      = min(matrix products, intensity * caches)            (all in one run on as many threads)

Activations are the outputs of convolutions and matrix products, those of attention included: what a runtime that fuses
everything between two products still has to move, from caches at the best. MACs and activations are those of the
network as it is written down, whatever a runtime makes of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np

from cmtvision.bench.comparison import spread

BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "amp": 2, "int8": 1}
"""Of an activation in each precision; of a weight too, but that amp keeps weights in float32."""

PASSES_FOR = {"p50": 1, "p95": 20, "p99": 100}
"""A percentile needs so many passes that at least one lies above it."""


@dataclass(frozen=True)
class Work:
    """What one image costs a network on paper; None for what is not known of it.

    Attributes:
        input_size: (C, H, W) in pixels.
        parameters: learned values and buffers.
        macs: multiply-adds.
        activations: output elements of convolutions and matrix products.
    """

    input_size: tuple[int, int, int] | None = None
    parameters: int | None = None
    macs: int | None = None
    activations: int | None = None

    def bytes_moved(self, batch: int, precision: str) -> int | None:
        """Bytes of a pass that no fusion saves; None where the network or the precision is not known."""
        if self.input_size is None or self.parameters is None or self.activations is None or precision not in BYTES:
            return None
        channels, height, width = self.input_size
        weight = BYTES["fp32"] if precision == "amp" else BYTES[precision]
        image = 2 * self.activations * BYTES[precision] + channels * height * width * BYTES["fp32"]
        return self.parameters * weight + batch * image


@dataclass
class Samples:
    """Seconds of single forward passes, round by round."""

    rounds: list[list[float]] = field(default_factory=list)

    @property
    def passes(self) -> list[float]:
        """All of them."""
        return [seconds for one in self.rounds for seconds in one]

    def rates(self, batch: int) -> list[float]:
        """Images a second in each round."""
        return [batch * len(one) / sum(one) for one in self.rounds]

    def latency(self) -> dict[str, float | None]:
        """Seconds: p50, p95, p99 (None where there were too few passes for it), least and most."""
        passes = self.passes
        found: dict[str, float | None] = {
            name: percentile(passes, float(name[1:])) if len(passes) >= needed else None
            for name, needed in PASSES_FOR.items()
        }
        return {**found, "min": min(passes), "max": max(passes)}


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which so many percent lie, linear between two neighbours (NumPy's default).

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("got no values, expected at least one")
    return float(np.percentile(values, percent))


def times_as_fast(own: Sequence[float], base: Sequence[float]) -> dict[str, float]:
    """How many times a rate is another's: of the medians over rounds, and the extremes round by round."""
    by_round = [mine / other for mine, other in zip(own, base, strict=False)]
    return {"median": median(own) / median(base), "min": min(by_round), "max": max(by_round)}


def timing_facts(samples: Samples, batch: int) -> dict[str, Any]:
    """The part of a row that was timed."""
    return {
        "passes": len(samples.passes),
        "latency_seconds": samples.latency(),
        "images_per_second": spread(samples.rates(batch)),
        "rounds": [
            {"passes": len(one), "median_seconds": median(one), "images_per_second": rate}
            for one, rate in zip(samples.rounds, samples.rates(batch), strict=True)
        ],
    }


def kind_of(precision: str) -> str:
    """The products that limit a precision: autocast's are bfloat16's."""
    return "bf16" if precision == "amp" else precision


def limit_facts(
    images_per_second: float, work: Work, batch: int, precision: str, limits: Mapping[str, float]
) -> dict[str, float | None]:
    """The part of a row that sets it against the machine.

    Args:
        images_per_second: the median over rounds.
        work: of one image.
        batch: images of a pass.
        precision: a key of ``BYTES``.
        limits: of the same threads: FLOP/s of matrix products by precision; 'cache' in bytes/s, and 'copy', of memory,
            which counts where caches were not measured.
    """
    moved = work.bytes_moved(batch, precision)
    rate = None if work.macs is None else work.macs * images_per_second
    flops = None if rate is None else 2 * rate
    intensity = None if moved is None or work.macs is None else 2 * work.macs * batch / moved
    products = limits.get(kind_of(precision))
    moves = max((limits[name] for name in ("copy", "cache") if name in limits), default=None)
    roof = min(products, intensity * moves) if products and moves and intensity else None
    return {
        "macs_per_second": rate,
        "flops_per_second": flops,
        "bytes_moved": moved,
        "intensity": intensity,
        "fraction_of_limit": flops / products if flops is not None and products else None,
        "fraction_of_roof": flops / roof if flops is not None and roof else None,
    }
