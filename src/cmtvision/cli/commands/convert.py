"""``cmtvision convert``: weights from one file format to another, without loss."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def convert(  # typer reads options from the signature
    source: Annotated[Path, typer.Argument(metavar="IN", help=".pth, .safetensors, Keras .h5, or a run folder.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help=".safetensors, or .pth.")],
    to: Annotated[
        Literal["official", "native"] | None,
        typer.Option("--to", help="Names and shapes of the released code, or ours [official in .pth, else native]."),
    ] = None,
    ema: Annotated[
        bool, typer.Option("--ema/--no-ema", help="Prefer a training checkpoint's averaged weights.")
    ] = True,
    model: Annotated[str | None, typer.Option("--model", help="Which network it is; by default recognised.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Convert weights between the released .pth files, safetensors and the Keras family's HDF5."""
    from cmtvision.cli import output
    from cmtvision.cli.conversion import convert_weights

    output.refuse_overwrite(target, overwrite)
    done = convert_weights(source, target, layout=to, use_ema=ema, model=model)
    if json:
        output.result_json({"in": str(source), "out": str(target), **vars(done)})
        return
    output.result(
        f"{target}: {done.model}, {done.num_tensors} tensors, {done.parameters:,} parameters, {done.layout} layout"
    )
