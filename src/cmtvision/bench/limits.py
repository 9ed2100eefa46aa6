"""The machine's own limits, measured beside the networks: products in each precision, memory, and caches.

Which library and which shape are fastest differs from one processor to the next, so all of them are tried
(``bench.products``), briefly, in the first round. The fastest of each kind are measured again in every round, and the
best median over rounds is the limit. Nothing may exceed a limit: where a network did more than every product, the
machine has shown that it can, so the limit is what the network reached, and the record says so (``raise_limits``).
"""

import gc
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from statistics import median
from typing import Any

from cmtvision.bench.products import Candidate, Sizes, Step, candidates, parse, sizes_for
from cmtvision.bench.target import BYTES, Target
from cmtvision.bench.timing import spread, timed_passes

_WIDER = {"bf16": "fp32", "fp16": "fp32", "int8": "fp32"}
"""A runtime without fast arithmetic of a type computes in a wider one, so that one's limit is a limit too."""
_BRIEFLY = 0.1  # of a kind's seconds, for each candidate of the first round
_NEAR = 0.9  # of the fastest candidate: what is measured further
_FINALISTS = 3  # at most
_PAUSE = 0.05  # seconds until another library's threads sleep


def limit_kinds(targets: Sequence[Target]) -> list[str]:
    """What to measure beside targets: memory, caches, products in fp32 and bf16, others where a target is in them."""
    precisions = {"fp32", "bf16", *(target.precision for target in targets)} - {"amp"}
    return ["copy", "cache", *(kind for kind in BYTES if kind in precisions)]


def measure_limits(
    kinds: Sequence[str],
    device: str,
    seconds: float,
    sizes: Sizes | None = None,
    only: Sequence[str] | None = None,
    opened: dict[str, Step] | None = None,
) -> dict[str, float]:
    """One round: what this process reaches, with as many threads as PyTorch uses.

    Args:
        kinds: from ``limit_kinds``.
        device: where.
        seconds: to spend on each kind, about; in the first round some seconds more.
        sizes: what is multiplied and moved; None for those that suit the device.
        only: names that a former round gave; None in the first one, where all candidates are tried.
        opened: what former rounds of this process opened, by name; what this one measures is added.

    Returns:
        FLOP/s, for 'copy' and 'cache' bytes/s, by the names of the fastest candidates. What this machine cannot do, for
        want of a library, of a kernel or of memory, is left out.
    """
    sizes = sizes or sizes_for(device)
    opened = {} if opened is None else opened
    found: dict[str, float] = {}
    for kind in kinds:
        every = {one.name: one for one in candidates(kind, device, sizes)}
        if only is None:
            names = finalists(_tried(every.values(), device, seconds))
        else:
            names = [name for name in every if name in only]
        last = ""
        for name in names:
            one = every[name]
            with suppress(Exception):  # of any library: another candidate, or no limit, takes its place
                if name not in opened:
                    opened[name] = one.open()
                _rest(last, one.library)
                last = one.library
                found[name] = one.work / _steady(opened[name], device, seconds / len(names))
    return found


def finalists(rates: Mapping[str, float]) -> list[str]:
    """The candidates of one kind that are worth measuring further, the fastest first."""
    ordered = sorted(rates, key=lambda name: -rates[name])
    return [name for name in ordered[:_FINALISTS] if rates[name] >= _NEAR * rates[ordered[0]]]


def _tried(every: Iterable[Candidate], device: str, seconds: float) -> dict[str, float]:
    """What each candidate reaches in its best pass: of a few passes the median says more about who else computes.

    Larger shapes of a library that is slow here are left out: float16 by PyTorch would take minutes on some processors.
    """
    rates: dict[str, float] = {}
    last, rate = "", math.inf  # of the library's former shape
    for one in every:
        rate = rate if one.library == last else math.inf
        if one.work / rate > seconds:
            continue
        with suppress(Exception):  # no such library or kernel here, no room for its arrays
            step = one.open()
            _rest(last, one.library)
            last = one.library
            rates[one.name] = rate = one.work / min(timed_passes(step, device, _BRIEFLY * seconds, 1))
    gc.collect()  # graphs that refer to themselves hold their weights
    return rates


def _rest(last: str, library: str) -> None:
    if last and last != library:
        time.sleep(_PAUSE)


def _steady(step: Step, device: str, seconds: float) -> float:
    """Median seconds of a step: a limit is what the machine does steadily, not at its luckiest."""
    return median(timed_passes(step, device, seconds, 3))


def summarise(rounds: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Over rounds, for each kind: median and extremes of the candidate with the best median, its library and shape.

    Args:
        rounds: what ``measure_limits`` gave.
    """
    best: dict[str, dict[str, Any]] = {}
    for name in sorted({name for one in rounds for name in one}):
        kind, library, shape = parse(name)
        found = spread([one[name] for one in rounds if name in one])
        assert found is not None
        if kind not in best or found["median"] > best[kind]["median"]:
            best[kind] = {**found, "library": library, "shape": shape}
    return _widened(best)


def _widened(best: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Where a wider type's products are faster, they are the limit, and 'computed_in' says so."""
    taken = dict(best)
    for kind, wider in _WIDER.items():
        if kind in best and wider in best and best[wider]["median"] > best[kind]["median"]:
            taken[kind] = {**best[wider], "computed_in": wider}
    return taken


def raise_limits(
    limits: Mapping[str, dict[str, Any]], reached: Iterable[tuple[str, Mapping[str, float], str]]
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Limits that nothing exceeds: where a network did, what it reached takes the place of what was measured.

    Args:
        limits: what ``summarise`` gave.
        reached: (kind, median and extremes over rounds, the network in words) each.

    Returns:
        The limits; a raised one has 'network' in the place of library and shape, and 'measured', what it was before.
        And a line for each.
    """
    raised = dict(limits)
    for kind, found, network in reached:
        if kind in raised and found["median"] > raised[kind]["median"]:
            measured = raised[kind].get("measured", limits[kind])
            raised[kind] = {**found, "network": network, "measured": measured}
    said = [
        f"{kind}: raised from {in_words(kind, one['measured'])} to what a network reached, {in_words(kind, one)}"
        for kind, one in raised.items()
        if "network" in one and one is not limits[kind]
    ]
    return _widened(raised), said


def in_words(kind: str, limit: Mapping[str, Any]) -> str:
    """A limit of a record, old ones included: '228 GFLOP/s (oneDNN linear, 512 x 512 x 512)'."""
    rate = limit["median"] / 1e9
    said = f"{rate:,.1f} GB/s" if kind in ("copy", "cache") else f"{rate:,.0f} GFLOP/s"
    if "network" in limit:
        by = limit["network"]
    elif "library" not in limit:  # an older record
        by = f"torch.mm, side {limit['side']}" if "side" in limit else ""
    elif kind in ("copy", "cache"):
        by = f"{limit['library']} of {limit['shape'][0] / 1e6:,.1f} MB"
    else:
        by = f"{limit['library']}, {' x '.join(map(str, limit['shape']))}"
    by = f"{by}, in {limit['computed_in']}" if "computed_in" in limit else by
    return f"{said} ({by})" if by else said
