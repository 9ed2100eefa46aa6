"""The target of ``cmtvision scale``: a step phi, or the cost that the network should have."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cmtvision.errors import ConfigError

if TYPE_CHECKING:
    from cmtvision.models.analysis.scaling import Found
    from cmtvision.models.cmt.variants import Variant

Kind = Literal["gmacs", "params", "latency"]
_NUMBER = r"(\d+(?:\.\d*)?|\.\d+)"
_TIMES = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9}
_SECONDS = {"ms": 1e-3, "s": 1.0}
_MAX_MEASURED_PHI = 3.0  # CMT-S there has 200 M parameters; larger ones take minutes to measure
_CLOSE = 0.03  # no measured latency is worth more
_MOST_MEASURED = 7


@dataclass(frozen=True)
class Target:
    """A cost to reach: multiply-adds, parameters or seconds, and the option that asked for it."""

    kind: Kind
    value: float
    asked: str

    def show(self, value: float) -> str:
        """A value of this kind, with its unit."""
        if self.kind == "gmacs":
            return f"{value / 1e9:.4g} GMACs"
        if self.kind == "params":
            return f"{value / 1e6:.4g}M parameters"
        return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def parse_target(gmacs: str | None, params: str | None, latency: str | None) -> Target | None:
    """The target that was given, if any.

    Raises:
        ConfigError: not a number, not positive, or a unit that does not exist.
    """
    if gmacs is not None:
        return _target("gmacs", gmacs, {"": 1e9}, "a number of thousand million multiply-adds, such as 2.0")
    if params is not None:
        return _target("params", params, _TIMES, "a number such as 12M (k, M and B are units)")
    if latency is not None:
        return _target("latency", latency, _SECONDS, "a time such as 20ms or 0.5s")
    return None


def _target(kind: Kind, text: str, units: dict[str, float], expected: str) -> Target:
    asked = f"--{kind} {text}"
    match = re.fullmatch(rf"{_NUMBER}(?:e([+-]?\d\d?))?\s*([a-z]*)", text.strip().lower())
    unit = match.group(3) if match else None
    if match is None or unit not in units:
        raise ConfigError(f"{asked}: expected {expected}")
    value = float(match.group(1)) * 10.0 ** int(match.group(2) or 0) * units[unit]
    if not value > 0:
        raise ConfigError(f"{asked}: expected more than 0, {expected}")
    return Target(kind, value, asked)


def find(base: str, target: Target, measure: Callable[["Variant"], float]) -> "Found":
    """The network of the law whose value, by ``measure``, is nearest to the target.

    Raises:
        ConfigError: a target beyond the smallest or the largest, naming what can be reached.
    """
    from cmtvision.models.analysis.scaling import MAX_PHI, MIN_PHI, search, staircase

    timed = target.kind == "latency"
    found = search(
        base,
        target.value,
        measure,
        close_enough=_CLOSE if timed else 0.0,
        most=_MOST_MEASURED if timed else 60,
        max_phi=_MAX_MEASURED_PHI if timed else MAX_PHI,
    )
    if found.out_of_reach is None:
        return found
    if timed and abs(found.value - target.value) <= _CLOSE * target.value:
        return found
    if timed:
        size = "smallest CMT by the law" if found.out_of_reach == "smallest" else "largest CMT that is measured"
        more = "more" if found.out_of_reach == "smallest" else "less"
        raise ConfigError(f"{target.asked}: the {size} takes {target.show(found.value)} here; ask for {more}")
    steps = staircase(base)
    low, high = measure(steps[0].variant), measure(steps[-1].variant)
    raise ConfigError(
        f"{target.asked}: the law takes {base} from {target.show(low)} (phi {MIN_PHI:g}) to {target.show(high)} "
        f"(phi {MAX_PHI:g}); ask for something between"
    )
