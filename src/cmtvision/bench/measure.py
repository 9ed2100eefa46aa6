"""Measures targets in interleaved rounds, each in a process of its own: the one way in which models are timed.

Targets are measured in groups that fit in memory together, those of one model always in one group, so that what is
compared was timed in the same rounds. In each round every target of a group has a turn with every batch size, and so
have the machine's own limits. What cannot be built, does not fit or dies takes nothing with it: it has a reason, and
the others go on.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch

from cmtvision.bench.products import Sizes
from cmtvision.bench.target import BYTES, Target, Work
from cmtvision.bench.timing import Samples
from cmtvision.bench.workers import PAUSE, Worker, WorkerError, Workers
from cmtvision.engine.batch_size import free_bytes
from cmtvision.errors import ConfigError, one_line

AT_LEAST = 3  # passes of a turn
SHARE_OF_MEMORY = 0.6  # of what is free, for the processes of a group
PROCESS_BYTES = 100e6  # of a target beyond its network; libraries are shared
LIMIT_SECONDS = 0.3  # of each kind of limit in a round, but no longer than a turn
Progress = Callable[[int, int], None]
Phase = Callable[[str], AbstractContextManager[Progress]]


@dataclass
class Measured:
    """A target and what was found out about it.

    Attributes:
        target: what was measured.
        work: what an image costs it on paper.
        group: in whose rounds it was timed.
        worker: its process, while there is one.
        opened: what ``worker_process.Answers.open`` said.
        warm: what ``worker_process.Answers.warm_up`` said, by batch.
        samples: by batch.
        failures: by batch, why it was not measured.
    """

    target: Target
    work: Work
    group: int = 0
    worker: Worker | None = None
    opened: dict[str, Any] = field(default_factory=dict)
    warm: dict[int, dict[str, Any]] = field(default_factory=dict)
    samples: dict[int, Samples] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)


@dataclass
class Measurement:
    """What was found out about all targets, in their order.

    Attributes:
        batches: images of a pass, rising.
        targets: all of them.
        limits: of the machine in each round (see ``limits.measure_limits``), by the number of threads.
        notes: what was left out, and why.
    """

    batches: list[int]
    targets: list[Measured] = field(default_factory=list)
    limits: dict[int, list[dict[str, float]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def measure(
    targets: Sequence[Target],
    *,
    batches: Sequence[int] = (1, 8),
    rounds: int = 5,
    seconds: float = 2.0,
    device: str = "cpu",
    limits: Sequence[str] = (),
    sizes: Sizes | None = None,
    failures: Mapping[Target, str] | None = None,
    phase: Phase | None = None,
    workers: Workers | None = None,
    until: float | None = None,
) -> Measurement:
    """Measure targets.

    Args:
        targets: those of one model in a row.
        batches: images of a pass, each timed by itself.
        rounds: how often each has a turn.
        seconds: of a turn, at the least ``AT_LEAST`` passes.
        device: 'cpu', 'cuda' or 'mps'.
        limits: the kinds of the machine's limits to measure in the same rounds (see ``limits.limit_kinds``).
        sizes: see ``limits.measure_limits``.
        failures: targets that are not to be opened, and why.
        phase: phase(label) gives a context with a callback(done, total), to show progress.
        workers: what starts the processes.
        until: the time, by ``time.monotonic``, from which no further round and no further target is begun; the notes
            say what was left out.
    """
    phase = phase or (lambda label: nullcontext(lambda done, total: None))
    found = Measurement(sorted(set(batches)), limits={target.threads: [] for target in targets})
    with workers or Workers(device) as started:
        for place, group in enumerate(_groups(targets, device, max(found.batches))):
            members = [Measured(target, work, place) for target, work in group]
            found.targets += members
            _open_all(members, found.batches, device, started, failures or {}, until, phase)
            threads = {one.target.threads for one in members} if limits else set()
            limiters = _Limiters(found, threads, started, limits, min(LIMIT_SECONDS, seconds), sizes)
            turns = [(one, batch) for one in members for batch in found.batches if _is_open(one, batch)]
            with phase("timing rounds") as progress:
                for number in range(rounds):
                    if turns and until is not None and number and time.monotonic() > until:
                        names = ", ".join(dict.fromkeys(one.target.name for one in members))
                        found.notes.append(f"out of time after round {number} of {rounds}: {names}")
                        break
                    limiters.take_turn(number + 1)
                    for turn, (one, batch) in enumerate(turns, 1):
                        if _is_open(one, batch):
                            _take_turn(one, batch, seconds)
                        progress(number * len(turns) + turn, rounds * len(turns))
            limiters.dismiss()
            for one in members:
                _leave(one, started)
    return found


def _groups(targets: Sequence[Target], device: str, batch: int) -> Iterator[list[tuple[Target, Work]]]:
    """Targets with their work, those of a model together, as many as fit in memory."""
    room = SHARE_OF_MEMORY * free_bytes(torch.device(device))
    group: list[tuple[Target, Work]] = []
    left = room
    for _, whole in groupby(targets, key=lambda target: (target.name, target.img_size)):
        members = list(whole)
        work = _work(members[0])
        needed = len(members) * _estimate(work, batch)
        if group and needed > left:
            yield group
            group, left = [], room
        group += [(target, work) for target in members]
        left -= needed
    if group:
        yield group


def _estimate(work: Work, batch: int) -> float:
    """Bytes of a target's process: weights as they are and packed, and what pools keep of a batch's activations."""
    return 4 * (2 * (work.values or 0) + batch * (work.activations or 0) / 4) + PROCESS_BYTES


def _work(target: Target) -> Work:
    try:
        return target.work()
    except Exception:  # of anyone's network; opening it will say why
        return Work()


def _open_all(
    members: Sequence[Measured],
    batches: Sequence[int],
    device: str,
    workers: Workers,
    failures: Mapping[Target, str],
    until: float | None,
    phase: Phase,
) -> None:
    with phase("opening and warming up") as progress:
        for done, one in enumerate(members, 1):
            reason = failures.get(one.target)
            if reason is None and until is not None and time.monotonic() > until:
                reason = "left out: no time left"
            if reason is None:
                reason = _open(one, batches, device, workers)
            if reason is not None:
                one.failures = dict.fromkeys(batches, reason)
            progress(done, len(members))


def _open(one: Measured, batches: Sequence[int], device: str, workers: Workers) -> str | None:
    """Start a target's process and run each batch size for the first time; the reason where it cannot be opened."""
    try:
        input_size = one.work.input_size or one.target.work().input_size
        _check_fits(one, device)
        one.worker = workers.start()
        one.opened = one.worker.ask("open", one.target, input_size)
    except Exception as error:  # whatever a network of anyone does, the others go on
        _leave(one, workers)
        return str(error) if isinstance(error, WorkerError) else one_line(error)
    for batch in batches:
        try:
            one.warm[batch] = one.worker.ask("warm_up", batch)
            one.samples[batch] = Samples()
        except WorkerError as error:
            one.failures[batch] = str(error)
            if one.worker.ended:
                one.failures |= {size: str(error) for size in batches if size not in one.failures}
                _leave(one, workers)
                break
    return None


