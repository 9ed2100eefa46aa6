"""``cmtvision info``: what a network is made of and what it costs."""

from typing import Annotated

import typer


def info(
    model: Annotated[str, typer.Argument(help="A model's name (ours or any of timm) or a run folder.")],
    img_size: Annotated[
        int | None, typer.Option("--img-size", min=1, help="Side of the image in pixels; default: the model's own.")
    ] = None,
    num_classes: Annotated[int | None, typer.Option("--num-classes", min=0, help="Width of the classifier.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Show layers with output shape, parameters, multiply-adds and activations."""
    from cmtvision.cli import output
    from cmtvision.cli.subject import is_run
    from cmtvision.errors import ConfigError
    from cmtvision.models import build_shapes_only
    from cmtvision.models.analysis.count import count, total
    from cmtvision.models.analysis.dense_products import countable

    if is_run(model):
        from cmtvision.artefact import read_artefact

        if num_classes is not None:
            raise ConfigError("--num-classes: a run's classes are those it was trained on; leave the option out")
        artefact = read_artefact(model)
        network, name = artefact.model, f"{artefact.architecture} of {model}, {len(artefact.classes)} classes"
        height, width = (img_size, img_size) if img_size else artefact.card.usual_size
        input_size = (artefact.preprocess.channels, height, width)
    else:
        network, input_size = build_shapes_only(model, img_size, num_classes)
        name = model
    rows = count(countable(network), input_size)
    whole = total(rows)
    if json:
        from dataclasses import asdict

        output.result_json(
            {"model": name, "input_size": list(input_size), "layers": [asdict(r) for r in rows], "total": asdict(whole)}
        )
        return
    columns = ["layer", "output", "parameters", "GMACs", "activations M"]
    output.table(
        columns,
        [
            [
                row.name,
                " x ".join(map(str, row.output[1:])) or "-",
                f"{row.parameters:,}",
                f"{row.macs / 1e9:.4f}",
                f"{row.activations / 1e6:.3f}",
            ]
            for row in [*rows, whole]
        ],
        right=columns[2:],
        title=f"{name}, one image of {' x '.join(map(str, input_size))}",
    )
    output.note(
        "GMACs: multiply-adds of convolutions and matrix products (attention's too), in thousand millions; "
        "activations: their outputs, in millions."
    )
