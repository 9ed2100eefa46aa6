"""``cmtvision segment``: say what each pixel of an image is."""

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from cmtvision.cli.arguments import SettingsOption
from cmtvision.cli.dense import SEGMENTATION_DATA

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
_RUN = typer.Argument(metavar="RUN", help="Run folder of a trained segmenter.")


def train(  # typer reads options from the signature
    context: typer.Context,
    data: Annotated[str, typer.Argument(metavar="DATA", help=SEGMENTATION_DATA)],
    model: Annotated[
        str | None, typer.Option("--model", help="cmt_s_fpn, ... or any timm backbone with a kind.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option("--weights", metavar="FILE|pretrained", help="Of the backbone: a classifier's.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", metavar="NAME|FILE", help="A built-in recipe or a YAML file [segment].")
    ] = None,
    settings: SettingsOption = None,
    out: Annotated[Path | None, typer.Option("--out", help="Run folder [runs/DATA-MODEL-TIME].")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Short for --set schedule.epochs=N.")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", min=1, help="Images at a time.")] = None,
    device: Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or mps.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Seed of everything random.")] = None,
    devices: Annotated[
        int | None, typer.Option("--devices", min=1, help="Processes on this machine, one for each GPU [1].")
    ] = None,
    resume: Annotated[
        Literal["no", "yes", "auto"],
        typer.Option("--resume", metavar="[auto]", help="Resume the run in --out; auto: if there is one."),
    ] = "no",
    accept_changed_data: Annotated[
        bool, typer.Option("--accept-changed-data", help="Resume although images were added or removed.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train a segmenter on your images; writes a run folder with model and curves."""
    from cmtvision.cli import dense
    from cmtvision.segmentation.task import SEGMENTATION

    shorthands = {
        "model.name": model,
        "model.weights": weights,
        "schedule.epochs": epochs,
        "train.batch_size": batch_size,
        "train.device": device,
        "seed": seed,
    }
    dense.train(
        context,
        SEGMENTATION,
        "segment",
        data,
        shorthands,
        recipe=recipe,
        settings=settings,
        out=out,
        devices=devices,
        resume=resume,
        accept_changed_data=accept_changed_data,
        overwrite=overwrite,
        json=json,
    )


def evaluate(
    context: typer.Context,
    run: Annotated[Path, _RUN],
    data: Annotated[str, typer.Argument(metavar="DATA", help=SEGMENTATION_DATA)],
    split: Annotated[Literal["val", "train", "test", "all"], typer.Option("--split", help="Which images.")] = "val",
    window: Annotated[
        int | None, typer.Option("--window", metavar="N", min=32, help="Look at windows of N pixels, for large images.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")] = "auto",
    devices: Annotated[int, typer.Option("--devices", min=1, help="Processes on this machine, one for each GPU.")] = 1,
    json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Measure a trained segmenter on annotated images: mIoU and boundary F1."""
    from cmtvision.cli import launch, output
    from cmtvision.cli.faults import printable

    if devices > 1 and not launch.is_launched():
        code = launch.launch(devices, device, launch.without_options(context.obj, ["--devices"]))
        if code:
            raise typer.Exit(code)
        return
    from cmtvision.segmentation.evaluate import evaluate_segmenter

    found = evaluate_segmenter(run, data, split=split, window=window, device=device)
    if not launch.is_first():
        return
    for line in found.notes:
        output.note(line)
    if json:
        output.result_json({"run": str(run), **found.to_dict()})
        return
    output.result(found.headline())
    output.result(f"{'class':<{width(found.classes)}}    IoU")
    for name, value in zip(found.classes, found.figures.iou, strict=True):
        shown = "    -" if value is None else f"{value:>5.1%}"
        output.result(printable(f"{name:<{width(found.classes)}}  {shown}"))


def width(names: list[str]) -> int:
    """Of the longest name, within reason."""
    return min(40, max(5, *(len(name) for name in names)))


def predict(
    run: Annotated[Path, _RUN],
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE...", help="Files, folders, patterns; - for standard input.")
    ],
    out: Annotated[Path | None, typer.Option("--out", metavar="FOLDER", help="Draw each image into it.")] = None,
    window: Annotated[
        int | None, typer.Option("--window", metavar="N", min=32, help="Look at windows of N pixels, for large images.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace drawn images.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Label the pixels of images; a bad image is named on stderr, the others continue, and the exit code is 2."""
    import numpy as np

    from cmtvision.artefact.dense import SegmentationPredictor
    from cmtvision.artefact.files import read_artefact
    from cmtvision.cli import dense, output
    from cmtvision.cli.faults import USAGE, printable
    from cmtvision.report.drawn import with_classes

    predictor = SegmentationPredictor(read_artefact(run), device)
    rows: list[dict[str, object]] = []
    faults: list[str] = []
    with dense.drawn_into(out, overwrite) as draw:
        for name, picture in dense.each_picture(images, faults):
            found = predictor.predict(picture, window)[0]
            shares = np.bincount(found.ravel(), minlength=len(predictor.classes)) / found.size
            named = {predictor.classes[place]: float(shares[place]) for place in np.argsort(-shares) if shares[place]}
            drawn = draw(name, partial(with_classes, picture, found, predictor.classes))
            if json:
                rows.append({"image": name, "shares": named, **({} if drawn is None else {"drawn": str(drawn)})})
                continue
            said = ", ".join(f"{label} {share:.1%}" for label, share in list(named.items())[:5])
            output.result(printable(f"{name}: {said}"))
    if json:
        output.result_json({"predictions": rows, "failed": faults})
    if faults:
        raise typer.Exit(USAGE)


app.command("train", short_help="Train a segmenter on your images.")(train)
app.command("eval", short_help="Measure a trained segmenter.")(evaluate)
app.command("predict", short_help="Label the pixels of images.")(predict)
