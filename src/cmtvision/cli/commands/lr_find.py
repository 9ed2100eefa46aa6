"""``cmtvision lr-find``: a learning rate from one short sweep."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cmtvision.cli.arguments import DATA_HELP, JsonOption, OpenRecipeOption, SettingsOption

if TYPE_CHECKING:
    from cmtvision.engine.lr_find import LrCurve


def lr_find(  # typer reads options from the signature
    data: Annotated[str, typer.Argument(metavar="DATA", help=DATA_HELP)],
    recipe: OpenRecipeOption = None,
    settings: SettingsOption = None,
    start: Annotated[float, typer.Option("--from", metavar="LR", help="The rate to begin with.")] = 1e-6,
    end: Annotated[float, typer.Option("--to", metavar="LR", help="The rate to end with.")] = 1.0,
    steps: Annotated[int, typer.Option("--steps", min=20, help="Steps of the sweep.")] = 100,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.svg|FILE.png", help="Plot [runs/DATA-MODEL-TIME.svg].")
    ] = None,
    csv: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write every step to a CSV file.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace plot and CSV.")] = False,
    json: JsonOption = False,
) -> None:
    """Find a learning rate: train for some steps with a growing one, and see where the loss falls fastest."""
    from cmtvision.cli import output
    from cmtvision.cli.plan import base_recipe, default_out

    chosen = base_recipe(data, recipe, settings or [])
    plot = out or default_out(data, chosen).with_suffix(".svg")
    for file in (plot, csv):
        if file is not None:
            output.refuse_overwrite(file, overwrite)
    if plot.suffix.lower() not in (".svg", ".png"):  # said before the sweep, not after
        from cmtvision.errors import ConfigError

        raise ConfigError(f"--out {plot}: a plot is written as .svg or .png; choose such a name")

    from cmtvision.engine.build import fetch_pretrained
    from cmtvision.engine.lr_find import find_lr

    fetch_pretrained(chosen)
    with output.progress("sweeping") as progress:
        curve = find_lr(chosen, data, start=start, end=end, steps=steps, progress=progress)
    from cmtvision.report.lr_curve import write_lr_curve

    write_lr_curve(curve, plot)
    if csv is not None:
        _write_steps(curve, csv, overwrite)
    if json:
        output.result_json(_as_json(curve, plot))
        return
    _show(curve)
    output.result(f"plot: {plot}")


def _show(curve: "LrCurve") -> None:
    from cmtvision.cli import output

    ended = "the loss grew to four times its lowest" if curve.diverged else "the end of the range"
    output.result(f"sweep: {len(curve.losses)} steps of {curve.effective_batch} photos, ended by {ended}")
    if curve.suggestion is None or curve.steepest is None:
        output.result("the loss never fell: no rate to suggest; see the plot, and try other --from and --to")
        return
    output.result(f"loss lowest at {curve.minimum:.2g}, falling fastest at {curve.steepest:.2g}")
    output.result(f"suggested peak rate: {curve.suggestion:.2g} (the recipe's: {curve.recipe_lr:.2g})")
    setting = f"--set optim.lr={curve.setting(curve.suggestion):.2g}"
    if curve.lr_base_batch:
        setting += f"   (optim.lr counts for {curve.lr_base_batch} photos a step, here are {curve.effective_batch})"
    output.result(f"use it: {setting}")


def _as_json(curve: "LrCurve", plot: Path) -> dict[str, Any]:
    setting = None if curve.suggestion is None else curve.setting(curve.suggestion)
    return {**vars(curve), "optim_lr": setting, "plot": str(plot)}


def _write_steps(curve: "LrCurve", file: Path, overwrite: bool) -> None:
    import csv

    from cmtvision.cli import output

    with output.new_text_file(file, overwrite) as text:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["step", "lr", "loss", "smoothed"])
        writer.writerows(zip(range(len(curve.losses)), curve.lrs, curve.losses, curve.smoothed, strict=True))
