"""The record of ``cmtvision bench``: a row ('cell') for each target and batch, and the machine's limits.

    FLOP/s    = 2 * MACs * images/s
    bytes     = weights once a pass + 2 * activations an image (written and read) + the image itself
    intensity = FLOPs / bytes of a pass
    roof      = min(matrix products, intensity * caches)            (all in one run on as many threads)

Activations are the outputs of convolutions and matrix products, those of attention included: what a runtime that fuses
everything between two products still has to move, from caches at the best. MACs and activations are those of the
network as it is written down, whatever a runtime makes of them.
"""

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from cmtvision.bench.limits import raise_limits, summarise
from cmtvision.bench.measure import Measured, Measurement, threads_in_words
from cmtvision.bench.target import Work
from cmtvision.bench.timing import Samples, spread, times_as_fast

Limits = Mapping[str, Mapping[str, Any]]


def speed_record(found: Measurement) -> dict[str, Any]:
    """A measurement as plain data.

    Returns:
        'limits' (a row for each number of threads), 'cells' (a row for each target and batch, in order), 'notes'. What
        could not be measured has a reason. No cell exceeds a limit: see ``raise_limits``.
    """
    limits: dict[int, dict[str, dict[str, Any]]] = {}
    notes = list(found.notes)
    for threads, rounds in sorted(found.limits.items()):
        limits[threads], raised = raise_limits(summarise(rounds), _reached(found, threads))
        notes += [f"limits, {threads_in_words(threads)}, {line}" for line in raised]
    eager = {
        _same_model(one, batch): one.samples[batch].rates(batch)
        for one in found.targets
        for batch in found.batches
        if (one.target.runtime, one.target.precision) == ("eager", "fp32") and batch not in one.failures
    }
    return {
        "limits": [{"threads": threads, **kinds} for threads, kinds in limits.items()],
        "cells": [
            _cell(one, batch, limits[one.target.threads], eager.get(_same_model(one, batch)))
            for one in found.targets
            for batch in found.batches
        ],
        "notes": notes,
    }


def _same_model(one: Measured, batch: int) -> tuple[Any, ...]:
    """What two cells have in common whose ratio is taken."""
    return one.target.name, one.target.img_size, one.target.threads, batch


def _reached(found: Measurement, threads: int) -> Iterator[tuple[str, Mapping[str, float], str]]:
    """What networks on so many threads reached of each kind of limit: products, then the caches' bytes."""
    timed = [
        (one, batch, one.work.macs)
        for one in found.targets
        for batch in one.samples
        if one.target.threads == threads and one.work.macs is not None and batch not in one.failures
    ]
    for kind in ("products", "cache"):
        for one, batch, macs in timed:
            target = one.target
            moved = one.work.bytes_moved(batch, target.precision) or 0
            work = 2 * macs if kind == "products" else moved / batch
            reached = spread([work * rate for rate in one.samples[batch].rates(batch)])
            name = f"{target.name} {target.runtime} {target.precision}, batch {batch}"
            if reached is not None:
                yield products_of(target.precision) if kind == "products" else kind, reached, name


def _cell(one: Measured, batch: int, limits: Limits, eager: Sequence[float] | None) -> dict[str, Any]:
    target, work = one.target, one.work
    row: dict[str, Any] = {
        "target": target.name,
        "architecture": target.architecture,
        "runtime": target.runtime,
        "precision": target.precision,
        "threads": target.threads,
        "batch": batch,
        "input_size": list(work.input_size) if work.input_size else None,
        "parameters": work.values,
        "gmacs": None if work.macs is None else work.macs / 1e9,
        "group": one.group,
        "failure": one.failures.get(batch),
    }
    if row["failure"] is not None:
        return row
    rates = one.samples[batch].rates(batch)
    return {
        **row,
        **timing_facts(one.samples[batch], batch),
        "x_eager": None if eager is None else times_as_fast(rates, eager),
        **limit_facts(
            median(rates), work, batch, target.precision, {kind: limit["median"] for kind, limit in limits.items()}
        ),
        "open_seconds": one.opened["open_seconds"],
        "note": one.opened["note"],
        **one.warm[batch],
    }


def timing_facts(samples: Samples, batch: int) -> dict[str, Any]:
    """The part of a row that was timed."""
    return {
        "passes": len(samples.passes),
        "latency_seconds": samples.latency(),
        "images_per_second": spread(samples.rates(batch)),
        "rounds": [
            {"passes": len(one), "median_seconds": middle, "images_per_second": rate}
            for one, middle, rate in zip(samples.rounds, samples.medians, samples.rates(batch), strict=True)
        ],
    }


def products_of(precision: str) -> str:
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
        precision: a key of ``target.BYTES``.
        limits: of the same threads: FLOP/s of matrix products by precision; 'cache' in bytes/s, and 'copy', of memory,
            which counts where caches were not measured.
    """
    moved = work.bytes_moved(batch, precision)
    rate = None if work.macs is None else work.macs * images_per_second
    flops = None if rate is None else 2 * rate
    intensity = None if moved is None or work.macs is None else 2 * work.macs * batch / moved
    products = limits.get(products_of(precision))
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
