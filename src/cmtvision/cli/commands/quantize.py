"""``cmtvision quantize``: an 8-bit model within an accuracy budget."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cmtvision.cli.arguments import DATA_HELP, JsonOption

if TYPE_CHECKING:
    from cmtvision.deploy.quantizing.quantized import Layer, Quantized


def quantize(  # typer reads options from the signature
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of a trained model.")],
    data: Annotated[str | None, typer.Argument(metavar="[DATA]", help=f"{DATA_HELP} [the run's own]")] = None,
    to: Annotated[Literal["openvino", "onnx"], typer.Option("--to", help="For which runtime.")] = "openvino",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Folder to write [RUN/exports/...].")
    ] = None,
    max_drop: Annotated[
        float, typer.Option("--max-drop", metavar="POINTS", help="Points of top-1 that may be lost on held-out images.")
    ] = 0.5,
    calibration: Annotated[
        int | None,
        typer.Option("--calibration", metavar="N", help="Training images to collect ranges from, at least 32 [300]."),
    ] = None,
    num_images: Annotated[
        int | None, typer.Option("--num-images", min=1, metavar="N", help="Held-out images to measure on [all].")
    ] = None,
    weight_only: Annotated[
        bool, typer.Option("--weight-only", help="Store the weights in 8 bits and compute in floating point.")
    ] = False,
    rest: Annotated[
        Literal["fp32", "bf16"], typer.Option("--rest", help="Precision of what is not in 8 bits; bf16 with OpenVINO.")
    ] = "fp32",
    img_size: Annotated[
        int | None, typer.Option("--img-size", min=1, metavar="PIXELS", help="Side of the image [the model's].")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images at a time to be fast for.")] = 1,
    seed: Annotated[int, typer.Option("--seed", help="Which images are drawn.")] = 0,
    json: JsonOption = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing export.")] = False,
) -> None:
    """Quantise a model: int8 where it is safe and fast, measured on real images; refused where accuracy is lost."""
    from cmtvision.cli import output
    from cmtvision.deploy.quantizing.quantize import BudgetError
    from cmtvision.deploy.quantizing.quantize import quantize as quantize_model

    try:
        with output.progress("quantising") as progress:
            found = quantize_model(
                run,
                to,
                out,
                data=data,
                calibration=calibration,
                num_images=num_images,
                max_drop=max_drop,
                weight_only=weight_only,
                rest=rest,
                img_size=img_size,
                batch_size=batch_size,
                seed=seed,
                overwrite=overwrite,
                progress=progress,
            )
    except BudgetError as error:
        if json:
            output.result_json(error.to_dict())
        else:
            _show_groups(error.layers, rest)
        raise
    if json:
        output.result_json(found.to_dict())
    else:
        _show(found)


def _show(found: "Quantized") -> None:
    from cmtvision.cli import output

    if found.layers:
        _show_groups(found.layers, found.rest)
        output.result("")
    accuracy, (low, high) = found.accuracy, found.accuracy.interval
    total = accuracy.num_decisions
    output.result(
        f"top-1: {accuracy.before / total:.2%} ({accuracy.before}/{total}) -> "
        f"{accuracy.after / total:.2%} ({accuracy.after}/{total})"
    )
    output.result(
        f"drop: {accuracy.drop:.2f} points (95%: {low:.2f} to {high:.2f}), "
        f"{accuracy.lost} photos lost, {accuracy.gained} gained"
    )
    share = found.bytes_after / found.bytes_before
    output.result(f"files: {found.bytes_before / 1e6:.2f} MB -> {found.bytes_after / 1e6:.2f} MB ({share:.1%})")
    if found.speed is not None:
        speed = found.speed
        output.result(
            f"speed: {speed.rest:.2f} ms ({found.rest}) -> {speed.int8:.2f} ms, "
            f"{speed.ratio:.2f} times as fast at batch {speed.batch_size}"
        )
    output.result(f"written: {found.folder}")


def _show_groups(layers: "list[Layer]", rest: str) -> None:
    from cmtvision.cli import output
    from cmtvision.deploy.quantizing.quantized import group_rows

    columns = ["layers", "count", "noise", "ms int8", f"ms {rest}", "in", "why"]
    rows = [
        [row["group"], str(row["layers"]), _number(row["noise"], ".1e"), _number(row["ms_int8"], ".3f"),
         _number(row["ms_rest"], ".3f"), "int8" if row["int8"] else rest, row["why"]]
        for row in group_rows(layers)
    ]  # fmt: skip
    output.table(columns, rows, right=columns[1:5])


def _number(value: Any, form: str) -> str:
    return "-" if value is None else format(value, form)
