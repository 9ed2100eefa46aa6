"""``cmtvision doctor``: check whether this machine is ready, and say how to fix what is not."""

from typing import Annotated

import typer

_MARKS = {"ok": "ok      ", "advice": "advice  ", "broken": "BROKEN  "}


def doctor(json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False) -> None:
    """Check versions, processor, memory, GPU and known traps; exit code 1 where something is broken."""
    from cmtvision.cli import output
    from cmtvision.cli.checkup import examine

    report = examine()
    broken = any(finding.state == "broken" for finding in report.findings)
    if json:
        output.result_json(
            {"machine": report.machine, "versions": report.versions, "findings": [vars(f) for f in report.findings]}
        )
    else:
        width = max(map(len, [*report.machine, *report.versions]))
        for facts in (report.machine, report.versions):
            for name, value in facts.items():
                output.result(f"{name:<{width}}  {value if value is not None else '-'}")
            output.result("")
        for finding in report.findings:
            output.result(f"{_MARKS[finding.state]}{finding.text}")
            if finding.remedy:
                output.result(f"        -> {finding.remedy}")
    if broken:
        raise typer.Exit(1)
