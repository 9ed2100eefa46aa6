"""``cmtvision ablate``: the effect of each idea of CMT, measured on your images."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cmtvision.cli.arguments import DATA_HELP, RecipeOption, SettingsOption

if TYPE_CHECKING:
    from cmtvision.recipe import Recipe


def ablate(  # typer reads options from the signature
    data: Annotated[str, typer.Argument(metavar="DATA", help=DATA_HELP)],
    size: Annotated[
        Literal["nano", "micro", "ti", "s"] | None,
        typer.Option("--size", help="The CMT at the top of the ladder [nano]."),
    ] = None,
    only: Annotated[
        Literal["ladder", "leave-one-out"] | None, typer.Option("--only", help="One half of the study [both].")
    ] = None,
    recipe: RecipeOption = None,
    settings: SettingsOption = None,
    seeds: Annotated[int | None, typer.Option("--seeds", min=1, help="Trainings of each network [3].")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the study [runs/DATA-ablate-TIME].")] = None,
    resume: Annotated[
        Literal["no", "yes", "auto"],
        typer.Option("--resume", metavar="[auto]", help="Resume the study in --out; auto: if there is one."),
    ] = "no",
    json: Annotated[bool, typer.Option("--json", help="Print the record as JSON.")] = False,
) -> None:
    """Train the ladder from DeiT to CMT, and CMT without one idea each, under one recipe; compare them seed by seed.

    A resumed study keeps its recipe; --seeds may grow, --only and --size may name the other part.
    """
    from cmtvision.cli import output
    from cmtvision.cli.plan import study_out
    from cmtvision.cli.provenance import provenance
    from cmtvision.cli.studies import begin_study, resume_command, run_lines

    folder, chosen = begin_study(out or study_out(data, "ablate"), out is not None, resume, recipe, settings or [])

    from cmtvision.study.ablation import PARTS, ablate, ablation_entries

    parts = (only,) if only else PARTS
    entries = ablation_entries(size or "nano", parts)
    count = seeds or 3
    output.note(f"study    {len(entries)} networks x {count} seeds under recipe {chosen.name}, in {folder}")
    console = output.stderr_console()
    record = ablate(
        size or "nano",
        data,
        chosen,
        range(chosen.seed, chosen.seed + count),
        folder,
        parts=parts,
        console=console if console.is_terminal else None,
        on_run=run_lines(),
        again=resume_command("ablate", [data], {"--size": size, "--only": only, "--seeds": seeds, "--out": folder}),
        facts=provenance(),
    )
    from cmtvision.report.ablation import write_ablation_csv, write_ablation_figures

    table = write_ablation_csv(record, folder)
    figures = write_ablation_figures(record, folder)
    if json:
        output.result_json(record)
        return
    _show(record, chosen)
    output.result(f"record: {folder / 'ablation.json'}")
    output.result(f"table: {table}, figure: {figures[0]}")


def _show(record: dict[str, Any], recipe: "Recipe") -> None:
    from cmtvision.cli import output
    from cmtvision.report.ablation import in_points, label

    rows = []
    for row in record["rows"]:
        top1 = row["top1"]
        rows.append(
            [
                label(row),
                f"{row['parameters'] / 1e6:.2f} M",
                f"{row['gmacs']:.4g}",
                f"{top1['mean']:.2%}" if top1 else "-",
                in_points(top1, signed=False) if top1 else "failed",
                in_points(row["difference"]) if row["difference"] else "-",
                label({"key": row["compared_with"]}) if row["compared_with"] else "-",
            ]
        )
    columns = ["network", "parameters", "GMACs", "top-1", "95% interval", "difference, points", "to"]
    output.table(
        columns,
        rows,
        right=columns[1:6],
        title=f"{record['num_train']:,} photos, {recipe.schedule.epochs} epochs, {len(record['seeds'])} seeds, tested "
        f"on {record['num_val']:,}",
    )
    for row in record["rows"]:
        if row["failure"]:
            output.note(f"{row['key']}: {row['failure']}")
    output.note("intervals: Student's t over seeds, 95%; differences are paired by seed, in percentage points.")
