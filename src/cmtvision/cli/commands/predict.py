"""``cmtvision predict``: the classes of images by a trained model."""

from pathlib import Path
from typing import Annotated

import typer

from cmtvision.cli.arguments import StreamsOption, ThreadsOption


def predict(  # typer reads options from the signature
    run: Annotated[Path, typer.Argument(metavar="MODEL", help="Run folder of a trained model, or an export.")],
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE...", help="Files, folders, globs; - reads paths or one image from stdin."),
    ],
    top: Annotated[int, typer.Option("--top", min=1, help="How many classes to name for each image.")] = 3,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images at a time.")] = 32,
    device: Annotated[
        str, typer.Option("--device", help="auto, cpu, cuda or mps; gpu for OpenVINO on Intel's.")
    ] = "auto",
    threads: ThreadsOption = None,
    streams: StreamsOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print as CSV.")] = False,
) -> None:
    """Predict images; a bad one is named on stderr, the others continue, and the exit code is 2.

    A model trained with several labels per image names every class of at least 50%.
    """
    from cmtvision.cli.faults import USAGE, say
    from cmtvision.cli.predictions import CsvRows, JsonDocument, TextRows, predict_each
    from cmtvision.cli.sources import find_images
    from cmtvision.errors import ConfigError, DataError

    if json and csv:
        raise ConfigError("--json and --csv: both given; keep one")
    found = find_images(images)
    first = next(found)
    if len(images) == 1 and isinstance(first.content, DataError):
        raise first.content  # before the model is loaded: a wrong path is answered at once

    from cmtvision.artefact import load

    predictor = load(run, device, threads, streams)
    several = predictor.task == "multi-label"
    view = JsonDocument() if json else CsvRows(top, several) if csv else TextRows(several)
    faults = 0
    for outcome in predict_each(predictor, first, found, top, batch_size):
        view.add(outcome)
        if isinstance(outcome, DataError):
            faults += 1
            say(str(outcome))
    view.close()
    if faults:
        raise typer.Exit(USAGE)
