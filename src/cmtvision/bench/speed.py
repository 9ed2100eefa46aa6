"""Latency, throughput and memory of forms, in interleaved rounds, beside the machine's own limits.

Targets are measured in groups that fit in memory together, a target always whole, so that what is compared with its
eager form was timed in the same rounds. In each round every cell of a group has a turn, and so have the machine's
limits. A row says in which group it was measured.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import groupby
from statistics import median
from typing import Any

import torch

from cmtvision.bench.cells import BYTES, Samples, Work, kind_of, limit_facts, times_as_fast, timing_facts
from cmtvision.bench.comparison import spread
from cmtvision.bench.forms import Form
from cmtvision.bench.limits import raise_limits, summarise
from cmtvision.bench.products import Sizes
from cmtvision.bench.subjects import ImgSize
from cmtvision.bench.turns import PAUSE, Crew, FormError, Worker
from cmtvision.engine.batch_size import free_bytes
from cmtvision.errors import one_line

AT_LEAST = 3  # passes of a turn
SHARE_OF_MEMORY = 0.6  # of what is free, for the processes of a group
PROCESS_BYTES = 100e6  # of a form beyond its network; libraries are shared
LIMIT_SECONDS = 0.3  # of each kind of limit in a round, but no longer than a turn
Progress = Callable[[int, int], None]
Phase = Callable[[str], AbstractContextManager[Progress]]


@dataclass
class _Running:
    """A form and its process, or the reason why it has none."""

    form: Form
    work: Work
    group: int = 0
    worker: Worker | None = None
    opened: dict[str, Any] = field(default_factory=dict)
    warm: dict[int, dict[str, Any]] = field(default_factory=dict)
    samples: dict[int, Samples] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)


def measure_speed(
    forms: Sequence[Form],
    *,
    batches: Sequence[int] = (1, 8),
    rounds: int = 5,
    seconds: float = 2.0,
    device: str = "cpu",
    failures: Mapping[Form, str] | None = None,
    phase: Phase | None = None,
    crew: Crew | None = None,
    until: float | None = None,
    sizes: Sizes | None = None,
) -> dict[str, Any]:
    """Measure forms.

    Args:
        forms: from ``find_forms``; forms of one target are measured in the same rounds.
        batches: images of a pass, each a cell of its own.
        rounds: how often each cell has a turn.
        seconds: of a turn, at the least ``AT_LEAST`` passes.
        device: 'cpu', 'cuda' or 'mps'.
        failures: forms that are not to be opened, and why; they are rows too.
        phase: phase(label) gives a context with a callback(done, total), to show progress.
        crew: what starts the processes.
        until: the time, by ``time.monotonic``, from which no further round and no further form is begun; the record
            says what was left out.
        sizes: see ``measure_limits``.

    Returns:
        'limits' (a row for each number of threads), 'cells' (a row for each form and batch, in order), 'notes'. A cell
        that cannot be measured has a reason; the others go on, as they do without a limit that cannot be measured. No
        cell exceeds a limit: see ``raise_limits``.
    """
    phase = phase or (lambda label: nullcontext(lambda done, total: None))
    ordered = sorted(set(batches))
    kinds = ["copy", "cache", *(kind for kind in BYTES if kind != "amp" and _precisions(forms, kind))]
    limits: dict[int, list[dict[str, float]]] = {form.threads: [] for form in forms}
    notes: list[str] = []
    all_running: list[_Running] = []
    with crew or Crew(device) as started:
        for place, group in enumerate(_groups(forms, device, max(ordered))):
            running = [_Running(form, work, place) for form, work in group]
            all_running += running
            _open_all(running, ordered, started, failures or {}, until, phase)
            limiters = _start_limiters({one.form.threads for one in running}, started, notes)
            turns = [(one, batch) for one in running for batch in ordered if one.worker and batch not in one.failures]
            with phase("timing rounds") as progress:
                for number in range(rounds):
                    if turns and until is not None and number and time.monotonic() > until:
                        notes.append(f"out of time behind round {number} of {rounds}: {_names(running)}")
                        break
                    for threads, limiter in list(limiters.items()):
                        try:
                            _take_limits(limits[threads], limiter, threads, kinds, min(LIMIT_SECONDS, seconds), sizes)
                        except FormError as error:  # the networks' times stand without it
                            notes.append(f"limits, {_threads(threads)}, left out from round {number + 1} on: {error}")
                            started.dismiss(limiters.pop(threads))
                    for turn, (one, batch) in enumerate(turns, 1):
                        _take_turn(one, batch, seconds)
                        progress(number * len(turns) + turn, rounds * len(turns))
            for worker in [*limiters.values(), *(one.worker for one in running if one.worker)]:
                started.dismiss(worker)
    found: dict[int, dict[str, dict[str, Any]]] = {}
    for threads, rows in sorted(limits.items()):
        found[threads], raised = raise_limits(summarise(rows), _reached(all_running, threads))
        notes += [f"limits, {_threads(threads)}, {line}" for line in raised]
    return {
        "limits": [{"threads": threads, **kinds_found} for threads, kinds_found in found.items()],
        "cells": _rows(all_running, ordered, found),
        "notes": notes,
    }


def _precisions(forms: Sequence[Form], kind: str) -> bool:
    """fp32 and bf16 are always of interest, others where a form computes in them."""
    return kind in ("fp32", "bf16") or any(form.precision == kind for form in forms)


def _names(running: Sequence[_Running]) -> str:
    return ", ".join(dict.fromkeys(one.form.target.name for one in running))


def _groups(forms: Sequence[Form], device: str, batch: int) -> Iterator[list[tuple[Form, Work]]]:
    """Forms with their work, whole targets together, as many as fit in memory."""
    room = SHARE_OF_MEMORY * free_bytes(torch.device(device))
    group: list[tuple[Form, Work]] = []
    left = room
    for (_, size), whole in groupby(forms, key=lambda form: (form.target.name, form.img_size)):
        members = list(whole)
        work = _work(members[0], size)
        needed = len(members) * _estimate(work, batch)
        if group and needed > left:
            yield group
            group, left = [], room
        group += [(form, work) for form in members]
        left -= needed
    if group:
        yield group


def _estimate(work: Work, batch: int) -> float:
    """Bytes of a form's process: weights as they are and packed, and what pools keep of a batch's activations."""
    return 4 * (2 * (work.parameters or 0) + batch * (work.activations or 0) / 4) + PROCESS_BYTES


def _work(form: Form, size: ImgSize) -> Work:
    try:
        return form.target.work(size)
    except Exception:  # of anyone's network; opening it will say why
        return Work()


def _open_all(
    running: Sequence[_Running],
    batches: Sequence[int],
    crew: Crew,
    failures: Mapping[Form, str],
    until: float | None,
    phase: Phase,
) -> None:
    with phase("opening and warming up") as progress:
        for done, one in enumerate(running, 1):
            reason = failures.get(one.form)
            if reason is None and until is not None and time.monotonic() > until:
                reason = "left out: no time left"
            if reason is None:
                reason = _open(one, batches, crew)
            if reason is not None:
                one.failures = dict.fromkeys(batches, reason)
            progress(done, len(running))


def _open(one: _Running, batches: Sequence[int], crew: Crew) -> str | None:
    """Start the process of a form and run each batch size for the first time; the reason where it cannot be opened."""
    try:
        input_size = one.work.input_size or one.form.target.work(one.form.img_size).input_size
        one.worker = crew.start()
        one.opened = one.worker.ask("open", one.form, input_size)
    except Exception as error:  # whatever a network of anyone does, the others go on
        _leave(one, crew)
        return str(error) if isinstance(error, FormError) else one_line(error)
    for batch in batches:
        try:
            one.warm[batch] = one.worker.ask("warm_up", batch)
            one.samples[batch] = Samples()
        except FormError as error:
            one.failures[batch] = str(error)
            if one.worker.ended:
                one.failures |= {size: str(error) for size in batches if size not in one.failures}
                _leave(one, crew)
                break
    return None


def _leave(one: _Running, crew: Crew) -> None:
    if one.worker is not None:
        crew.dismiss(one.worker)
        one.worker = None


def _take_turn(one: _Running, batch: int, seconds: float) -> None:
    if one.worker is None or batch in one.failures:
        return
    time.sleep(PAUSE)
    try:
        one.samples[batch].rounds.append(one.worker.ask("turn", batch, seconds, AT_LEAST))
    except FormError as error:  # it ran before: memory, most likely
        lost = one.warm if one.worker.ended else [batch]
        one.failures |= {size: str(error) for size in lost}


def _start_limiters(counts: set[int], crew: Crew, notes: list[str]) -> dict[int, Worker]:
    """The processes that measure the machine's limits, by their threads; a note for each that does not start."""
    limiters = {}
    for threads in sorted(counts):
        try:
            limiters[threads] = crew.start()
        except FormError as error:
            notes.append(f"limits, {_threads(threads)}, left out: {error}")
    return limiters


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count > 1)}"


