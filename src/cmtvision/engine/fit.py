"""Training, from a recipe and a folder of photos to a run folder (see artefact/run for what it holds)."""

import json
import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytorch_lightning as pl
import torch
from rich.console import Console

from cmtvision.artefact import write_artefact
from cmtvision.artefact.confusion import MATRIX_CLASSES
from cmtvision.artefact.predictor import pick_device
from cmtvision.artefact.run.names import EVALUATION_FILE, has_checkpoint
from cmtvision.artefact.run.write import (
    alone_in,
    check_free,
    check_same_run,
    is_unbegun,
    write_beginning,
    write_data_record,
    write_moved_data,
)
from cmtvision.data import DatasetIndex, Sample, Skipped
from cmtvision.engine.build import BuiltModel, portable
from cmtvision.engine.calibrate import write_bank
from cmtvision.engine.callbacks.ema import EmaCallback
from cmtvision.engine.callbacks.progress import ProgressView
from cmtvision.engine.callbacks.run import RunCallback
from cmtvision.engine.callbacks.stopping import Interruptions, TrainingDiverged, TrainingInterrupted, interruptions
from cmtvision.engine.callbacks.tracking import build_loggers
from cmtvision.engine.checkpoints import find_checkpoint
from cmtvision.engine.choosing.look import reading_seconds
from cmtvision.engine.classification import CLASSIFICATION
from cmtvision.engine.distributed.fsdp import check_sharding
from cmtvision.engine.distributed.processes import Processes, join_processes
from cmtvision.engine.distributed.sync_bn import synchronise_batch_norm
from cmtvision.engine.evaluation.evaluate import Evaluation
from cmtvision.engine.evaluation.multilabel import MultiLabelEvaluation
from cmtvision.engine.lightning_settings import quiet_lightning, run_settings, trainer_place, trainer_precision
from cmtvision.engine.loaders import TrainLoader
from cmtvision.engine.module import TrainingModule
from cmtvision.engine.optim import freeze
from cmtvision.engine.pace import Pace
from cmtvision.engine.plan import RunPlan
from cmtvision.engine.task import Task
from cmtvision.errors import CheckpointError, ConfigError
from cmtvision.files import write_text
from cmtvision.recipe import Recipe
from cmtvision.trust.block import TrustBlock

if TYPE_CHECKING:
    from cmtvision.engine.dense.task import DenseEvaluation

__all__ = ["FitResult", "TrainingDiverged", "TrainingInterrupted", "fit"]


@dataclass(frozen=True)
class FitResult:
    """A finished run.

    Attributes:
        out: the run folder.
        metrics: the last row of metrics.csv.
        rows: all of them.
        evaluation: the final model on the held-out images, None where nothing was held out.
        skipped: files left out when the data was read.
        failures: names of photos that could no longer be read during training.
        seconds: time of training.
        epochs: epochs trained.
        trust: its calibration on the held-out photos; None where nothing was held out, or photos have several labels.
        num_test: photos that the data sets apart for test; training did not look at them.
        late_signal: 'Ctrl-C' or a signal's name that came in the last epoch, too late to stop this run; a caller with
            more to do should stop.
    """

    out: Path
    metrics: dict[str, Any]
    evaluation: "Evaluation | MultiLabelEvaluation | DenseEvaluation | None"
    skipped: list[Skipped] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0
    epochs: int = 0
    late_signal: str = ""
    num_test: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    trust: TrustBlock | None = None


