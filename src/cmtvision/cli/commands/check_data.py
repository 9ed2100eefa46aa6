"""``cmtvision check-data``: what is wrong with a data set, before anybody trains on it."""

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cmtvision.cli.arguments import DATA_HELP

if TYPE_CHECKING:
    from cmtvision.quality.findings import DataCheck, Item
    from cmtvision.quality.fix import FixSummary

PAGE = "check.html"
_EXAMPLES = 2


def check_data(  # typer reads options from the signature
    data: Annotated[str, typer.Argument(metavar="DATA", help=DATA_HELP)],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE.html", help="Page with pictures [runs/DATA-check-TIME/check.html]."),
    ] = None,
    fix: Annotated[
        Path | None, typer.Option("--fix", metavar="OUT", help="Write a cleaned copy; DATA is never changed.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option("--model", metavar="RUN", help="Judge labels by a trained run's features.")
    ] = None,
    multi_label: Annotated[bool, typer.Option("--multi-label", help="An image may have several classes.")] = False,
    image_column: Annotated[str | None, typer.Option("--image-column", metavar="NAME", help="Of a table.")] = None,
    label_column: Annotated[str | None, typer.Option("--label-column", metavar="NAME", help="Of a table.")] = None,
    device: Annotated[str, typer.Option("--device", help="Of --model: auto, cpu, cuda or mps.")] = "auto",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")] = 0,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if anything serious is found.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the page and a cleaned copy.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print all findings as JSON.")] = False,
) -> None:
    """Check a data set: damaged files, copies, leakage, wrong labels, odd images; writes a page with pictures."""
    from cmtvision.cli import faults, output
    from cmtvision.cli.plan import study_out
    from cmtvision.errors import ConfigError

    page = out or study_out(data, "check") / PAGE
    if page.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--out {page}: a page is written as .html; choose such a name")
    output.refuse_overwrite(page, overwrite)
    if fix is not None:
        from cmtvision.quality.fix import refuse_early

        refuse_early(data, fix, overwrite)

    from cmtvision.quality.check import CheckOptions
    from cmtvision.quality.check import check_data as check
    from cmtvision.quality.fix import write_cleaned
    from cmtvision.quality.page import write_page

    options = CheckOptions(
        multi_label=multi_label,
        image_column=image_column,
        label_column=label_column,
        model=None if model is None else str(model),
        device=device,
        seed=seed,
    )
    checked = check(data, options, output.progress)
    found = checked.result
    write_page(found, page)
    fixed = None
    if fix is not None:
        with output.progress("copying photos") as progress:
            fixed = write_cleaned(checked, fix, overwrite, progress)
    if json:
        output.result_json({**found.to_dict(), "page": str(page), "fix": None if fixed is None else _fixed(fixed)})
    else:
        _show(found)
        output.result(f"page: {page}")
        if fixed is not None:
            output.result(f"cleaned copy: {fixed.directory}, {fixed.kept:,} photos, {len(fixed.left_out):,} left out")
            output.note(f"next: cmtvision train {quote(str(fixed.data))}")
        elif found.is_serious:
            copy = f"{Path(data).resolve().name}-clean"
            output.note(f"next: cmtvision check-data {quote(data)} --fix {quote(copy)}")
    if strict and found.is_serious:
        raise typer.Exit(faults.FAILED)


def _fixed(fixed: "FixSummary") -> dict[str, Any]:
    left_out = [{"path": photo.name, "label": photo.label, "reason": reason} for photo, reason in fixed.left_out]
    return {"directory": str(fixed.directory), "data": str(fixed.data), "kept": fixed.kept, "left_out": left_out}


def _show(found: "DataCheck") -> None:
    """The findings, the worst first, each with its first examples."""
    from cmtvision.cli import output
    from cmtvision.cli.faults import printable

    parts = f"{found.count('train'):,} to train on, {found.count('val'):,} held out"
    parts += f", {found.count('test'):,} for test" if found.count("test") else ""
    seeded = ", split by seed as training would" if found.split_source == "seeded" else ""
    output.result(f"photos: {len(found.photos):,} in {_classes(found)} ({parts}{seeded})")
    for finding in found.findings:
        output.result(printable(f"{finding.severity:<8} {finding.summary}"))
        for item in finding.items[:_EXAMPLES]:
            line = _example(item)
            if line not in finding.summary:
                output.result(printable(f"         {line}"))
    for name, reason in found.not_checked:
        output.result(f"not checked: {name} ({reason})")
    if found.passed:
        output.result(f"in order: {', '.join(found.passed)}")


def _classes(found: "DataCheck") -> str:
    return f"{len(found.classes):,} class{'' if len(found.classes) == 1 else 'es'}"


def _example(item: "Item") -> str:
    names = " = ".join(photo.name for photo in item.photos[:3]) + (" = ..." if len(item.photos) > 3 else "")
    labels = list(dict.fromkeys(photo.label for photo in item.photos))
    said = f"labelled {' and '.join(labels)}" if len(labels) > 1 else item.text
    return f"{names}: {said}" if names else item.text