def _take_limits(rows: list[dict[str, float]], limiter: Worker, threads: int, *arguments: Any) -> None:
    time.sleep(PAUSE)
    only = sorted({name for row in rows for name in row}) or None  # the first round finds what is worth measuring
    rows.append(limiter.ask("limits", threads, *arguments, only))


def _reached(running: Sequence[_Running], threads: int) -> Iterator[tuple[str, Mapping[str, float], str]]:
    """What networks on so many threads reached of each kind of limit: products, then the caches' bytes."""
    timed = [
        (one, batch, 2 * one.work.macs, one.work.bytes_moved(batch, one.form.precision))
        for one in running
        for batch in one.samples
        if one.form.threads == threads and one.work.macs is not None and batch not in one.failures
    ]
    for kind in ("products", "cache"):
        for one, batch, flops, moved in timed:
            form = one.form
            rates = one.samples[batch].rates(batch)
            work = flops if kind == "products" else (moved or 0) / batch
            name = f"{form.target.name} {form.runtime} {form.precision}, batch {batch}"
            found = spread([work * rate for rate in rates])
            if found is not None:
                yield kind_of(form.precision) if kind == "products" else kind, found, name


def _rows(
    running: Sequence[_Running], batches: Sequence[int], limits: Mapping[int, Mapping[str, Mapping[str, Any]]]
) -> list[dict[str, Any]]:
    eager = {
        (one.form.target.name, one.form.img_size, one.form.threads, batch): one.samples[batch].rates(batch)
        for one in running
        for batch in batches
        if (one.form.runtime, one.form.precision) == ("eager", "fp32") and batch not in one.failures
    }
    return [
        _row(one, batch, limits, eager.get((one.form.target.name, one.form.img_size, one.form.threads, batch)))
        for one in running
        for batch in batches
    ]


def _row(
    one: _Running,
    batch: int,
    limits: Mapping[int, Mapping[str, Mapping[str, Any]]],
    eager: Sequence[float] | None,
) -> dict[str, Any]:
    form, work = one.form, one.work
    model = form.target.subject or form.target.card
    row: dict[str, Any] = {
        "target": form.target.name,
        "architecture": model.architecture if model else None,
        "runtime": form.runtime,
        "precision": form.precision,
        "threads": form.threads,
        "batch": batch,
        "input_size": list(work.input_size) if work.input_size else None,
        "parameters": work.parameters,
        "gmacs": None if work.macs is None else work.macs / 1e9,
        "group": one.group,
        "failure": one.failures.get(batch),
    }
    if row["failure"] is not None:
        return row
    rates = one.samples[batch].rates(batch)
    reached = {kind: found["median"] for kind, found in limits[form.threads].items()}
    return {
        **row,
        **timing_facts(one.samples[batch], batch),
        "x_eager": None if eager is None else times_as_fast(rates, eager),
        **limit_facts(median(rates), work, batch, form.precision, reached),
        **one.opened,
        **one.warm[batch],
    }
