"""Models side by side: what each costs on paper, in memory and in time on this machine, and how accurate it is.

First every model is tried in a process of its own (``probe``). Those that run are then timed in interleaved rounds,
A B C, A B C, ..., so that whatever else the machine does meanwhile falls on all of them. Models that do not fit in
memory together are built anew for their turn.
"""

import gc
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import timm
import torch
from torch import nn

from cmtvision.artefact.files import read_card
from cmtvision.bench.comparison import Accuracy, Row
from cmtvision.bench.intervals import mean_interval
from cmtvision.bench.measure import forward_pass, ready, time_round
from cmtvision.bench.probe import Probed, Prober
from cmtvision.bench.subjects import ImgSize, Subject
from cmtvision.bench.training import Entry, EntryResult
from cmtvision.engine.batch_size import free_bytes
from cmtvision.models.peers import find_system
from cmtvision.models.published import find_published, list_published

SHARE_OF_MEMORY = 0.6  # of what is free, for all models that stay in memory and the largest one's work
Progress = Callable[[int, int], None]
Phase = Callable[[str], AbstractContextManager[Progress]]


def measure_all(
    subjects: Sequence[Subject],
    *,
    img_size: ImgSize = None,
    batch: int = 8,
    rounds: int = 5,
    device: str = "cpu",
    phase: Phase | None = None,
    prober: Prober | None = None,
    room: int | None = None,
) -> list[Row]:
    """Measure models.

    Args:
        subjects: the models, with different names.
        img_size: of the image, in pixels, None for each model's own.
        batch: images in a forward pass for throughput and memory; latency is that of one image.
        rounds: how often each is timed.
        device: 'cpu', 'cuda' or 'mps'.
        phase: phase(label) gives a context with a callback(done, total), to show progress.
        prober: what tries the models, a process of its own by default.
        room: bytes for models that stay in memory; by default ``SHARE_OF_MEMORY`` of what is free.

    Returns:
        A row for each, in their order. A model that cannot be measured has a reason; the others go on.
    """
    phase = phase or (lambda label: nullcontext(lambda done, total: None))
    probed: dict[str, Probed] = {}
    with prober or Prober(batch, device) as tries, phase("trying models") as progress:
        for done, subject in enumerate(subjects, 1):
            probed[subject.name] = tries.probe(subject, img_size)
            progress(done, len(subjects))
    runnable = [subject for subject in subjects if probed[subject.name].failure is None]
    clock = _Clock(runnable, probed, img_size, batch, device, room)
    with phase("timing rounds") as progress:
        for number in range(rounds):
            for turn, subject in enumerate(runnable, 1):
                clock.time(subject)
                progress(number * len(runnable) + turn, rounds * len(runnable))
    return [_row(subject, probed[subject.name], clock) for subject in subjects]


class _Clock:
    """Times models by turns, and keeps in memory those that fit there together."""

    def __init__(
        self,
        subjects: Sequence[Subject],
        probed: dict[str, Probed],
        img_size: ImgSize,
        batch: int,
        device: str,
        room: int | None,
    ) -> None:
        self.latency: dict[str, list[float]] = {subject.name: [] for subject in subjects}
        self.batch_seconds: dict[str, list[float]] = {subject.name: [] for subject in subjects}
        self.failures: dict[str, str] = {}
        self._probed, self._img_size, self._batch, self._device = probed, img_size, batch, device
        if room is None:
            room = int(SHARE_OF_MEMORY * free_bytes(torch.device(device)))
        self._stay = staying({subject.name: probed[subject.name] for subject in subjects}, room)
        self._models: dict[str, nn.Module] = {}

    def time(self, subject: Subject) -> None:
        """One turn of a model: latency and throughput."""
        name = subject.name
        if name in self.failures:
            return
        input_size = self._probed[name].input_size
        assert input_size is not None
        try:
            fresh = name not in self._models
            model = ready(subject.build(self._img_size), self._device) if fresh else self._models[name]
            for batch, times in ((1, self.latency[name]), (self._batch, self.batch_seconds[name])):
                forward = forward_pass(model, input_size, batch, self._device)
                if fresh:
                    forward()
                times.append(time_round(forward))
        except (RuntimeError, MemoryError) as error:  # it ran in the probe: memory, most likely
            self.failures[name] = str(error).partition("\n")[0] or type(error).__name__
            return
        if name in self._stay:
            self._models[name] = model
        else:
            del model, forward
            gc.collect()


