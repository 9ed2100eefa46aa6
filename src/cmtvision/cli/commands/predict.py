"""``cmtvision predict``: the classes of images by a trained model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cmtvision.cli.arguments import StreamsOption, ThreadsOption

if TYPE_CHECKING:
    from cmtvision.artefact import Predictor
    from cmtvision.trust.answers import Ask


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
    conformal: Annotated[
        float | None,
        typer.Option(
            "--conformal", metavar="LEVEL", help="Name a set that holds the right class for this share of images."
        ),
    ] = None,
    sets: Annotated[
        Literal["lac", "raps"] | None,
        typer.Option("--sets", help="lac: smallest sets; raps: larger for harder images. [lac]"),
    ] = None,
    abstain: Annotated[
        bool,
        typer.Option(
            "--abstain", help="Say 'unsure' below the LEVEL of --conformal [0.9], or where the image is unfamiliar."
        ),
    ] = False,
    threads: ThreadsOption = None,
    streams: StreamsOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print as CSV.")] = False,
) -> None:
    """Predict images; a bad one is named on stderr, the others continue, and the exit code is 2.

    A model trained with several labels per image names every class of at least 50%. Probabilities are calibrated where
    `train` or `calibrate` has done so; sets and 'unsure' need that.
    """
    from cmtvision.cli.faults import USAGE, say
    from cmtvision.cli.output import note
    from cmtvision.cli.predictions import CsvRows, JsonDocument, TextRows, View, opened, opened_early, predict_each
    from cmtvision.cli.sources import find_images, peeked
    from cmtvision.cli.trust_lines import not_calibrated_line
    from cmtvision.errors import ConfigError, DataError
    from cmtvision.machine import keep_freed_memory

    if json and csv:
        raise ConfigError("--json and --csv: both given; keep one")
    ask = _asked(conformal, sets, abstain)
    first, found = peeked(find_images(images))
    if len(images) == 1 and isinstance(first.content, DataError):
        raise first.content  # before the model is loaded: a wrong path is answered at once
    keep_freed_memory()
    early = opened_early(run, found, batch_size)

    from cmtvision.artefact import load
    from cmtvision.trust.answers import assumptions, record

    predictor = load(run, device, threads, streams)
    _check(predictor, ask, run)
    several, trust = predictor.task == "multi-label", predictor.trust
    view: View
    if json:
        view = JsonDocument(None if trust is None else record(trust, ask, predictor.measures_distance))
    elif csv:
        view = CsvRows(top, several, trusted=trust is not None, ask=ask)
    else:
        view = TextRows(several, ask)
    if trust is not None:
        for line in assumptions(trust, ask, predictor.measures_distance):
            note(line)
    elif not several:
        note(not_calibrated_line(run))
    prepared = early or opened(found, predictor.preprocess, batch_size)
    faults = 0
    for outcome in predict_each(predictor, prepared, top, batch_size, ask):
        view.add(outcome)
        if isinstance(outcome, DataError):
            faults += 1
            say(str(outcome))
    view.close()
    if faults:
        raise typer.Exit(USAGE)


def _asked(conformal: float | None, sets: Literal["lac", "raps"] | None, abstain: bool) -> "Ask":
    """What the options ask for. Raises ConfigError for a level that cannot be promised, or sets without one."""
    from cmtvision.errors import ConfigError
    from cmtvision.trust.answers import ABSTAIN, Ask

    if sets and conformal is None:
        raise ConfigError(f"--sets {sets}: says which sets; give their level too, such as --conformal 0.9")
    ask = Ask(conformal, sets or "lac", (ABSTAIN if conformal is None else conformal) if abstain else None)
    try:
        ask.check()
    except ValueError as error:  # of the level, for the other options cannot be wrong
        raise ConfigError(f"--conformal: {error}") from None
    return ask


def _check(predictor: "Predictor", ask: "Ask", run: Path) -> None:
    """Refuse options before anything is printed. Raises ConfigError, with the command that calibrates this model."""
    from cmtvision.artefact.predictor import CALIBRATE
    from cmtvision.errors import ConfigError

    try:
        predictor.check_ask(ask)
    except ConfigError as error:
        raise ConfigError(f"{run}: {error}".replace(CALIBRATE, CALIBRATE.replace("MODEL", str(run)))) from error
