"""``cmtvision compare``: models measured under equal conditions on this machine."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cmtvision.cli.arguments import RecipeOption, SettingsOption, check_free

if TYPE_CHECKING:
    from cmtvision.bench.comparison import Row
    from cmtvision.bench.target import ImgSize, Target
    from cmtvision.data import DatasetIndex
    from cmtvision.recipe import Recipe

DEFAULT_MODELS = (
    "cmt_ti", "cmt_xs", "cmt_s", "deit_tiny_patch16_224", "deit_small_patch16_224", "ceit_tiny_patch16_224",
    "ceit_small_patch16_224", "cvt_13", "pvt_v1_small", "mobilenetv3_large_100",
)  # fmt: skip
RECORD_FILE = "comparison.json"


def compare(  # typer reads options from the signature
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...",
            help="Names, ours or timm's, with a size or not (resnet50@288); patterns such as 'cmt_*'; run folders "
            "[CMT and models of similar cost].",
        ),
    ] = None,
    img_size: Annotated[
        int | None, typer.Option("--img-size", min=1, help="Side of the image in pixels; default: each model's own.")
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images at a time, for throughput and memory.")] = 8,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="How often each model is timed.")] = 5,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")] = "auto",
    runtime: Annotated[
        Literal["as-trained", "best"],
        typer.Option("--runtime", help="best: each model in the runtime that is the fastest here."),
    ] = "as-trained",
    precision: Annotated[
        str | None, typer.Option("--precision", help="Of --runtime best, comma-separated: fp32, bf16, fp16 [fp32].")
    ] = None,
    train: Annotated[
        str | None, typer.Option("--train", metavar="DATA", help="Train all on these images, under one recipe.")
    ] = None,
    recipe: RecipeOption = None,
    settings: SettingsOption = None,
    seeds: Annotated[int | None, typer.Option("--seeds", min=1, help="Trainings of each model [3].")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the comparison [runs/compare-TIME].")] = None,
    resume: Annotated[
        Literal["no", "yes", "auto"],
        typer.Option(
            "--resume", metavar="[auto]", help="Keep the trainings in --out and continue; auto: if there are any."
        ),
    ] = "no",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the comparison in --out.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the record as JSON.")] = False,
) -> None:
    """Compare models: parameters, multiply-adds, memory, latency, throughput, accuracy."""
    from cmtvision.cli import output
    from cmtvision.cli.compare_table import show_comparison
    from cmtvision.cli.plan import study_out
    from cmtvision.cli.provenance import provenance
    from cmtvision.cli.studies import begin_study, is_study, resume_command
    from cmtvision.errors import ConfigError

    if train is None and (recipe or settings or seeds or resume != "no"):
        raise ConfigError(
            "--recipe, --set, --seeds and --resume are about training; add --train DATA, or leave them out"
        )
    if precision is not None and runtime != "best":
        raise ConfigError("--precision chooses among runtimes; add --runtime best, or leave it out")
    if train is not None and overwrite:
        raise ConfigError("--overwrite would delete trainings; resume them with --resume, or choose another --out")
    folder, chosen = out or study_out("compare" if train is None else train, "compare"), None
    if train is None:
        if is_study(folder):
            raise ConfigError(f"{folder}: holds trainings; choose another --out")
        check_free(folder, overwrite)
    else:
        folder, chosen = begin_study(folder, out is not None, resume, recipe, _training_settings(settings, img_size))

    from cmtvision.artefact.predictor import pick_device
    from cmtvision.bench.target import find_targets

    targets = find_targets(models or DEFAULT_MODELS)
    if chosen is not None and train is not None:
        sized = next((target.name for target in targets if target.img_size is not None), None)
        if sized is not None:
            raise ConfigError(f"{sized}: all are trained on images of one size; leave the @ out, or use --img-size")
        from cmtvision.study.seeds import check_recipe, read_comparable

        check_recipe(chosen)  # before minutes are spent on measuring
        photos = read_comparable(chosen, train)
    size = img_size if chosen is None else chosen.model.img_size
    place = pick_device(device)
    output.note(f"compare  {len(targets)} models on {place}, batch 1 and {batch}, {rounds} rounds, in {folder}")
    precisions = None if runtime == "as-trained" else [word.strip() for word in (precision or "fp32").split(",")]
    rows = _measured(targets, size, batch, rounds, place, precisions)
    if chosen is not None and train is not None:
        again = resume_command(
            "compare",
            models or [],
            {
                "--batch": batch,
                "--rounds": rounds,
                "--device": device,
                "--runtime": None if runtime == "as-trained" else runtime,
                "--precision": precision,
                "--train": train,
                "--seeds": seeds,
                "--out": folder,
            },
        )
        rows = _trained(targets, rows, train, photos, chosen, seeds or 3, folder, again)
    record = {
        **provenance(),
        "device": place,
        "batch": batch,
        "rounds": rounds,
        "img_size": size,
        "runtime": runtime,
        "training": None if chosen is None else _training_facts(chosen, train, seeds or 3),
        **_compared(rows, batch),
    }
    written = _write(record, folder)
    if json:
        output.result_json(record)
    else:
        show_comparison(record)
        output.result(f"record: {folder / RECORD_FILE}, {', '.join(path.name for path in written)}")
    if not any(row["failure"] is None for row in record["rows"]):
        output.note("no model could be measured")
        raise typer.Exit(1)


def _training_settings(settings: Sequence[str] | None, img_size: int | None) -> list[str]:
    """The settings of all trainings; their images have the measured size."""
    from cmtvision.errors import ConfigError

    given = list(settings or [])
    if img_size is None:
        return given
    if any(setting.partition("=")[0].strip() == "model.img_size" for setting in given):
        raise ConfigError("--img-size and --set model.img_size: both given; keep one")
    return [*given, f"model.img_size={img_size}"]


def _measured(
    targets: "list[Target]", size: "ImgSize", batch: int, rounds: int, device: str, precisions: list[str] | None
) -> "list[Row]":
    """Rows of models as they are trained, or, of some precisions, in the fastest runtime."""
    from cmtvision.bench.compare import measure_all, measure_best
    from cmtvision.cli import output

    options: Any = {"img_size": size, "batch": batch, "rounds": rounds, "device": device, "phase": output.progress}
    return (
        measure_all(targets, **options)
        if precisions is None
        else measure_best(targets, precisions=precisions, **options)
    )


def _trained(
    targets: "list[Target]",
    rows: "list[Row]",
    data: str,
    photos: "DatasetIndex",
    recipe: "Recipe",
    seeds: int,
    folder: Path,
    again: str,
) -> "list[Row]":
    """Train every model that could be measured, and add the results."""
    from cmtvision.bench.compare import entries_to_train, with_training
    from cmtvision.cli import output
    from cmtvision.cli.studies import run_lines
    from cmtvision.study.seeds import train_all

    entries = entries_to_train(targets, rows)
    console = output.stderr_console()
    output.note(f"train    {len(entries)} models x {seeds} seeds on {data} under recipe {recipe.name}")
    results = train_all(
        entries,
        data,
        recipe,
        range(recipe.seed, recipe.seed + seeds),
        folder,
        console=console if console.is_terminal else None,
        on_run=run_lines(),
        again=again,
        photos=photos,
    )
    return with_training(rows, results)


def _training_facts(recipe: "Recipe", data: str | None, seeds: int) -> dict[str, Any]:
    return {
        "data": data,
        "recipe": recipe.model_dump(mode="json"),
        "seeds": list(range(recipe.seed, recipe.seed + seeds)),
    }


def _compared(rows: "list[Row]", batch: int) -> dict[str, Any]:
    from cmtvision.bench.comparison import chosen_kind, in_order, row_record, with_fronts

    ordered = with_fronts(in_order(rows))
    return {"accuracy": chosen_kind(ordered), "rows": [row_record(row, batch) for row in ordered]}


def _write(record: dict[str, Any], folder: Path) -> list[Path]:
    """The record, its table and its figures; returns the last two."""
    from json import dumps

    from cmtvision.files import write_text
    from cmtvision.report.comparison import write_comparison_csv, write_comparison_figures

    write_text(folder / RECORD_FILE, dumps(record, indent=1) + "\n")
    return [write_comparison_csv(record, folder), *write_comparison_figures(record, folder)]
