"""``cmtvision eval``: the accuracy of a trained model, in exact counts."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cmtvision.cli.arguments import DATA_HELP, JsonOption, StreamsOption, ThreadsOption

if TYPE_CHECKING:
    from cmtvision.engine import Evaluation
    from cmtvision.engine.evaluation.multilabel import MultiLabelEvaluation

_MATRIX_CLASSES = 20
_SHOWN = 10


def evaluate(  # typer reads options from the signature
    context: typer.Context,
    run: Annotated[Path, typer.Argument(metavar="MODEL", help="Run folder of a trained model, or an export.")],
    data: Annotated[str, typer.Argument(metavar="DATA", help=DATA_HELP)],
    split: Annotated[Literal["val", "train", "test", "all"], typer.Option("--split", help="Which images.")] = "val",
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images at a time.")] = 128,
    device: Annotated[
        str, typer.Option("--device", help="auto, cpu, cuda or mps; gpu for OpenVINO on Intel's.")
    ] = "auto",
    threads: ThreadsOption = None,
    streams: StreamsOption = None,
    devices: Annotated[int, typer.Option("--devices", min=1, help="Processes on this machine, one for each GPU.")] = 1,
    json: JsonOption = False,
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write every image's prediction to a CSV file.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the CSV file.")] = False,
) -> None:
    """Evaluate a trained model: accuracy, every class, confusion matrix."""
    from cmtvision.cli import launch, output

    if devices > 1 and not launch.is_launched():
        code = launch.launch(devices, device, launch.without_options(context.obj, ["--devices"]))
        if code:
            raise typer.Exit(code)
        return
    if csv is not None and launch.is_first():
        output.refuse_overwrite(csv, overwrite)
    from cmtvision import engine
    from cmtvision.machine import keep_freed_memory

    keep_freed_memory()
    how: dict[str, Any] = {"split": split, "batch_size": batch_size}
    how |= {"device": device, "threads": threads, "streams": streams}
    if not launch.is_first():
        engine.evaluate(run, data, **how)
        return
    with output.progress("evaluating") as progress:
        found = engine.evaluate(run, data, progress=progress, **how)
    if csv is not None:
        _write_predictions(found, csv, overwrite)
        output.note(f"predictions: {csv}")
    for item in found.skipped[:_SHOWN]:
        output.note(f"skipped {item.path}: {item.reason}")
    if len(found.skipped) > _SHOWN:
        output.note(f"and {len(found.skipped) - _SHOWN:,} more; --json lists all")
    for line in found.notes:
        output.note(line)
    if json:
        output.result_json({"run": str(run), "data": data, **found.to_dict()})
        return
    note = {"all": ", none were held out", "test": ", there are no others"}.get(found.split, "")
    note = note if found.split != split else ""
    output.result(f"photos: {found.num_images:,} ({found.split}{note})")
    if isinstance(found, engine.MultiLabelEvaluation):
        output.result(found.headline())
        output.result(f"loss: {found.loss:.4f}")
        _show_labels(found)
        return
    output.result(f"top-1: {found.top1:.2%} ({found.top1_correct}/{found.num_images})")
    if len(found.classes) > 5:
        output.result(f"top-5: {found.top5:.2%} ({found.top5_correct}/{found.num_images})")
    output.result(f"loss: {found.loss:.4f}")
    _show_classes(found)
    if len(found.classes) <= _MATRIX_CLASSES:
        _show_matrix(found)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _show_labels(found: "MultiLabelEvaluation") -> None:
    from cmtvision.cli import output

    columns = ["class", "photos", "claimed", "correct", "AP", "recall", "precision", "F1"]
    rows = [
        [score.name, str(score.images), str(score.claimed), str(score.correct)]
        + [_share(value) for value in (score.average_precision, score.recall, score.precision, score.f1)]
        for score in found.per_class()
    ]
    output.result("")
    output.table(columns, rows, right=columns[1:])


def _show_classes(found: "Evaluation") -> None:
    from cmtvision.cli import output

    columns = ["class", "photos", "correct", "recall", "precision"]
    rows = [
        [score.name, str(score.images), str(score.correct), _share(score.recall), _share(score.precision)]
        for score in found.per_class()
    ]
    output.result("")
    output.table(columns, rows, right=columns[1:])


def _show_matrix(found: "Evaluation") -> None:
    """Counts, a row for each true class; columns are numbered as the rows are, so that 20 fit on a screen."""
    from cmtvision.cli import output

    numbers = [str(number) for number in range(len(found.classes))]
    rows = [
        [f"{number} {name}", *(str(count) if count else "." for count in counts)]
        for number, name, counts in zip(numbers, found.classes, found.confusion.tolist(), strict=True)
    ]
    output.result("")
    output.table(["true \\ predicted", *numbers], rows, right=numbers)


def _write_predictions(found: "Evaluation | MultiLabelEvaluation", file: Path, overwrite: bool) -> None:
    import csv

    from cmtvision.cli import output
    from cmtvision.engine import MultiLabelEvaluation

    with output.new_text_file(file, overwrite) as text:
        writer = csv.writer(text, lineterminator="\n")
        if isinstance(found, MultiLabelEvaluation):
            writer.writerow(["path", "labels", "predicted", *(f"p({name})" for name in found.classes)])
            for one in found.predictions:
                names = ["|".join(found.classes[i] for i in numbers) for numbers in (one.labels, one.predicted)]
                writer.writerow([one.path, *names, *(f"{value:.6f}" for value in one.probabilities.tolist())])
            return
        writer.writerow(["path", "label", "predicted", "probability", "correct"])
        for photo in found.predictions:
            named = found.classes[photo.label], found.classes[photo.predicted]
            writer.writerow([photo.path, *named, f"{photo.probability:.6f}", int(photo.label == photo.predicted)])
