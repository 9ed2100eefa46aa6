"""Compound scaling (CMT paper): one number, phi, makes a network deeper, wider and finer at once.

    depth x alpha^phi, width x beta^phi, resolution x gamma^phi;  alpha = 1.2, beta = 1.3, gamma = 1.15

The paper holds alpha * beta^1.5 * gamma^2 ~ 2.5, so a step of 1 in phi should cost 2.5 times the multiply-adds; the
product of its own coefficients is 2.35. Both predictions are shown with the true count here. The base is CMT-S;
``paper_fits`` shows how close the paper's other networks are to the law. The released code has the networks only, not
the law.

Real networks need whole numbers. Rounded to the nearest:
- depths to whole blocks, at least one per stage;
- widths through the width of one attention head, which all stages of a network share: to an even number, at least 8,
  times the stage's heads. So heads divide widths, and widths that double from stage to stage keep doubling;
- the stem's width to an even number, at least 8;
- the resolution to a multiple of 32 pixels (the strides of the network), at least 32.
Heads, key strides k, R, the width of the head and its dropout are the base's. So cost is a step function of phi.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any

from cmtvision.errors import ConfigError
from cmtvision.models.analysis.count import count, total
from cmtvision.models.cmt import CMT
from cmtvision.models.cmt.variants import VARIANTS, Variant

ALPHA, BETA, GAMMA = 1.2, 1.3, 1.15
NOMINAL_GROWTH = 2.5
GROWTH = ALPHA * BETA**1.5 * GAMMA**2
"""What a step of 1 in phi should cost: as the paper writes it, and the product of its coefficients (2.35)."""
MIN_PHI, MAX_PHI = -6.0, 6.0
"""Where networks end to make sense: at -6 CMT-S has one block in three of its stages, and most of its parameters in
the classifier; at 6 it has 1.6 thousand million parameters."""

_WIDTH_STEP, _MIN_WIDTH = 2, 8
_PIXEL_STEP = 32
_MOST_TRIES = 60
_GUESSES = 8  # of the search by the law, before it halves


@dataclass(frozen=True)
class Scaled:
    """A network made by the law.

    Attributes:
        base: the network it was made from.
        phi: the step.
        variant: its table row.
        parameters: learned values, counted (1000 classes).
        macs: multiply-adds for one image, counted (``models.count``).
        predicted_macs: the base's times 2.5^phi.
        predicted_macs_by_product: the base's times (alpha * beta^1.5 * gamma^2)^phi.
    """

    base: str
    phi: float
    variant: Variant
    parameters: int
    macs: int
    predicted_macs: float
    predicted_macs_by_product: float

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of the base's constructor that make this network, the image size aside."""
        row = self.variant
        return {
            "stem_width": row.stem_width,
            "dims": list(row.dims),
            "depths": list(row.depths),
            "num_heads": list(row.num_heads),
        }


@dataclass(frozen=True)
class PaperFit:
    """A network of the paper with its true cost, and the law's network that is nearest to it."""

    name: str
    variant: Variant
    parameters: int
    macs: int
    law: Scaled


