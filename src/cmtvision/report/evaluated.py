"""The images of a run, predicted once more for its report; where they are not to be had, why, in one line."""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple

from cmtvision.artefact import Predictor
from cmtvision.artefact.run.data import check_local, read_as_the_run
from cmtvision.artefact.run.read import RunFolder
from cmtvision.data import DatasetIndex
from cmtvision.engine import Evaluation, MultiLabelEvaluation
from cmtvision.engine.evaluation.evaluate import Split, choose_samples, evaluate_samples, evaluation_notes
from cmtvision.errors import CheckpointError, DataError
from cmtvision.recipe import DataSection
from cmtvision.report.html import shorten

Progress = Callable[[int, int], None]
Stage = Callable[[str], AbstractContextManager[Progress]]


@contextmanager
def silent(_: str) -> Iterator[Progress]:
    """A stage that says nothing."""
    yield lambda done, total: None


class Evaluated(NamedTuple):
    """The evaluation of a run's images, and all its data; both None, and a note of why, where there are none."""

    evaluation: Evaluation | MultiLabelEvaluation | None
    data: DatasetIndex | None
    notes: list[str]


def evaluated(
    run: RunFolder,
    predictor: Predictor,
    data: str | Path | None,
    split: Split,
    batch_size: int,
    workers: int | None,
    stage: Stage,
) -> Evaluated:
    """Predict a run's images.

    Args:
        run, predictor: what the run recorded, and its model.
        data: its images; None for where they were in training, which is never fetched.
        split: which of them.
        batch_size, workers: of the loader.
        stage: gives a progress callback for each long piece of work, by its name.

    Raises:
        CheckpointError: logits that are no numbers.
        DataError: data that was named cannot be used.
    """
    where = data if data is not None else run.data
    several = predictor.task == "multi-label"
    try:
        if not where:
            raise DataError("the run does not say where its images are")
        if data is None:
            check_local(run.data)
        fingerprint = predictor.card.data_fingerprint
        with stage("reading images") as progress:
            index = read_as_the_run(
                run.folder, where, fingerprint, classes=predictor.classes, multi_label=several, progress=progress
            )
    except DataError as error:
        if data is not None:
            raise
        return Evaluated(None, None, [f"Made from the run folder alone, without its images: {error}."])
    try:
        samples, chosen = choose_samples(index, split)
    except DataError as error:
        return Evaluated(None, None, [f"Made from the run folder alone: {error}."])
    section = DataSection(workers=workers, multi_label=several)
    how = (predictor, samples, section, batch_size, chosen, index.skipped)
    try:
        with stage("predicting") as progress:
            evaluation = evaluate_samples(*how, progress=progress)
    except DataError as error:  # an image in a shard, which is not read before; or one that has gone since
        return Evaluated(None, None, [f"Made from the run folder alone: {error}."])
    if not math.isfinite(evaluation.loss):
        raise CheckpointError(f"{run.folder}: the model gives logits that are no numbers; its weights are damaged")
    notes = [f"{line[:1].upper()}{line[1:]}." for line in evaluation_notes(index, chosen)]
    return Evaluated(evaluation, index, notes + _about(evaluation, run))


def _about(evaluation: Evaluation | MultiLabelEvaluation, run: RunFolder) -> list[str]:
    """What to know of the images: files left out since training, classes without images, few images."""
    notes = []
    # those that training left out already have a section of their own
    reasons = Counter(item.reason for item in evaluation.skipped) - Counter(reason for _, reason in run.skipped)
    if reasons:
        said = "; ".join(f"{count:,} of them {reason}" for reason, count in reasons.most_common(4))
        notes.append(f"{sum(reasons.values()):,} files were left out, {said}.")
    images = evaluation.images if isinstance(evaluation, MultiLabelEvaluation) else evaluation.counts.images.tolist()
    empty = [name for name, count in zip(evaluation.classes, images, strict=True) if not count]
    if empty:
        named = ", ".join(shorten(name, 60) for name in empty[:5]) + (", ..." if len(empty) > 5 else "")
        which = "1 class has" if len(empty) == 1 else f"{len(empty):,} classes have"
        notes.append(f"{which} no images here, and so no recall: {named}.")
    if evaluation.num_images < 30:
        count = "1 image" if evaluation.num_images == 1 else f"{evaluation.num_images} images"
        notes.append(f"Only {count} to measure on: every figure here is very uncertain.")
    if isinstance(evaluation, MultiLabelEvaluation):
        notes.append("Images have several labels: confusion and calibration are defined for one label per image.")
    return notes