def fit(
    recipe: Recipe,
    data: str | Path,
    out: str | Path,
    *,
    resume: bool | Literal["auto"] = False,
    overwrite: bool = False,
    accept_changed_data: bool = False,
    console: Console | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    index: Any = None,
    spent: float = 0.0,
    after: float = 0.0,
    task: Task = CLASSIFICATION,
) -> FitResult:
    """Train a network: a classifier, unless another task is given.

    Where torchrun or SLURM started several processes, each calls this and all take part: every one sees its share of
    each batch, the first writes the run folder, and all return the same result.

    Args:
        recipe: what the run is.
        data: the photos (see ``cmtvision.data.read_dataset``).
        out: the run folder to write; on several machines a folder that all of them see.
        resume: go on with the run in ``out``; recipe and data must be its own. 'auto' goes on where there is something
            to go on with and starts otherwise.
        overwrite: replace a run that is already there.
        accept_changed_data: go on although photos were added or removed since the run began.
        console: where progress is shown; None for silence.
        on_epoch: called with each new row of metrics.csv; what it raises ends training.
        index: the list of photos, where ``data`` has been read already.
        spent, after: seconds of ``train.max_minutes`` already used, and seconds to keep for the caller afterwards.
        task: what is learned.

    Raises:
        ConfigError: a recipe that cannot be carried out, or a run folder in the way.
        DataError: photos that cannot be used, or that changed since the run began.
        CheckpointError: weights that do not fit, or a disk that is full.
        TrainingInterrupted: stopped by Ctrl-C, SIGTERM or SIGUSR1, with the state saved.
        TrainingDiverged: the loss is no longer a number or grows without end.
    """
    out, recipe, began = Path(out), portable(recipe), time.perf_counter() - spent
    place = join_processes(pick_device(recipe.train.device))
    with (
        place as processes,
        ExitStack() as stack,
        interruptions(lambda: _start_again(task, data, out, processes)) as now,
    ):
        if recipe.train.strategy == "fsdp":
            check_sharding(recipe, processes)
        console = console if processes.is_first else None
        processes.first(lambda: _resumes(out, resume, overwrite))  # refused before anything is touched
        processes.first(lambda: stack.enter_context(alone_in(out)))
        go_on = processes.first(lambda: _resumes(out, resume, overwrite))
        now.doing = "reading the photos"
        photos = processes.first(lambda: index if index is not None else task.read(recipe, data))
        if go_on:
            listing = processes.first(
                lambda: check_same_run(out, task.listing(photos), processes.world_size, accept_changed_data)
            )
            photos = task.in_parts(photos, listing)
        device = torch.device(processes.device(pick_device(recipe.train.device)))
        now.doing = "building the network"
        with quiet_lightning(), run_settings(recipe):
            built = task.build(recipe, photos, go_on)
            if console is not None:
                for line in built.notes:
                    console.print(line, highlight=False, markup=False)
            freeze(built.model, recipe)
            if recipe.train.channels_last:
                built.model.to(memory_format=torch.channels_last)
            batch_size = task.batch_size(recipe, built, device, photos, processes)
            loader = task.train_loader(photos, built, recipe, batch_size, processes)
            loader.accept_changed = accept_changed_data
            plan = RunPlan(recipe, out, processes, _resume_hint(task, data, out, processes), on_epoch)
            pace = _pace(plan, loader, photos.val, began, after)
            return _run(
                task,
                plan,
                photos,
                built,
                loader,
                device,
                go_on,
                console,
                now,
                pace,
                begin=lambda: _prepare_folder(plan, data, task.listing(photos), go_on, accept_changed_data),
            )


def _run(
    task: Task,
    plan: RunPlan,
    index: Any,
    built: BuiltModel,
    loader: TrainLoader,
    device: torch.device,
    resume: bool,
    console: Console | None,
    now: Interruptions,
    pace: Pace,
    begin: Callable[[], None],
) -> FitResult:
    """Train; ``begin`` writes the run folder, and clears it of the run before, once nothing is left to be refused."""
    recipe, processes = plan.recipe, plan.processes
    train, batch_size = recipe.train, loader.batch_size or 1
    ema = EmaCallback(built.model, recipe.ema) if recipe.ema.enabled else None
    module = TrainingModule(
        built.model,
        recipe,
        task.objective(recipe, index, built, device),
        steps_per_epoch=pace.steps_per_epoch,
        effective_batch=batch_size * train.accumulate * processes.world_size,
        rank=processes.rank,
        pace=pace,
    )
    if processes.world_size > 1 and train.sync_bn:
        module.model = synchronise_batch_norm(module.model, device)
    val_loader = None
    if index.val:
        val_loader = task.val_loader(index, built, recipe, train.eval_batch_size or batch_size * 2, processes)
    view = ProgressView(console, len(loader) * plan.total_epochs, plan.total_epochs, task.said)
    run = RunCallback(plan, task, loader, val_loader, ema, view, pace)
    trainer = pl.Trainer(
        **trainer_place(recipe, device, processes),
        precision=trainer_precision(recipe, device),  # type: ignore[arg-type]
        max_epochs=plan.total_epochs,
        max_steps=train.max_steps or -1,
        accumulate_grad_batches=train.accumulate,
        gradient_clip_val=recipe.optim.clip_grad_norm,
        callbacks=[callback for callback in (ema, run) if callback is not None],
        logger=build_loggers(recipe, plan.out) if processes.is_first else False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    checkpoint = None
    if resume:
        checkpoint, damaged = processes.first(lambda: find_checkpoint(plan.out))
        if console is not None:
            for line in damaged:
                console.print(f"{line}; going on from {checkpoint.name}", highlight=False, markup=False)
    if processes.rank:  # each process draws its own dropout and drop path; the weights are the first one's
        torch.manual_seed(recipe.seed + processes.rank)
    processes.first(begin)
    now.doing = "training"
    try:
        trainer.fit(module, loader, ckpt_path=str(checkpoint) if checkpoint else None, weights_only=True)
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"batches of {batch_size} do not fit in the memory of {device}; set {task.smaller}"
        ) from error
    except (RuntimeError, KeyError) as error:
        if resume and "state_dict" in str(error):
            raise CheckpointError(f"{checkpoint}: does not fit this recipe; start anew without --resume") from error
        raise
    finally:
        run.close()
    now.doing = "evaluating the final network"
    run.settle(trainer, module, device)  # a run that was complete does not even begin
    if run.finished and console is not None:
        console.print(f"the run is finished ({run.finished}); nothing was left to train", highlight=False)
    network = module.whole(ema.network if ema is not None else module.model)
    if run.held_out.best["weights"] is not None:
        network.load_state_dict(run.held_out.best["weights"])
    return _finish(task, plan, index, built, network.cpu().eval(), loader, run)


