"""Measuring a trained detector on annotated images."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cmtvision.artefact.card import model_folder
from cmtvision.artefact.dense import DetectionPredictor
from cmtvision.artefact.files import read_artefact
from cmtvision.artefact.runtimes.torch import pick_device
from cmtvision.data.annotations import read_detection
from cmtvision.data.annotations.splits import images_of
from cmtvision.data.training.dense_dataset import DetectionDataset
from cmtvision.detection.task import DetectionEvaluation, evaluated
from cmtvision.engine.dense import as_the_run, dense_eval_loader, part_of
from cmtvision.engine.distributed.processes import join_processes
from cmtvision.engine.evaluation.evaluate import Split, evaluation_notes
from cmtvision.recipe import DataSection

Progress = Callable[[int, int], None]


def evaluate_detector(
    model: str | Path,
    data: str | Path,
    *,
    split: Split = "val",
    device: str = "auto",
    workers: int | None = None,
    progress: Progress | None = None,
) -> DetectionEvaluation:
    """Measure a trained detector; with several processes (torchrun, SLURM) each image is seen by one.

    Args:
        model: its run folder.
        data: images with boxes, see ``cmtvision.data.annotations.read_detection``. A run's own images are in the parts
            that the run had them in, wherever they are now.
        split: 'val', 'train', 'test' or 'all'.
        device: 'auto', 'cpu', 'cuda' or 'mps'.
        workers: loader processes; None chooses.
        progress: called as progress(done, total).

    Raises:
        CheckpointError: the model cannot be opened, or is no detector.
        DataError: the data cannot be used, or has no images of that split.
    """
    with join_processes(pick_device(device)) as processes:
        predictor = DetectionPredictor(read_artefact(model_folder(model)), processes.device(pick_device(device)))
        fingerprint = str(predictor.card.provenance.get("data_fingerprint", ""))
        index = processes.first(
            lambda: as_the_run(model, read_detection(data, val_fraction=0, classes=predictor.classes), fingerprint)
        )
        samples, chosen = part_of(index, split)
        section = DataSection(workers=workers)
        loader = dense_eval_loader(DetectionDataset(samples, predictor.inputs), section, 1, processes, list)
        found = evaluated(
            predictor.network, predictor.classes, chosen, loader, predictor.device, processes, index.skipped
        )
        return replace(found, notes=[*index.notes, *evaluation_notes(images_of(index), chosen)])
