"""``cmtvision calibrate``: probabilities that are as high as right, and what prediction sets need."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cmtvision.cli.arguments import DATA_HELP, JsonOption, ThreadsOption

if TYPE_CHECKING:
    from cmtvision.engine import Calibrated


def calibrate(  # typer reads options from the signature
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Run folder of a trained model, or an export.")],
    data: Annotated[str, typer.Argument(metavar="DATA", help=DATA_HELP)],
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images at a time.")] = 128,
    device: Annotated[
        str, typer.Option("--device", help="auto, cpu, cuda or mps; gpu for OpenVINO on Intel's.")
    ] = "auto",
    threads: ThreadsOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a calibration.")] = False,
    json: JsonOption = False,
) -> None:
    """Calibrate a trained model on held-out images; `train` has done so already where it held some out.

    Fits a temperature for the probabilities, and keeps in model.json what `predict --conformal` and `--abstain` need.
    The weights stay as they are, and so do the classes that the model names.
    """
    from cmtvision import engine
    from cmtvision.cli import output

    with output.progress("calibrating") as progress:
        found = engine.calibrate(
            model,
            data,
            overwrite=overwrite,
            batch_size=batch_size,
            device=device,
            threads=threads,
            progress=progress,
        )
    if found.evaluation.skipped:
        output.note(f"skipped {len(found.evaluation.skipped)} files; --json lists them")
    for line in [*found.trust.notes, *found.notes]:
        output.note(line)
    if json:
        output.result_json(found.to_dict())
    else:
        _show(found)


def _show(found: "Calibrated") -> None:
    from cmtvision.cli import output
    from cmtvision.cli.trust_lines import calibrated_line

    output.result(calibrated_line(found.trust))
    output.result(f"written: {found.model / 'model.json'}")
    output.note(f"next: cmtvision predict {found.model} PHOTO... --conformal 0.9")
    exports = found.model / "exports"
    if exports.is_dir():
        output.note(f"the exports in {exports} still answer by the calibration that they were made with; export again")