def _check_fits(one: Measured, device: str) -> None:
    """Refuse a network whose float32 weights alone are larger than the memory that is free. Raises ConfigError."""
    needed, free = BYTES["fp32"] * (one.work.values or 0), free_bytes(torch.device(device))
    if one.target.file is None and needed > free:
        raise ConfigError(f"does not fit: weights of {_size(needed)}, {_size(free)} are free")


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"


def _leave(one: Measured, workers: Workers) -> None:
    if one.worker is not None:
        workers.dismiss(one.worker)
        one.worker = None


def _is_open(one: Measured, batch: int) -> bool:
    return one.worker is not None and batch not in one.failures


def _take_turn(one: Measured, batch: int, seconds: float) -> None:
    assert one.worker is not None
    time.sleep(PAUSE)
    try:
        one.samples[batch].rounds.append(one.worker.ask("turn", batch, seconds, AT_LEAST))
    except WorkerError as error:  # it ran before: memory, most likely
        lost = one.warm if one.worker.ended else [batch]
        one.failures |= {size: str(error) for size in lost}


class _Limiters:
    """The processes that measure the machine's limits, one for each number of threads; notes say what is left out."""

    def __init__(self, found: Measurement, threads: set[int], workers: Workers, *options: Any) -> None:
        self._found, self._workers, self._options = found, workers, options
        self._running: dict[int, Worker] = {}
        for count in sorted(threads):
            try:
                self._running[count] = workers.start()
            except WorkerError as error:
                found.notes.append(f"limits, {threads_in_words(count)}, left out: {error}")

    def take_turn(self, number: int) -> None:
        """Measure limits in a round, counted from 1."""
        for threads, worker in list(self._running.items()):
            rows = self._found.limits[threads]
            only = sorted({name for row in rows for name in row}) or None  # the first finds what is worth measuring
            time.sleep(PAUSE)
            try:
                rows.append(worker.ask("limits", threads, *self._options, only))
            except WorkerError as error:  # the networks' times stand without it
                where = f"limits, {threads_in_words(threads)}"
                self._found.notes.append(f"{where}, left out from round {number} on: {error}")
                self._workers.dismiss(self._running.pop(threads))

    def dismiss(self) -> None:
        """End the processes."""
        for worker in self._running.values():
            self._workers.dismiss(worker)


def threads_in_words(count: int) -> str:
    """Such as '2 threads'."""
    return f"{count} thread{'s' * (count > 1)}"
