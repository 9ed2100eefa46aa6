"""``cmtvision train``: from a folder of images to a trained model and a report."""

import time
from contextlib import ExitStack
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cmtvision.cli.arguments import (
    DATA_HELP,
    LEAST_MINUTES,
    MOST_MINUTES,
    ChangedDataOption,
    EpochsOption,
    JsonOption,
    OpenRecipeOption,
    OverwriteRunOption,
    ResumeOption,
    RunFolderOption,
    SeedOption,
    SettingsOption,
    TrainDeviceOption,
    TrainDevicesOption,
)

if TYPE_CHECKING:
    from cmtvision.recipe import Recipe

_REPORT_SECONDS = 4.0  # that --minutes keeps for the report


def train(  # typer reads options from the signature
    context: typer.Context,
    data: Annotated[str, typer.Argument(metavar="DATA", help=DATA_HELP)],
    model: Annotated[str | None, typer.Option("--model", help="cmt_nano, cmt_ti, ... or any of timm.")] = None,
    weights: Annotated[
        str | None, typer.Option("--weights", metavar="FILE|pretrained", help="Start from these weights.")
    ] = None,
    recipe: OpenRecipeOption = None,
    settings: SettingsOption = None,
    out: RunFolderOption = None,
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", metavar="N", min=LEAST_MINUTES, max=MOST_MINUTES, help="Finish within N minutes."),
    ] = None,
    epochs: EpochsOption = None,
    batch_size: Annotated[str | None, typer.Option("--batch-size", metavar="N|auto", help="Images at a time.")] = None,
    device: TrainDeviceOption = None,
    seed: SeedOption = None,
    devices: TrainDevicesOption = None,
    resume: ResumeOption = "no",
    accept_changed_data: ChangedDataOption = False,
    overwrite: OverwriteRunOption = False,
    wandb: Annotated[bool, typer.Option("--wandb", help="Send the curves to Weights & Biases too.")] = False,
    mlflow: Annotated[bool, typer.Option("--mlflow", help="Send the curves to MLflow too.")] = False,
    json: JsonOption = False,
) -> None:
    """Train a classifier on your images; writes a run folder with model, curves and report.

    Without --recipe, what fits your images and this machine is chosen, and printed with its reasons before training
    starts.
    """
    from cmtvision.cli import launch, output
    from cmtvision.cli.outcome import as_json, report_left_out, say_outcome
    from cmtvision.cli.plan import (
        STOPPED_PLANNING,
        default_out,
        merged_overrides,
        recipe_to_resume,
        settled,
        show_plan,
    )
    from cmtvision.cli.resuming import recipe_there

    began = context.meta.get(output.BEGAN, time.perf_counter()) - launch.seconds_before()
    shorthands: dict[str, Any] = {
        "model.name": model,
        "model.weights": weights,
        "schedule.epochs": epochs,
        "train.batch_size": int(batch_size) if batch_size and batch_size.isdecimal() else batch_size,
        "train.device": device,
        "seed": seed,
    }
    extra = ["tensorboard", *(name for name, wanted in (("wandb", wandb), ("mlflow", mlflow)) if wanted)]
    settings = [*(settings or []), *([f"train.loggers=[{', '.join(extra)}]"] if wandb or mlflow else [])]
    known: Recipe | None = None  # the recipe of a run that is resumed
    if resume == "yes":
        known = recipe_to_resume(out, recipe, settings, shorthands, overwrite, minutes)
    else:
        settings = merged_overrides(recipe, settings, shorthands)
        known = recipe_there(out, recipe, settings, minutes) if resume == "auto" else None
    first = launch.is_first()
    resumed = resume == "yes" or (resume == "auto" and out is not None and any((out / "checkpoints").glob("*.ckpt")))
    starts_others = devices is not None and devices > 1 and not launch.is_launched()
    count = (devices or 1) if starts_others else launch.num_processes()
    with ExitStack() as stack:
        try:
            chosen, index = settled(
                known,
                recipe,
                settings,
                data,
                out,
                minutes=minutes,
                began=began,
                after=_REPORT_SECONDS,
                processes=count,
                overwrite=overwrite or resume == "auto",
                stack=stack,
            )
            folder = out or default_out(data, chosen.recipe)
            if first and not launch.plan_was_said():
                show_plan(chosen, data, folder, resumed, count, index)
            del index  # it may be long, and training makes its own: of files that were looked into
        except KeyboardInterrupt:
            raise KeyboardInterrupt(STOPPED_PLANNING) from None
        if starts_others:
            spent = time.perf_counter() - began
            raise typer.Exit(launch.launch_run(count, chosen.recipe, context.obj, folder, spent, new=known is None))
        from cmtvision.engine import fit

        finished = fit(
            chosen.recipe,
            data,
            folder,
            resume={"no": False, "yes": True}.get(resume, "auto"),
            overwrite=overwrite,
            accept_changed_data=accept_changed_data,
            console=output.stderr_console(),
            spent=time.perf_counter() - began,
            after=_REPORT_SECONDS,
        )
    if not first:
        return
    from cmtvision.report import write_report

    try:
        page = write_report(folder)
    except KeyboardInterrupt:
        several = "" if devices is None else f" --devices {devices}"
        again = f"cmtvision train {quote(data)} --out {quote(str(folder))}{several} --resume"
        raise KeyboardInterrupt(
            f"stopped by Ctrl-C while the report was written; the model is in {folder}, write the report with: {again}"
        ) from None
    report_left_out(finished)
    if json:
        output.result_json(as_json(finished, chosen.recipe, page))
    else:
        bare = recipe is None and not settings and known is None and count == 1
        say_outcome(finished, chosen.recipe, data, page, bare=bare)
