"""Models side by side: what each costs on paper, in memory and in time on this machine, and how accurate it is.

Every model is timed by ``bench.measure``: as the engine and the Predictor run it, in float32, or (``best``) in every
runtime and precision that takes it here, of which the fastest for one image is its row.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import timm
import torch

from cmtvision.bench.comparison import Accuracy, Row
from cmtvision.bench.exports import make_exports
from cmtvision.bench.measure import Measured, Phase, measure
from cmtvision.bench.runtimes import in_runtimes
from cmtvision.bench.target import AS_TRAINED, ImgSize, Target
from cmtvision.bench.timing import SECONDS_A_ROUND
from cmtvision.bench.workers import Workers
from cmtvision.models.peers.published import list_published
from cmtvision.models.peers.systems import find_system, is_of_paper
from cmtvision.study.intervals import mean_interval
from cmtvision.study.seeds import Entry, EntryResult

_FROM_THE_RECIPE = ("in_chans", "img_size")


def measure_all(
    targets: Sequence[Target],
    *,
    img_size: ImgSize = None,
    batch: int = 8,
    rounds: int = 5,
    device: str = "cpu",
    phase: Phase | None = None,
    workers: Workers | None = None,
) -> list[Row]:
    """Measure models.

    Args:
        targets: from ``find_targets``.
        img_size: of the image, in pixels, for models that were named without one; None for each model's own.
        batch: images in a forward pass for throughput and memory; latency is that of one image.
        rounds: how often each is timed, ``SECONDS_A_ROUND`` each.
        device: 'cpu', 'cuda' or 'mps'.
        phase, workers: see ``measure``.

    Returns:
        A row for each, in their order. A model that cannot be measured has a reason; the others go on. An export cannot
        be: it has no network in it.
    """
    alike = [
        replace(
            target,
            runtime=AS_TRAINED,
            precision="fp32",
            threads=torch.get_num_threads(),
            img_size=target.img_size or img_size,
            file=None,
        )
        for target in targets
    ]
    found = measure(
        alike,
        batches=(1, batch),
        rounds=rounds,
        seconds=SECONDS_A_ROUND,
        device=device,
        phase=phase,
        workers=workers,
    )
    return [_row(one, batch) for one in found.targets]


def measure_best(
    targets: Sequence[Target],
    *,
    precisions: Sequence[str] = ("fp32",),
    img_size: ImgSize = None,
    batch: int = 8,
    rounds: int = 5,
    device: str = "cpu",
    phase: Phase,
    workers: Workers | None = None,
) -> list[Row]:
    """Measure models, each in the runtime and precision in which one image takes the least time on this machine.

    Exports are verified against the network before they are timed. All that is measured of a model is timed in the same
    rounds.

    Args:
        targets: from ``find_targets``.
        precisions: those to choose from, see ``runtimes.PRECISIONS``.
        img_size, batch, rounds, device, phase, workers: see ``measure_all``.

    Returns:
        A row for each, in their order. Its ``refused`` says which runtime did not take the model, and why; one that no
        runtime takes has the first reason as its failure.

    Raises:
        ConfigError: as ``in_runtimes``.
    """
    ways = in_runtimes(
        targets, precisions=precisions, threads=[torch.get_num_threads()], img_size=img_size, device=device
    )
    ways = [
        way
        for way in ways
        if way.is_export
        or (
            (way.runtime != "fused" or family(way.architecture).startswith("CMT"))
            and (way.runtime != "torch" or device != "cpu")
        )  # there it computes what eager or fused does
    ]
    with TemporaryDirectory(prefix="cmtvision-compare-") as temporary:
        with phase("exporting and verifying") as progress:
            ways, failures = make_exports(ways, Path(temporary), progress)
        found = measure(
            ways,
            batches=(1, batch),
            rounds=rounds,
            seconds=SECONDS_A_ROUND,
            device=device,
            failures=failures,
            phase=phase,
            workers=workers,
        )
    return [_fastest(list(group), batch) for _, group in groupby(found.targets, key=lambda one: one.target.name)]


def _fastest(ways: Sequence[Measured], batch: int) -> Row:
    """The row of a model that was measured in several ways."""
    good = [one for one in ways if not one.failures]
    refused = {
        f"{one.target.runtime} {one.target.precision}": next(iter(one.failures.values()))
        for one in ways
        if one.failures
    }
    shown = min(good, key=lambda one: median(one.samples[1].medians)) if good else ways[0]
    return replace(_row(shown, batch), refused=refused)


def _row(one: Measured, batch: int) -> Row:
    target, work = one.target, one.work
    failure = next(iter(one.failures.values()), None)
    return Row(
        model=target.name,
        architecture=target.architecture,
        family=family(target.architecture),
        input_size=work.input_size,
        parameters=work.parameters,
        macs=work.macs,
        activations=work.activations,
        memory_bytes_batch_1=_memory(one, (1,)),
        memory_bytes=_memory(one, (1, batch)),
        latency=() if failure else tuple(one.samples[1].medians),
        batch_seconds=() if failure else tuple(one.samples[batch].medians),
        published=published_accuracy(target, work.input_size),
        own=_own(target),
        failure=failure,
        runtime=target.runtime,
        precision=target.precision,
        of_paper=is_of_paper(target.architecture),
    )


def _memory(one: Measured, batches: Sequence[int]) -> int | None:
    """Peak bytes of building a model and of forward passes of so many images; None where one is not known."""
    peaks = [one.opened.get("build_bytes"), *(one.warm.get(batch, {}).get("memory_bytes") for batch in batches)]
    known = [peak for peak in peaks if peak is not None]
    return max(known) if len(known) == len(peaks) else None


def published_accuracy(target: Target, input_size: tuple[int, int, int] | None) -> Accuracy | None:
    """The published top-1 of a network as it was published: not of a run, nor at another input size."""
    cfg = timm.get_pretrained_cfg(target.architecture, allow_unregistered=True)
    if target.folder is not None or input_size is None or cfg is None:
        return None
    base = target.architecture.partition(".")[0]
    for row in list_published():
        size = cfg.input_size if row.img_size is None else (3, row.img_size, row.img_size)
        if row.model == base and row.top1 is not None and size == input_size:
            return Accuracy("published", row.top1, row.source, system=row.system)
    return None


def family(architecture: str) -> str:
    """The kind of a network for the figure's colours: 'CMT', 'CMT ladder', 'DeiT', 'resnet'."""
    base = architecture.partition(".")[0]
    return "CMT ladder" if base.startswith("cmt_ladder_") else re.sub(r"(?<![vV])\d+$", "", find_system(base).family)


def _own(target: Target) -> Accuracy | None:
    """What a finished run says of itself."""
    top1 = None if target.card is None else target.card.metrics.get("top1")
    if target.card is None or top1 is None:
        return None
    photos = str(target.card.provenance.get("data_fingerprint", "unknown"))
    return Accuracy("run", 100 * float(top1), f"its own held-out photos (data {photos[:12]})")


def entries_to_train(targets: Sequence[Target], rows: Sequence[Row]) -> list[Entry]:
    """What is trained: every model that could be measured, from random weights, a run's network as well."""
    measured = {row.model for row in rows if row.measured}
    return [_entry(target) for target in targets if target.name in measured]


def _entry(target: Target) -> Entry:
    """A training of the same network: of its arguments those that the recipe does not give."""
    arguments = {} if target.card is None else target.card.arguments
    options = {key: value for key, value in arguments.items() if key not in _FROM_THE_RECIPE}
    return Entry(_key(target.name), target.architecture, options)


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
