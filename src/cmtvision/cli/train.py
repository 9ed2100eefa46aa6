"""``cmtvision train``: from a folder of photos to a trained model and a report."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from cmtvision.engine import FitResult
    from cmtvision.recipe import Recipe

_SHOWN = 10


def train(  # typer reads options from the signature
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Folder of class folders, or a CSV with path,label.")],
    model: Annotated[str | None, typer.Option("--model", help="cmt_nano, cmt_ti, ... or any of timm.")] = None,
    weights: Annotated[
        str | None, typer.Option("--weights", metavar="FILE|pretrained", help="Start from these weights.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", metavar="NAME|FILE", help="A built-in recipe or a YAML file [default].")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change one setting; may be repeated.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Run folder [runs/DATA-MODEL-TIME].")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Short for --set schedule.epochs=N.")] = None,
    batch_size: Annotated[str | None, typer.Option("--batch-size", metavar="N|auto", help="Photos at a time.")] = None,
    device: Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or mps.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Seed of everything random.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train a classifier on your photos; writes a run folder with model, curves and report."""
    from cmtvision.cli import output
    from cmtvision.cli.plan import check_resume, default_out, merged_overrides, show_plan
    from cmtvision.recipe import load_recipe

    shorthands: dict[str, Any] = {
        "model.name": model,
        "model.weights": weights,
        "schedule.epochs": epochs,
        "train.batch_size": int(batch_size) if batch_size and batch_size.isdigit() else batch_size,
        "train.device": device,
        "seed": seed,
    }
    if resume:
        chosen = load_recipe(*check_resume(out, recipe, settings or [], shorthands, overwrite))
    else:
        chosen = load_recipe(recipe, merged_overrides(recipe, settings or [], shorthands))
    folder = out or default_out(data, chosen)
    show_plan(chosen, data, folder, resume)

    from cmtvision.engine import fit

    finished = fit(chosen, data, folder, resume=resume, overwrite=overwrite, console=output.stderr_console())
    from cmtvision.report import write_report

    page = write_report(folder)
    _report_left_out(finished)
    if json:
        output.result_json(_as_json(finished, page, chosen))
        return
    evaluation = finished.evaluation
    count = f"{finished.epochs} epoch{'' if finished.epochs == 1 else 's'}"
    output.result(f"trained {chosen.model.name}: {count} in {output.duration(finished.seconds)}")
    if evaluation is not None:
        output.result(
            f"held-out accuracy: {evaluation.top1:.2%} ({evaluation.top1_correct}/{evaluation.num_images})"
            + (f", among the first five: {evaluation.top5:.2%}" if len(evaluation.classes) > 5 else "")
        )
    output.result(f"run folder: {folder}")
    output.result(f"report: {page}")
    _say_next(folder, data)


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
        "failures": [str(path) for path in finished.failures],
        "report": str(page),
    }


def _say_next(folder: Path, data: Path) -> None:
    from shlex import quote

    from cmtvision.cli import output

    output.note(f"next: cmtvision eval {quote(str(folder))} {quote(str(data))}")
    output.note(f"      cmtvision predict {quote(str(folder))} PHOTO...")
