"""The table of ``cmtvision bench``, from its record."""

from typing import Any

from cmtvision.bench.limits import in_words
from cmtvision.cli import output

_LEFT = ("target", "runtime", "precision")
_NAMES = {"copy": "memory", "cache": "caches"}


def show_speed(record: dict[str, Any]) -> None:
    """Print limits, the table and the reasons of failures to stdout, explanations of the figures to stderr."""
    columns = [
        "target", "input px", "runtime", "precision", "threads", "batch", "p50 ms", "p95 ms", "p99 ms", "images/s",
        "x eager", "GMAC/s", "% of limit", "memory MB",
    ]  # fmt: skip
    good = [row for row in record["cells"] if row["failure"] is None]
    if good:
        output.table(columns, [_cells(row) for row in good], right=[name for name in columns if name not in _LEFT])
    said: dict[str, None] = {}
    for row in record["cells"]:
        way = f"{row['target']} {row['runtime']} {row['precision']} x{row['threads']}"
        if row["failure"] is not None:
            said[f"{way} batch {row['batch']}  failed: {row['failure']}"] = None
        elif row["note"]:
            said[f"{way}  {row['note']}"] = None
    for line in [*said, *record["notes"]]:
        output.result(line)
    for row in record["limits"]:
        kinds = sorted((kind for kind in row if kind != "threads"), key=lambda kind: kind in _NAMES)  # products first
        where = (
            f"{row['threads']} thread{'s' * (row['threads'] > 1)}" if record["device"] == "cpu" else record["device"]
        )
        output.result(f"limits, {where}:{'' if kinds else ' could not be measured'}")
        for kind in kinds:
            output.result(f"  {_NAMES.get(kind, kind)} {in_words(kind, row[kind])}")
    output.note(
        "p50, p95, p99 over single passes, - where they were too few; images/s: median of rounds (least-most); "
        "% of limit: of the fastest products in that precision, this run; memory: peak of the process above its start"
    )


def _cells(row: dict[str, Any]) -> list[str]:
    _, height, width = row["input_size"]
    latency, rates, ratio = row["latency_seconds"], row["images_per_second"], row["x_eager"]
    digits = 1 if rates["median"] < 100 else 0
    middle, low, high = (f"{rates[key]:.{digits}f}" for key in ("median", "min", "max"))
    reached, share, memory = row["macs_per_second"], row["fraction_of_limit"], row["memory_bytes"]
    return [
        row["target"],
        str(height) if height == width else f"{height}x{width}",
        row["runtime"],
        row["precision"],
        str(row["threads"]),
        str(row["batch"]),
        *("-" if latency[name] is None else f"{1e3 * latency[name]:.2f}" for name in ("p50", "p95", "p99")),
        f"{middle} ({low}-{high})",
        f"{ratio['median']:.2f}" if ratio else "-",
        "-" if reached is None else f"{reached / 1e9:.1f}",
        "-" if share is None else f"{share:.{1 if share < 0.1 else 0}%}",
        "-" if memory is None else f"{memory / 1e6:.0f}",
    ]
