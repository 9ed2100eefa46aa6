"""Measuring a trained segmenter on images with masks."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cmtvision.artefact.card import model_folder
from cmtvision.artefact.dense import SegmentationPredictor
from cmtvision.artefact.files import read_artefact
from cmtvision.artefact.runtimes.torch import pick_device
from cmtvision.data.annotations import read_segmentation
from cmtvision.data.annotations.splits import images_of
from cmtvision.data.training.dense_dataset import SegmentationDataset
from cmtvision.engine.dense import as_the_run, dense_eval_loader, part_of
from cmtvision.engine.distributed.processes import join_processes
from cmtvision.engine.evaluation.evaluate import Split, evaluation_notes
from cmtvision.recipe import DataSection
from cmtvision.segmentation.task import SegmentationEvaluation, evaluated

Progress = Callable[[int, int], None]


def evaluate_segmenter(
    model: str | Path,
    data: str | Path,
    *,
    split: Split = "val",
    window: int | None = None,
    device: str = "auto",
    workers: int | None = None,
    progress: Progress | None = None,
) -> SegmentationEvaluation:
    """Measure a trained segmenter; with several processes (torchrun, SLURM) each image is seen by one.

    Args:
        model: its run folder.
        data: images with masks, see ``cmtvision.data.annotations.read_segmentation``. A run's own images are in the
            parts that the run had them in, wherever they are now.
        split: 'val', 'train', 'test' or 'all'.
        window: pixels on a side of the windows that images are looked at in; None for whole images.
        device: 'auto', 'cpu', 'cuda' or 'mps'.
        workers: loader processes; None chooses.
        progress: called as progress(done, total).

    Raises:
        CheckpointError: the model cannot be opened, or is no segmenter.
        DataError: the data cannot be used, or has no images of that split.
    """
    with join_processes(pick_device(device)) as processes:
        predictor = SegmentationPredictor(read_artefact(model_folder(model)), processes.device(pick_device(device)))
        fingerprint = str(predictor.card.provenance.get("data_fingerprint", ""))
        index = processes.first(
            lambda: as_the_run(model, read_segmentation(data, val_fraction=0, classes=predictor.classes), fingerprint)
        )
        samples, chosen = part_of(index, split)
        section = DataSection(workers=workers)
        loader = dense_eval_loader(SegmentationDataset(samples, predictor.inputs), section, 1, processes, list)
        found = evaluated(
            predictor.network, predictor.classes, chosen, loader, predictor.device, processes, index.skipped, window
        )
        return replace(found, notes=[*index.notes, *evaluation_notes(images_of(index), chosen)])
