"""Training, from a recipe and a folder of photos to a run folder (see run_folder.py for what it holds)."""

import json
import logging
import shlex
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from rich.console import Console

from cmtvision.artefact import Artefact, Predictor, write_artefact
from cmtvision.artefact.files import write_text
from cmtvision.artefact.predictor import pick_device
from cmtvision.data import DatasetIndex, Skipped, read_dataset
from cmtvision.engine.batch_size import largest_batch
from cmtvision.engine.build import BuiltModel, build_model
from cmtvision.engine.callbacks import RunCallback, TrainingInterrupted
from cmtvision.engine.ema import EmaCallback
from cmtvision.engine.evaluate import Evaluation, evaluate_samples
from cmtvision.engine.loaders import TrainLoader, eval_loader, train_loader
from cmtvision.engine.module import TrainingModule
from cmtvision.engine.progress import ProgressView
from cmtvision.engine.run_folder import (
    EVALUATION_FILE,
    LAST_CHECKPOINT,
    TENSORBOARD_FOLDER,
    check_free,
    check_same_data,
    write_beginning,
)
from cmtvision.errors import CheckpointError, ConfigError
from cmtvision.recipe import Recipe
from cmtvision.weights.files import read_pickle

__all__ = ["FitResult", "TrainingInterrupted", "fit"]


@dataclass(frozen=True)
class FitResult:
    """A finished run.

    Attributes:
        out: the run folder.
        metrics: the last row of metrics.csv.
        evaluation: the final model on the held-out photos, None where nothing was held out.
        skipped: files left out when the data was read.
        failures: photos that could no longer be read during training.
        seconds: time of training.
        epochs: epochs trained.
    """

    out: Path
    metrics: dict[str, Any]
    evaluation: Evaluation | None
    skipped: list[Skipped] = field(default_factory=list)
    failures: list[Path] = field(default_factory=list)
    seconds: float = 0.0
    epochs: int = 0


def fit(
    recipe: Recipe,
    data: str | Path,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
) -> FitResult:
    """Train a classifier on a folder of class folders or a CSV.

    Args:
        recipe: what the run is.
        data: the photos (see ``cmtvision.data.read_dataset``).
        out: the run folder to write.
        resume: go on with the run in ``out``; recipe and data must be its own.
        overwrite: replace a run that is already there.
        console: where progress is shown; None for silence.

    Raises:
        ConfigError: a recipe that cannot be carried out, or a run folder in the way.
        DataError: photos that cannot be used, or that changed since the run began.
        CheckpointError: weights that do not fit, or a disk that is full.
        TrainingInterrupted: stopped by Ctrl-C or SIGTERM, with the state saved.
    """
    out = Path(out)
    check_free(out, resume, overwrite)
    device = torch.device(pick_device(recipe.train.device))
    section = recipe.data
    index = read_dataset(
        data,
        val_fraction=section.val_fraction,
        split_seed=section.split_seed,
        max_pixels=section.max_pixels,
        max_bytes=section.max_bytes,
    )
    with _quiet_lightning(), _settings(recipe):
        built = build_model(recipe, len(index.classes))
        if recipe.train.channels_last:
            built.model.to(memory_format=torch.channels_last)
        batch_size = _batch_size(recipe, built, device, len(index.train))
        loader = train_loader(index, built.preprocess, recipe, batch_size)
        if resume:
            check_same_data(out, index)
        else:
            write_beginning(out, recipe, data, index)
        return _run(recipe, data, out, index, built, loader, device, resume, console)


