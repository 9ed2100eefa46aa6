"""``cmtvision train``: from a folder of photos to a trained model and a report."""

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cmtvision.cli.arguments import DATA_HELP, RecipeOption, SettingsOption

if TYPE_CHECKING:
    from cmtvision.engine import FitResult
    from cmtvision.recipe import Recipe

_SHOWN = 10


def train(  # typer reads options from the signature
    context: typer.Context,
    data: Annotated[str, typer.Argument(metavar="DATA", help=DATA_HELP)],
    model: Annotated[str | None, typer.Option("--model", help="cmt_nano, cmt_ti, ... or any of timm.")] = None,
    weights: Annotated[
        str | None, typer.Option("--weights", metavar="FILE|pretrained", help="Start from these weights.")
    ] = None,
    recipe: RecipeOption = None,
    settings: SettingsOption = None,
    out: Annotated[Path | None, typer.Option("--out", help="Run folder [runs/DATA-MODEL-TIME].")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Short for --set schedule.epochs=N.")] = None,
    batch_size: Annotated[str | None, typer.Option("--batch-size", metavar="N|auto", help="Photos at a time.")] = None,
    device: Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or mps.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Seed of everything random.")] = None,
    devices: Annotated[
        int | None, typer.Option("--devices", min=1, help="Processes on this machine, one for each GPU [1].")
    ] = None,
    resume: Annotated[
        Literal["no", "yes", "auto"],
        typer.Option("--resume", metavar="[auto]", help="Go on with the run in --out; auto: if there is one."),
    ] = "no",
    accept_changed_data: Annotated[
        bool, typer.Option("--accept-changed-data", help="Resume although photos were added or removed.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.")] = False,
    wandb: Annotated[bool, typer.Option("--wandb", help="Send the curves to Weights & Biases too.")] = False,
    mlflow: Annotated[bool, typer.Option("--mlflow", help="Send the curves to MLflow too.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train a classifier on your photos; writes a run folder with model, curves and report."""
    from cmtvision.cli import launch, output
    from cmtvision.cli.plan import check_resume, default_out, merged_overrides, show_plan
    from cmtvision.cli.resuming import same_recipe
    from cmtvision.recipe import load_recipe

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
    if resume == "yes":
        chosen = load_recipe(*check_resume(out, recipe, settings, shorthands, overwrite))
    else:
        chosen = load_recipe(recipe, merged_overrides(recipe, settings, shorthands))
        if resume == "auto":
            from cmtvision.engine.build import portable

            chosen = same_recipe(out, portable(chosen))
    folder = out or default_out(data, chosen)
    if devices is not None and devices > 1 and not launch.is_launched():
        words = launch.without_devices(context.obj, *([] if out else ["--out", str(folder)]))
        code = launch.launch(devices, chosen.train.device, words)
        if code:
            raise typer.Exit(code)
        return
    if launch.is_first():
        resumed = resume == "yes" or (resume == "auto" and any((folder / "checkpoints").glob("*.ckpt")))
        try:
            show_plan(chosen, data, folder, resumed, launch.num_processes())
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                "stopped by Ctrl-C while the run was planned; nothing was written, start again with the same command"
            ) from None

    from cmtvision.engine import fit

    finished = fit(
        chosen,
        data,
        folder,
        resume={"no": False, "yes": True}.get(resume, "auto"),
        overwrite=overwrite,
        accept_changed_data=accept_changed_data,
        console=output.stderr_console(),
    )
    if not launch.is_first():
        return
    from cmtvision.report import write_report

    try:
        page = write_report(folder)
    except KeyboardInterrupt:
        again = f"cmtvision train {quote(data)} --out {quote(str(folder))} --resume"
        raise KeyboardInterrupt(
            f"stopped by Ctrl-C while the report was written; the model is in {folder}, write the report with: {again}"
        ) from None
    _report_left_out(finished)
    if json:
        output.result_json(_as_json(finished, page, chosen))
        return
    evaluation = finished.evaluation
    count = f"{finished.epochs} epoch{'' if finished.epochs == 1 else 's'}"
    output.result(f"trained {chosen.model.name}: {count} in {output.duration(finished.seconds)}")
    if evaluation is not None:
        output.result(f"held-out {evaluation.headline()}")
    output.result(f"run folder: {folder}")
    output.result(f"report: {page}")
    _say_next(folder, data, split="test" if evaluation is None and finished.num_test else "val")


def _report_left_out(finished: "FitResult") -> None:
    """Name the files that were not used, on stderr."""
    from cmtvision.cli import output

    skipped = finished.skipped
    if skipped:
        output.note(f"skipped {len(skipped)} file{'s' if len(skipped) > 1 else ''}:")
        for item in skipped[:_SHOWN]:
            output.note(f"  {item.path}: {item.reason}")
        if len(skipped) > _SHOWN:
            output.note(f"  and {len(skipped) - _SHOWN} more, all in {finished.out / 'skipped.csv'}")
    for path in finished.failures[:_SHOWN]:
        output.note(f"could no longer be read during training: {path}")


def _as_json(finished: "FitResult", page: Path, recipe: "Recipe") -> dict[str, Any]:
    return {
        "out": str(finished.out),
        "model": recipe.model.name,
        "epochs": finished.epochs,
        "seconds": finished.seconds,
        "metrics": finished.metrics,
        "evaluation": finished.evaluation.to_dict() if finished.evaluation is not None else None,
        "skipped": [{"path": str(item.path), "reason": item.reason} for item in finished.skipped],
        "failures": finished.failures,
        "report": str(page),
    }


def _say_next(folder: Path, data: str, split: str) -> None:
    from cmtvision.cli import output

    output.note(f"next: cmtvision eval {quote(str(folder))} {quote(data)}{' --split test' if split == 'test' else ''}")
    output.note(f"      cmtvision predict {quote(str(folder))} PHOTO...")
