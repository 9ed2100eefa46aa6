"""``cmtvision verify``: compare two models on real images."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cmtvision.cli.arguments import JsonOption

if TYPE_CHECKING:
    from cmtvision.deploy import Verification
    from cmtvision.deploy.verifying_dense import DenseVerification


def verify(  # typer reads options from the signature
    a: Annotated[Path, typer.Argument(metavar="A", help="The reference: a run, an export or a bundle.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="The model to compare with it.")],
    images: Annotated[
        list[Path] | None,
        typer.Option("--images", metavar="PATH", help="Images or folders of them [images that the run held out]."),
    ] = None,
    num_images: Annotated[int, typer.Option("--num-images", min=1, help="How many images to compare on.")] = 64,
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance", help="Largest relative difference of logits [1e-4 fp32, 1e-2 fp16, 5e-2 bf16, 0.5 int8]."
        ),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")] = "cpu",
    json: JsonOption = False,
) -> None:
    """Compare two models: preprocessing bit for bit, classes, logits in batches of 1, 2 and 7, decisions.

    Exit code 0 where they agree, 1 where they do not.
    """
    from cmtvision import deploy
    from cmtvision.cli import output
    from cmtvision.cli.faults import FAILED

    with output.progress("comparing") as progress:
        found = deploy.verify(
            a, b, images, num_images=num_images, tolerance=tolerance, device=device, progress=progress
        )
    if json:
        output.result_json({"a": str(a), "b": str(b), **found.to_dict()})
    else:
        _show(found)
    if not found.passed:
        raise typer.Exit(FAILED)


def _show(found: "Verification | DenseVerification") -> None:
    from cmtvision.cli import output

    output.table(["", ""], found.rows())
    for reason in found.reasons:
        output.result(f"differs: {reason}")