def _run(
    recipe: Recipe,
    data: str | Path,
    out: Path,
    index: DatasetIndex,
    built: BuiltModel,
    loader: TrainLoader,
    device: torch.device,
    resume: bool,
    console: Console | None,
) -> FitResult:
    train, schedule = recipe.train, recipe.schedule
    batch_size = loader.batch_size or 1
    epochs = schedule.epochs + schedule.cooldown_epochs
    steps_per_epoch = -(-len(loader) // train.accumulate)
    module = TrainingModule(built.model, recipe, len(index.classes), steps_per_epoch, batch_size * train.accumulate)
    ema = EmaCallback(built.model, recipe.ema) if recipe.ema.enabled else None
    eval_batch = train.eval_batch_size or batch_size * 2
    val_loader = None
    if index.val:
        val_loader = eval_loader(index.val, built.preprocess, recipe.data, eval_batch, cache=recipe.data.cache)
    record = RunCallback(
        out,
        loader,
        val_loader,
        ema,
        ProgressView(console, len(loader) * epochs, epochs),
        resume_hint=f"cmtvision train {shlex.quote(str(data))} --out {shlex.quote(str(out))} --resume",
        total_epochs=epochs,
        patience=train.early_stop_patience,
        max_minutes=train.max_minutes,
        eval_every=train.eval_every,
    )
    trainer = pl.Trainer(
        accelerator={"cuda": "gpu"}.get(device.type, device.type),
        devices=1,
        precision=_precision(recipe, device),  # type: ignore[arg-type]
        max_epochs=epochs,
        max_steps=train.max_steps or -1,
        accumulate_grad_batches=train.accumulate,
        gradient_clip_val=recipe.optim.clip_grad_norm,
        callbacks=[callback for callback in (ema, record) if callback is not None],
        logger=TensorBoardLogger(str(out), name="", version=TENSORBOARD_FOLDER),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    checkpoint = str(out / LAST_CHECKPOINT) if resume else None
    if checkpoint:
        read_pickle(Path(checkpoint))  # a torn file is named here, before Lightning trips over it
    try:
        trainer.fit(module, loader, ckpt_path=checkpoint, weights_only=True)
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"batches of {batch_size} do not fit in the memory of {device}; set train.batch_size=auto, "
            "model.grad_checkpointing=true or a smaller model.img_size"
        ) from error
    except (RuntimeError, KeyError) as error:
        if resume and "state_dict" in str(error):
            raise CheckpointError(f"{checkpoint}: does not fit this recipe; start anew without --resume") from error
        raise
    network = ema.network if ema is not None else module.model
    if record.best["weights"] is not None:
        network.load_state_dict(record.best["weights"])
    return _finish(recipe, out, index, built, network.cpu().eval(), loader, record)


def _finish(
    recipe: Recipe,
    out: Path,
    index: DatasetIndex,
    built: BuiltModel,
    network: torch.nn.Module,
    loader: TrainLoader,
    record: RunCallback,
) -> FitResult:
    """Evaluate the final network once more as everyone will use it, and write the artefact."""
    artefact = Artefact(network, recipe.model.name, built.arguments, index.classes, built.preprocess)
    evaluation = None
    metrics: dict[str, Any] = {}
    if index.val:
        predictor = Predictor(artefact, recipe.train.device)
        evaluation = evaluate_samples(predictor, index.val, recipe.data, 128, "val", index.skipped)
        network.cpu()
        metrics = {key: getattr(evaluation, key) for key in ("num_images", "top1_correct", "top1", "top5", "loss")}
        write_text(out / EVALUATION_FILE, json.dumps(evaluation.to_dict(), indent=1) + "\n")
    epochs = len(record.rows)
    row = record.rows[-1] if record.rows else {}
    seconds = float(row.get("seconds", record.seconds))
    provenance = {
        "recipe": recipe.name,
        "data_fingerprint": index.fingerprint,
        "train_images": len(index.train),
        "epochs": epochs,
        "train_seconds": round(seconds, 1),
    }
    write_artefact(out, replace(artefact, metrics=metrics, provenance=provenance))
    return FitResult(out, row, evaluation, index.skipped, loader.photos.failures, seconds, epochs)


def _batch_size(recipe: Recipe, built: BuiltModel, device: torch.device, num_train: int) -> int:
    asked = recipe.train.batch_size
    if asked == "auto":
        model = built.model.to(device).train()
        size = (built.preprocess.channels, *built.preprocess.size)
        asked = largest_batch(model, size, device, num_train)
    wanted = min(asked, num_train)
    if wanted < 2:
        raise ConfigError(
            f"{num_train} training photo(s), batch size {wanted}: batch norm needs at least two at a time"
        )
    return wanted


def _precision(recipe: Recipe, device: torch.device) -> str:
    wanted = recipe.train.precision
    if wanted == "auto":
        wanted = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if wanted == "fp16" and device.type == "cpu":
        raise ConfigError("train.precision fp16 needs a GPU; use bf16 or fp32 on a CPU")
    return {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}[wanted]


@contextmanager
def _settings(recipe: Recipe) -> Iterator[None]:
    """Seed, threads and determinism of a run; what the process had before comes back after."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    cuda = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(recipe.seed)
        if recipe.train.threads:
            torch.set_num_threads(recipe.train.threads)
        if recipe.train.deterministic:
            torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Lightning's advice is for programmers; the person who trains sees our own messages."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"pytorch_lightning\..*|lightning_fabric\..*")
            warnings.filterwarnings("ignore", message=r".*(lr_scheduler\.step|does not have many workers|LeafSpec).*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