def staying(probed: dict[str, Probed], room: int) -> set[str]:
    """The models that stay in memory between their turns: the lightest, while the largest one still has its peak."""
    left = room - max((known.memory_bytes or 0 for known in probed.values()), default=0)
    stay = set()
    for name, known in sorted(probed.items(), key=lambda item: (item[1].weight_bytes or 0, item[0])):
        left -= known.weight_bytes or 0
        if left < 0:
            break
        stay.add(name)
    return stay


def _row(subject: Subject, known: Probed, clock: _Clock) -> Row:
    failure = known.failure or clock.failures.get(subject.name)
    return Row(
        model=subject.name,
        architecture=subject.architecture,
        family=family(subject.architecture),
        input_size=known.input_size,
        parameters=known.parameters,
        macs=known.macs,
        activations=known.activations,
        memory_bytes_batch_1=known.memory_bytes_batch_1,
        memory_bytes=known.memory_bytes,
        latency=() if failure else tuple(clock.latency[subject.name]),
        batch_seconds=() if failure else tuple(clock.batch_seconds[subject.name]),
        published=_published(subject, known),
        own=_own(subject),
        failure=failure,
    )


def _published(subject: Subject, known: Probed) -> Accuracy | None:
    """The published top-1 of a network as it was published: not of a run, nor at another input size."""
    found = find_published(subject.architecture) if subject.run is None else None
    cfg = timm.get_pretrained_cfg(subject.architecture, allow_unregistered=True)
    if found is None or found.top1 is None or cfg is None or cfg.input_size != known.input_size:
        return None
    rows = (row for row in list_published() if (row.model, row.top1) == (found.model, found.top1))
    return Accuracy("published", found.top1, next(rows, found).source)


def family(architecture: str) -> str:
    """The kind of a network for the figure's colours: 'CMT', 'CMT ladder', 'DeiT', 'resnet'."""
    base = architecture.partition(".")[0]
    return "CMT ladder" if base.startswith("cmt_ladder_") else re.sub(r"(?<![vV])\d+$", "", find_system(base).family)


def _own(subject: Subject) -> Accuracy | None:
    """What a finished run says of itself."""
    if subject.run is None:
        return None
    card = read_card(subject.run)
    top1 = card.get("metrics", {}).get("top1")
    photos = str(card.get("provenance", {}).get("data_fingerprint", "unknown"))
    return None if top1 is None else Accuracy("run", 100 * float(top1), f"its own held-out photos (data {photos[:12]})")


def entries_to_train(subjects: Sequence[Subject], rows: Sequence[Row]) -> list[Entry]:
    """What is trained: every model that could be measured, from random weights, a run's network as well."""
    measured = {row.model for row in rows if row.measured}
    return [Entry(_key(s.name), s.architecture, s.options()) for s in subjects if s.name in measured]


def with_training(rows: Sequence[Row], results: Sequence[EntryResult]) -> list[Row]:
    """Rows with what the trainings gave: mean top-1 over the seeds with its 95% interval."""
    by_key = {result.entry.key: result for result in results}
    return [_trained(row, by_key[_key(row.model)]) if _key(row.model) in by_key else row for row in rows]


def _trained(row: Row, result: EntryResult) -> Row:
    if result.failure is not None or not result.runs:
        return replace(row, training_failure=result.failure or "no training was finished")
    interval = mean_interval([100 * run.top1 for run in result.runs])
    counts = tuple((run.correct, run.num_images) for run in result.runs)
    source = f"{len(counts)} seed{'s' if len(counts) > 1 else ''}, {counts[0][1]:,} held-out photos"
    return replace(row, trained=Accuracy("trained", interval.mean, source, interval.low, interval.high, counts))


def _key(name: str) -> str:
    """The name of a model's folder among the trainings."""
    return "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in name).strip(".-")