def _pace(plan: RunPlan, loader: TrainLoader, val: Sequence[Sample], began: float, after: float) -> Pace:
    """The schedule's steps, and the time that they may take."""
    train = plan.recipe.train
    reading = 0.0
    if train.max_minutes and val:
        readers = plan.processes.world_size * max(1, loader.num_workers)
        reading = len(val) * reading_seconds(val, plan.recipe.data) / readers
    steps = -(-len(loader) // train.accumulate)
    return Pace(
        steps * plan.total_epochs,
        steps,
        train.max_minutes * 60 if train.max_minutes else None,
        evaluations=(len(val) / max(1, len(loader.photos.samples)), train.eval_every),
        reading=reading,
        most=train.max_steps,
        spent=time.perf_counter() - began,
        after=after,
    )


def _finish(
    task: Task,
    plan: RunPlan,
    index: Any,
    built: BuiltModel,
    network: torch.nn.Module,
    loader: TrainLoader,
    run: RunCallback,
) -> FitResult:
    """Evaluate the final network once more as everyone will use it, and write the artefact."""
    recipe, out, processes = plan.recipe, plan.out, plan.processes
    final = task.finish(plan, index, built, network)
    metrics = {} if final.evaluation is None else final.evaluation.summary()
    rows = run.record.rows
    row = rows[-1] if rows else {}
    seconds = float(row.get("seconds", run.record.seconds))
    provenance = {
        "recipe": recipe.name,
        "data_fingerprint": index.fingerprint,
        "train_images": len(index.train),
        "epochs": len(rows),
        "train_seconds": round(seconds, 1),
        "processes": processes.world_size,
    }

    def write() -> TrustBlock | None:
        if final.evaluation is not None:
            # thousands of classes: a line for each number would be a file that no one can open
            indent = 1 if len(index.classes) <= MATRIX_CLASSES else None
            write_text(out / EVALUATION_FILE, json.dumps(final.evaluation.to_dict(), indent=indent) + "\n")
        trust = None if final.trust is None else write_bank(out, final.trust, final.bank)
        write_artefact(out, replace(final.artefact, metrics=metrics, provenance=provenance, trust=trust))
        return trust

    trust = processes.first(write)
    failures = sorted({str(path) for paths in processes.gather(loader.photos.failures) for path in paths})
    return FitResult(
        out,
        row,
        final.evaluation,
        index.skipped,
        failures,
        seconds,
        len(rows),
        run.signals.received,
        len(index.test),
        list(rows),
        trust,
    )


def _resumes(out: Path, resume: bool | Literal["auto"], overwrite: bool) -> bool:
    """Whether to go on with a run; refuses a folder in the way."""
    if resume == "auto":
        resume = has_checkpoint(out)
    check_free(out, resume, overwrite or is_unbegun(out))
    return resume


def _prepare_folder(plan: RunPlan, data: str | Path, index: DatasetIndex, resume: bool, accept_changed: bool) -> None:
    out, recipe, world_size = plan.out, plan.recipe, plan.processes.world_size
    if not resume:
        write_beginning(out, recipe, data, index, world_size)
    elif accept_changed:
        write_data_record(out, recipe, data, index, world_size)
    else:
        write_moved_data(out, data, index)


def _start_again(task: Task, data: str | Path, out: Path, processes: Processes) -> str:
    """What to say of a run that was stopped before or after its steps: what is kept, and how to go on."""
    if has_checkpoint(out):
        return f"what was saved is kept, go on with: {_resume_hint(task, data, out, processes)}"
    return "nothing was saved yet, start again with the same command"


def _resume_hint(task: Task, data: str | Path, out: Path, processes: Processes) -> str:
    devices = f" --devices {processes.world_size}" if processes.world_size > 1 and processes.num_nodes == 1 else ""
    return f"{task.command} {shlex.quote(str(data))} --out {shlex.quote(str(out))} --resume{devices}"