@dataclass(frozen=True)
class Step:
    """One step of the staircase: between two values of phi every number is rounded to the same."""

    low: float
    high: float
    phi: float
    variant: Variant


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        step: the step whose value is nearest to the target, among those tried.
        value: its value.
        tried: (phi, value) of all that were measured, in their order.
        out_of_reach: 'smallest' or 'largest' if even that step is beyond the target.
    """

    step: Step
    value: float
    tried: tuple[tuple[float, float], ...]
    out_of_reach: str | None


def scale(base: str = "cmt_s", phi: float = 0.0) -> Scaled:
    """The base, scaled by phi; phi = 0 is the base itself.

    Raises:
        ConfigError: a base that is not one of ours, or phi outside MIN_PHI to MAX_PHI.
    """
    row = apply_law(base, phi)
    parameters, macs = cost(row)
    base_macs = cost(VARIANTS[base])[1]
    return Scaled(base, phi, row, parameters, macs, base_macs * NOMINAL_GROWTH**phi, base_macs * GROWTH**phi)


def apply_law(base: str, phi: float) -> Variant:
    """The table row of the base scaled by phi (see the module's text for the rounding).

    Raises:
        ConfigError: a base that is not one of ours, or phi outside MIN_PHI to MAX_PHI.
    """
    if base not in VARIANTS:
        raise ConfigError(f"base {base!r}: the law scales one of {', '.join(VARIANTS)}")
    if not MIN_PHI <= phi <= MAX_PHI:  # catches nan too
        raise ConfigError(f"phi {phi:g}: expected {MIN_PHI:g} to {MAX_PHI:g}")
    row = VARIANTS[base]
    per_head = _to_step(_width_per_head(row) * BETA**phi, _WIDTH_STEP, _MIN_WIDTH)
    scaled = replace(
        row,
        input_size=_to_step(row.input_size * GAMMA**phi, _PIXEL_STEP, _PIXEL_STEP),
        stem_width=_to_step(row.stem_width * BETA**phi, _WIDTH_STEP, _MIN_WIDTH),
        dims=_four(per_head * heads for heads in row.num_heads),
        depths=_four(_to_step(depth * ALPHA**phi, 1, 1) for depth in row.depths),
    )
    return row if scaled == row else replace(scaled, released_file=None)


@lru_cache(maxsize=512)
def cost(row: Variant) -> tuple[int, int]:
    """(parameters, multiply-adds for one image) of a table row, counted on the meta device, with 1000 classes."""
    whole = total(count(build(row, device="meta"), (3, row.input_size, row.input_size)))
    return whole.parameters, whole.macs


def build(row: Variant, device: str = "cpu") -> CMT:
    """The network of a table row, with random weights, in evaluation mode."""
    return CMT(img_size=row.input_size, device=device, **row.constructor_args()).eval()


def staircase(base: str, max_phi: float = MAX_PHI) -> list[Step]:
    """Every network that the law can make from a base, smallest first, each with the phi that makes it."""
    edges = sorted({edge for edge in _edges(VARIANTS[base]) if MIN_PHI < edge < max_phi})
    bounds = [MIN_PHI, *edges, max_phi]
    steps = []
    for low, high in pairwise(bounds):
        phi = _short_number_between(low, high)
        steps.append(Step(low, high, phi, apply_law(base, phi)))
    return steps


def search(
    base: str,
    target: float,
    measure: Callable[[Variant], float],
    close_enough: float = 0.0,
    most: int = _MOST_TRIES,
    max_phi: float = MAX_PHI,
) -> Found:
    """Find the step of the staircase whose measured value is nearest to a target.

    The law itself gives the next guess, from the value just measured; a bracket makes sure that it ends. The values
    are assumed to grow with phi, as multiply-adds and parameters do, and latency up to noise.

    Args:
        base: the network to scale.
        target: the value wanted, positive.
        measure: gives a network's value.
        close_enough: stop at a value that is this share of the target away from it.
        most: measurements at most.
        max_phi: scale no further up than this.

    Returns:
        The nearest step, its value, and what was tried.
    """
    steps = staircase(base, max_phi)
    lows = [step.low for step in steps]
    below, above = -1, len(steps)
    values: dict[int, float] = {}
    index = bisect_right(lows, 0.0) - 1
    while above - below > 1 and len(values) < most:
        value = values[index] = measure(steps[index].variant)
        if abs(value - target) <= close_enough * target:
            break
        below, above = (index, above) if value < target else (below, index)
        guess = bisect_right(lows, steps[index].phi + math.log(target / value) / math.log(GROWTH)) - 1
        index = (below + above) // 2 if len(values) > _GUESSES else min(max(guess, below + 1), above - 1)
    best = min(values, key=lambda tried: abs(values[tried] - target))
    beyond = None
    if 0 in values and values[0] > target:
        beyond = "smallest"
    elif values.get(len(steps) - 1, math.inf) < target:
        beyond = "largest"
    tried = tuple((steps[i].phi, value) for i, value in values.items())
    return Found(steps[best], values[best], tried, beyond)


def paper_fits() -> list[PaperFit]:
    """The paper's other networks, each next to the law's network from CMT-S with the nearest multiply-adds."""
    fits = []
    for name in ("cmt_ti", "cmt_xs", "cmt_b"):
        parameters, macs = cost(VARIANTS[name])
        found = search("cmt_s", macs, lambda row: cost(row)[1])
        fits.append(PaperFit(name, VARIANTS[name], parameters, macs, scale("cmt_s", found.step.phi)))
    return fits


def default_name(base: str, phi: float) -> str:
    """A name that timm accepts: 'cmt_s_phi_m0p50' for phi = -0.5, 'cmt_s_phi_1p25' for 1.25."""
    digits = f"{abs(phi):.6f}".rstrip("0")
    whole, _, decimals = digits.partition(".")
    return f"{base}_phi_{'m' if phi < 0 else ''}{whole}p{decimals:0<2}"


def _width_per_head(row: Variant) -> int:
    """The width of one attention head, the same in every stage of our networks."""
    widths = {dim // heads for dim, heads in zip(row.dims, row.num_heads, strict=True)}
    assert len(widths) == 1, f"stages with heads of different width: {row.dims} over {row.num_heads}"
    return widths.pop()


def _four(values: Iterator[int]) -> tuple[int, int, int, int]:
    a, b, c, d = values
    return a, b, c, d


def _to_step(value: float, step: int, least: int) -> int:
    return max(least, step * math.floor(value / step + 0.5))


def _edges(row: Variant) -> Iterator[float]:
    """The values of phi at which some number is rounded to another."""
    yield from _crossings(_width_per_head(row), BETA, _WIDTH_STEP, _MIN_WIDTH)
    yield from _crossings(row.stem_width, BETA, _WIDTH_STEP, _MIN_WIDTH)
    yield from _crossings(row.input_size, GAMMA, _PIXEL_STEP, _PIXEL_STEP)
    for depth in set(row.depths):
        yield from _crossings(depth, ALPHA, 1, 1)


def _crossings(start: int, factor: float, step: int, least: int) -> Iterator[float]:
    """phi where start * factor^phi is half-way between two allowed numbers, up to the largest that is reached."""
    halfway = least + step / 2
    while halfway < start * factor**MAX_PHI:
        yield math.log(halfway / start) / math.log(factor)
        halfway += step


def _short_number_between(low: float, high: float) -> float:
    """A number between two others, with two decimals if that is enough; 0 if it is between them."""
    if low < 0 < high:
        return 0.0
    middle = (low + high) / 2
    for decimals in range(2, 12):
        short = round(middle, decimals)
        if low < short < high:
            return short
    return middle
