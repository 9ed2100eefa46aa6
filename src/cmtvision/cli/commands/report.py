"""``cmtvision report``: all that can be said of a trained model, on one page."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from cmtvision.cli.arguments import DATA_HELP


def report(  # typer reads options from the signature
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of a trained model, or an export.")],
    data: Annotated[
        str | None, typer.Argument(metavar="[DATA]", help=f"Its images [where they were in training]. {DATA_HELP}")
    ] = None,
    split: Annotated[Literal["val", "train", "test", "all"], typer.Option("--split", help="Which images.")] = "val",
    slices: Annotated[
        Path | None,
        typer.Option("--slices", metavar="FILE.csv", help="Accuracy by each of its columns; one is path."),
    ] = None,
    corruptions: Annotated[
        bool, typer.Option("--corruptions", help="Measure accuracy on noisy, blurred, ... images too.")
    ] = False,
    num_images: Annotated[
        int, typer.Option("--num-images", min=1, help="Images for --corruptions; each is predicted 75 times.")
    ] = 500,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images at a time.")] = 128,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")] = "auto",
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE.html", help="The page [RUN/report.html].")] = None,
    card: Annotated[
        Path | None, typer.Option("--model-card", metavar="FILE.md", help="The model card [RUN/README.md].")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the files of --out and --model-card, and RUN/README.md.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Write a page on how far to trust a trained model: intervals, mistakes, calibration, slices, model card.

    RUN/report.html is replaced; training wrote a short one. Nothing on the page is loaded from anywhere.
    """
    from cmtvision.artefact.card import CARD_FILE, DENSE, Card
    from cmtvision.cli import output

    if (run / CARD_FILE).is_file() and Card.read(run).task in DENSE:
        _dense(run, data, split, out, overwrite, device, json, slices=slices, corruptions=corruptions, model_card=card)
        return
    from cmtvision.report.whole_page import Options, write_whole_report

    written = write_whole_report(
        run,
        data,
        Options(split, slices, corruptions, num_images, batch_size),
        out=out,
        readme_file=card,
        overwrite=overwrite,
        device=device,
        stage=output.progress,
    )
    for line in written.notes:
        output.note(line)
    if written.readme is None:
        output.note(f"{run / 'README.md'}: kept as it is; --overwrite replaces it")
    if json:
        files = {"report": str(written.page), "model_card": str(written.readme) if written.readme else None}
        output.result_json({"run": str(run), **files, "notes": written.notes, **written.figures})
        return
    top1 = written.figures.get("top1")
    if top1 is not None:
        count = written.figures["num_images"]
        output.result(
            f"accuracy: {top1['value']:.2%}, 95% interval {top1['low']:.1%} to {top1['high']:.1%} ({count:,} images)"
        )
    if "calibration" in written.figures:
        output.result(f"calibration error: {written.figures['calibration']['ece']:.2%}")
    if "robustness" in written.figures:
        harm = written.figures["robustness"]
        output.result(f"on corrupted images: {harm['mean']['value']:.1%}, clean {harm['clean']:.1%}")
    output.result(f"report: {written.page}")
    if written.readme is not None:
        output.result(f"model card: {written.readme}")


def _dense(
    run: Path,
    data: str | None,
    split: Literal["val", "train", "test", "all"],
    out: Path | None,
    overwrite: bool,
    device: str,
    json: bool,
    **others: object,
) -> None:
    """The same of a detector or a segmenter, which has no slices, no corrupted images and no model card."""
    from cmtvision.cli import output
    from cmtvision.errors import ConfigError
    from cmtvision.report.dense_page import write_dense_report

    given = [name for name, value in others.items() if value]
    if given:
        option = given[0].replace("_", "-")
        raise ConfigError(f"--{option} is for classifiers; leave it out for a detector or a segmenter")
    written = write_dense_report(run, data, split, out=out, overwrite=overwrite, device=device, stage=output.progress)
    for line in written.notes:
        output.note(line)
    if json:
        output.result_json({"run": str(run), "report": str(written.page), "notes": written.notes, **written.figures})
        return
    output.result(f"report: {written.page}")
