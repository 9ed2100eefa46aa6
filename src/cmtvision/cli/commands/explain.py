"""``cmtvision explain``: what a model looked at in an image, as a picture."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from cmtvision.cli.arguments import JsonOption


def explain(  # typer reads options from the signature
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Run folder of a trained model, or any model's name: random weights.")
    ],
    image: Annotated[
        Path | None, typer.Argument(metavar="IMAGE", help="The image to explain. With --ideas MODEL may be left out.")
    ] = None,
    ideas: Annotated[
        bool, typer.Option("--ideas", help="Write a page on which the image passes through CMT, idea by idea.")
    ] = False,
    method: Annotated[
        Literal["grad-cam", "hires-cam", "integrated-gradients", "rollout", "position-bias", "lpu", "receptive-field"],
        typer.Option("--method", help="What to show; docs/explain.md says how to read each."),
    ] = "grad-cam",
    stage: Annotated[
        int | None, typer.Option("--stage", metavar="N", help="Which stage, from 1; -1 is the last [the method's own].")
    ] = None,
    label: Annotated[
        str | None, typer.Option("--class", metavar="NAME", help="Which class to explain [the most probable].")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="PNG to write [IMAGE-METHOD.png]; with --ideas a page [ideas.html]."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the PNG or the page.")] = False,
    json: JsonOption = False,
) -> None:
    """Draw what a model looked at: the image beside its map, as a PNG file.

    grad-cam, hires-cam and integrated-gradients explain one class; rollout, position-bias, lpu and receptive-field show
    how CMT works. With --ideas: one page for learners that shows the image at every step of CMT.
    """
    from cmtvision.cli import output
    from cmtvision.cli.faults import printable
    from cmtvision.errors import ConfigError

    if ideas:
        from cmtvision.cli.ideas import show_ideas

        show_ideas(None if image is None else model, model if image is None else image, out, overwrite, json)
        return
    if image is None:
        raise ConfigError(f"{model}: given alone; give a model and an image, or an image with --ideas")
    suffix = "" if stage is None else f"-stage{stage}"
    target = Path(f"{image.stem}-{method}{suffix}.png") if out is None else out
    if target.suffix.lower() != ".png":
        raise ConfigError(f"--out {target}: pictures are written as .png; choose such a name")
    output.refuse_overwrite(target, overwrite)  # before the model is loaded

    from cmtvision.explain import explain_image

    found = explain_image(model, image, method, stage, label)
    found.save(target, overwrite)
    for remark in found.remarks:
        output.note(remark)
    if json:
        output.result_json({"image": str(image), **found.to_dict(), "out": str(target)})
        return
    output.result(printable(found.title))
    output.result(printable(f"predicted: {found.predicted} ({found.probabilities[found.predicted]:.1%})"))
    for line in found.in_words():
        output.result(line)
    output.result(f"picture: {target}")
