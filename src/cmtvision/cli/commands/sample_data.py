"""``cmtvision sample-data``: real images to start with."""

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer


def sample_data(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write the images to.")],
    full: Annotated[bool, typer.Option("--full", help="All 70,000 images instead of 10,000.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace sample data written before.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Write Fashion-MNIST, real product images of ten classes, as a folder of PNG files."""
    from cmtvision.cli import output
    from cmtvision.data import write_sample_data

    with output.progress("writing photos") as progress:
        summary = write_sample_data(directory, full=full, overwrite=overwrite, progress=progress)
    if json:
        output.result_json(
            {
                "directory": str(summary.directory),
                "train": summary.num_train,
                "val": summary.num_val,
                "classes": list(summary.classes),
                "source": summary.source,
            }
        )
        return
    output.result(
        f"{summary.directory}: {summary.num_train:,} photos to train on, {summary.num_val:,} held out, "
        f"{len(summary.classes)} classes"
    )
    how = " --recipe fashion_mnist" if full else ""
    output.note(f"next: cmtvision train {quote(str(summary.directory))}{how}")
