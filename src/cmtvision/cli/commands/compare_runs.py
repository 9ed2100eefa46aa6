"""``cmtvision compare-runs``: two trained models on the same images, tested as pairs."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from cmtvision.cli.arguments import DATA_HELP, JsonOption

_SHOWN = 5


def compare_runs(  # typer reads options from the signature
    a: Annotated[Path, typer.Argument(metavar="A", help="Run folder of a trained model, or an export.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another one of the same classes.")],
    data: Annotated[
        str | None, typer.Argument(metavar="[DATA]", help=f"Images that neither has seen [A's held-out]. {DATA_HELP}")
    ] = None,
    split: Annotated[Literal["val", "test"], typer.Option("--split", help="Which images.")] = "val",
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images at a time.")] = 128,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")] = "auto",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.html", help="Write a page with pictures, too.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the page.")] = False,
    json: JsonOption = False,
) -> None:
    """Compare two trained models image by image: is the difference more than chance?"""
    from cmtvision.cli import output

    if out is not None:
        output.refuse_overwrite(out, overwrite)
    from cmtvision.cli.faults import printable
    from cmtvision.report import compare_runs as comparing

    found = comparing.compare_runs(a, b, data, output.progress, split=split, batch_size=batch_size, device=device)
    if out is not None:
        from cmtvision.files import write_text

        write_text(out, comparing.comparison_page(found))
    if json:
        output.result_json({**found.to_dict(), "page": None if out is None else str(out)})
        return
    paired, (top1_a, top1_b), difference = found.paired, found.paired.top1, found.paired.difference()
    output.result(f"images: {paired.num_images:,} ({found.split})")
    for name, top1, right in zip(
        found.names, (top1_a, top1_b), (paired.both + paired.only_a, paired.both + paired.only_b), strict=True
    ):
        output.result(printable(f"{name}: {top1:.2%} ({right:,}/{paired.num_images:,})"))
    low, high = 100 * difference.low, 100 * difference.high
    output.result(f"difference: {100 * difference.value:+.2f} points, 95% interval {low:+.2f} to {high:+.2f}")
    output.result(f"gained {paired.only_b:,}, lost {paired.only_a:,}; p = {paired.mcnemar():.2g} (McNemar, exact)")
    output.result(printable(found.verdict()))
    columns = ["class", "images", "A", "B", "gained", "lost"]
    rows = [
        [
            printable(row.name),
            str(row.images),
            f"{row.recall_a:.1%}",
            f"{row.recall_b:.1%}",
            str(row.gained),
            str(row.lost),
        ]
        for row in found.classes[:_SHOWN]
    ]
    output.result("")
    output.table(columns, rows, right=columns[1:])
    if out is not None:
        output.result(f"page: {out}")
