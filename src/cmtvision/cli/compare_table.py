"""The table of ``cmtvision compare``, from its record."""

from typing import Any

from cmtvision.cli import output

_MARK = "*"


def show_comparison(record: dict[str, Any]) -> None:
    """Print the table and the reasons of failures to stdout, explanations of the figures to stderr."""
    rows = record["rows"]
    trained = any(row["trained"] for row in rows)
    best = record["runtime"] == "best"
    columns = [
        "model", *(["runtime"] if best else []), "input px", "parameters", "GMACs", "activations M", "memory MB",
        "latency ms", f"images/s at {record['batch']}", "published top-1 %", *(["trained top-1 %"] if trained else []),
        "front",
    ]  # fmt: skip
    good = [row for row in rows if row["failure"] is None]
    if good:
        cells = [_cells(row, best, trained) for row in good]
        output.table(columns, cells, right=[name for name in columns if name not in ("model", "runtime", "front")])
    for row in rows:
        if row["failure"] or row["training_failure"]:
            verb = "failed" if row["failure"] else "not trained"
            output.result(f"{row['model']}  {verb}: {row['failure'] or row['training_failure']}")
        for way, reason in row["refused"].items():
            if not row["failure"]:
                output.result(f"{row['model']}  not in {way}: {reason}")
    for line in _footnotes(record):
        output.note(line)


def _cells(row: dict[str, Any], best: bool, trained: bool) -> list[str]:
    _, height, width = row["input_size"]
    memory, published = row["memory_bytes"], row["published"] or row["own"]
    cells = [
        row["model"],
        *([f"{row['runtime']} {row['precision']}"] if best else []),
        str(height) if height == width else f"{height}x{width}",
        f"{row['parameters'] / 1e6:.2f} M",
        f"{row['gmacs']:.3f}" if row["gmacs"] >= 0.1 else f"{row['gmacs']:.4f}",
        f"{row['activations_m']:.2f}",
        "-" if memory is None else f"{memory / 1e6:.0f}",
        _rounds(row["latency_seconds"], 1e3),
        _rounds(row["images_per_second"], 1),
        f"{published['percent']:.1f}" if published else "-",
    ]
    if trained:
        cells.append(_interval(row["trained"]))
    said = (("gmacs", "GMACs"), ("latency", "latency"))
    fronts = [name for cost, name in said if cost in row["front"]]
    fronts += [f"{name} (paper)" for cost, name in said if cost in row["paper_front"] and cost not in row["front"]]
    return [*cells, " ".join(f"{_MARK}{name}" for name in fronts)]


def _rounds(spread: dict[str, float], factor: float) -> str:
    """Median of the rounds, with minimum and maximum."""
    digits = 1 if spread["median"] * factor < 100 else 0
    middle, low, high = (f"{spread[key] * factor:.{digits}f}" for key in ("median", "min", "max"))
    return f"{middle} ({low}-{high})"


def _interval(trained: dict[str, Any] | None) -> str:
    if trained is None:
        return "-"
    if trained["low"] is None:
        return f"{trained['percent']:.2f}"
    return f"{trained['percent']:.2f} ({trained['low']:.2f}-{trained['high']:.2f})"


def _footnotes(record: dict[str, Any]) -> list[str]:
    lines = ["latency: batch 1; medians of rounds (least-most); memory: peak of the whole process above its start"]
    sources = sorted({row["published"]["source"] for row in record["rows"] if row["published"]})
    if sources:
        lines.append(f"published top-1 (ImageNet-1k, measured by nobody here): {'; '.join(sources)}")
    trained = next((row["trained"] for row in record["rows"] if row["trained"]), None)
    if trained:
        lines.append(f"trained top-1: {trained['source']}; in brackets the 95% interval over seeds")
    if any(row["own"] for row in record["rows"]):
        lines.append("top-1 of a run folder: on its own held-out photos")
    if record["accuracy"]:
        lines.append(f"{_MARK}: on the Pareto front of {record['accuracy']} top-1 against that cost")
        if any(row["paper_front"] for row in record["rows"]):
            lines.append("(paper): among the systems that CMT's paper compares itself with")
    return lines
