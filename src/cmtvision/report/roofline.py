"""The roofline of a record of ``cmtvision bench``, and its table as CSV.

    x = arithmetic intensity: FLOPs of a pass / bytes that it must move (see ``bench.cells``)
    y = FLOP/s reached;  roof = min(FLOP/s of matrix products in a precision, x * bytes/s of the caches)

A second slope is that of memory: a point above it has its maps in caches. A point under a slope is bound by data
movement, one under a flat roof by arithmetic; none is above its roof. Records without caches have only one slope.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cmtvision.report.csv_file import write_csv
from cmtvision.report.labels import label_points
from cmtvision.report.plot_files import save_figure

CSV_FILE = "bench.csv"
FIGURES = ("plot.svg", "plot.png")
_INK = "#374151"
# Okabe and Ito's colours, one for each precision; shapes tell runtimes apart
_COLOURS = {
    "fp32": "#1f5fa8", "bf16": "#d55e00", "amp": "#cc79a7", "fp16": "#e69f00", "int8": "#009e73",
}  # fmt: skip
_MARKERS = {
    "eager": "o", "channels-last": "s", "fused": "D", "compiled": "^", "cuda-graph": "v", "torch": "P", "onnx": "X",
    "openvino": "*",
}  # fmt: skip
_SLOPES = {"cache": ("slope: caches", "-"), "copy": ("slope: memory", "--")}  # in words, and its line
_MOST_NAMES = 12  # beyond, names would cover the points
_COLUMNS = (
    "target", "architecture", "runtime", "precision", "threads", "batch", "input_px", "gmacs", "passes", "p50_ms",
    "p95_ms", "p99_ms", "images_per_second", "images_per_second_min", "images_per_second_max", "x_eager",
    "x_eager_min", "x_eager_max", "gmacs_per_second", "fraction_of_limit", "fraction_of_roof", "intensity",
    "memory_mb", "activation_mb", "open_seconds", "first_pass_seconds", "note", "failure",
)  # fmt: skip

Row = Mapping[str, Any]


def write_speed_csv(record: Mapping[str, Any], out: Path) -> Path:
    """Write bench.csv, a row for each cell. Raises CheckpointError if it cannot be written."""
    rows = ([cells.get(name) for name in _COLUMNS] for cells in map(_cells, record["cells"]))
    return write_csv(out / CSV_FILE, _COLUMNS, rows)


def _cells(row: Row) -> dict[str, Any]:
    cells = {name: row.get(name) for name in _COLUMNS}
    size = row["input_size"]
    cells["input_px"] = f"{size[1]}x{size[2]}" if size else None
    if row["failure"] is not None:
        return cells
    rates, ratio, reached = row["images_per_second"], row["x_eager"] or {}, row["macs_per_second"]
    cells |= {f"{name}_ms": _scaled(row["latency_seconds"][name], 1e3) for name in ("p50", "p95", "p99")}
    cells |= {"images_per_second": rates["median"], "x_eager": ratio.get("median")}
    for end in ("min", "max"):
        cells |= {f"images_per_second_{end}": rates[end], f"x_eager_{end}": ratio.get(end)}
    return cells | {
        "gmacs_per_second": _scaled(reached, 1e-9),
        "memory_mb": _scaled(row["memory_bytes"], 1e-6),
        "activation_mb": _scaled(row["activation_bytes"], 1e-6),
    }


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def write_roofline(record: Mapping[str, Any], out: Path) -> list[Path]:
    """Write plot.svg and plot.png; nothing where no cell has a known cost.

    Raises:
        CheckpointError: it cannot be written.
    """
    if not any(drawable(record)):
        return []
    figure = draw_roofline(record)
    return [save_figure(figure, out / name) for name in FIGURES]


def drawable(record: Mapping[str, Any]) -> Iterator[Row]:
    """The rows that have a place in the figure."""
    return (row for row in record["cells"] if row["failure"] is None and row["intensity"] and row["flops_per_second"])


def draw_roofline(record: Mapping[str, Any]) -> Figure:
    """The figure: a panel for each number of threads, a roof for each precision, a point for each cell."""
    rows = list(drawable(record))
    counts = sorted({row["threads"] for row in rows})
    figure = Figure(figsize=(7.2 * len(counts), 5.2), layout="constrained")
    panels = figure.subplots(1, len(counts), squeeze=False, sharey=True)[0]
    limits = {row["threads"]: row for row in record["limits"]}
    for axes, threads in zip(panels, counts, strict=True):
        _draw(axes, [row for row in rows if row["threads"] == threads], limits.get(threads, {}))
        axes.set_title(f"{threads} thread{'s' if threads > 1 else ''}", fontsize=10, color=_INK)
    panels[0].set_ylabel("reached (GFLOP/s, 2 for each multiply-add)")
    _explain(figure, record, rows)
    several = len({(row["target"], *row["input_size"]) for row in rows}) > 1
    for axes, threads in zip(panels, counts, strict=True):
        here = [row for row in rows if row["threads"] == threads]
        if len(here) <= _MOST_NAMES or not several:
            named = here if len(here) <= _MOST_NAMES else _extremes(here)
            names = [f"{row['target'] + ' ' if several else ''}{row['runtime']} b{row['batch']}" for row in named]
            label_points(figure, axes, [_place(row) for row in named], names, 7)
    return figure


def _extremes(rows: Sequence[Row]) -> list[Row]:
    """The fastest cell of each precision, to label if not all can be labelled."""
    best: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: row["flops_per_second"]):
        best[row["precision"]] = row
    return list(best.values())


def _place(row: Row) -> tuple[float, float]:
    return row["intensity"], row["flops_per_second"] / 1e9


def _draw(axes: Any, rows: Sequence[Row], limits: Row) -> None:
    """A panel; a limit that could not be measured has no line."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    slopes = {name: limits[name]["median"] / 1e9 for name in _SLOPES if name in limits}
    copy = max(slopes.values(), default=None)
    roofs = {name: limits[name]["median"] / 1e9 for name in _COLOURS if name in limits}
    places = [_place(row) for row in rows]
    left = min(x for x, _ in places) / 3
    right = 3 * max(x for x, _ in places)
    if roofs:
        right = max([right, *(3 * max(roofs.values()) / slope for slope in slopes.values())])
    for name, slope in slopes.items():
        ridge = max(roofs.values()) / slope if roofs else right
        axes.plot([left, ridge], [slope * left, slope * ridge], _SLOPES[name][1], color=_INK, linewidth=1.2, zorder=2)
    for name, roof in roofs.items():
        begins = left if copy is None else roof / copy
        axes.plot([begins, right], [roof, roof], color=_COLOURS[name], linewidth=1.4, zorder=2)
        axes.annotate(
            f"{name} {roof:,.0f} GFLOP/s", (right, roof), xytext=(-3, 3), textcoords="offset points", fontsize=8,
            ha="right", color=_COLOURS[name],
        )  # fmt: skip
    for row, (x, y) in zip(rows, places, strict=True):
        axes.scatter(
            [x], [y], s=70 if _MARKERS[row["runtime"]] == "*" else 42, marker=_MARKERS[row["runtime"]],
            color=_COLOURS.get(row["precision"], _INK), edgecolor="white", linewidth=0.7, zorder=3,
        )  # fmt: skip
    lowest = min([y for _, y in places] + [slope * left for slope in slopes.values()])
    axes.set_xlim(left, right)
    axes.set_ylim(lowest / 2, 2 * max([*roofs.values(), *(y for _, y in places)]))
    said = [f"{_SLOPES[name][0]} {slope:,.1f} GB/s" for name, slope in slopes.items()]
    axes.set_xlabel(f"arithmetic intensity (FLOPs a byte; {'; '.join(said) or 'memory was not measured'})")
    axes.grid(color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    for name in ("top", "right"):
        axes.spines[name].set_visible(False)


def _explain(figure: Figure, record: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """The legend below, and above where it was measured."""
    runtimes = [name for name in _MARKERS if any(row["runtime"] == name for row in rows)]
    precisions = [name for name in _COLOURS if any(row["precision"] == name for row in rows)]
    keys = [
        Line2D([], [], marker=_MARKERS[name], linestyle="", color="#9ca3af", markersize=7, label=name)
        for name in runtimes
    ] + [Line2D([], [], marker="o", linestyle="-", color=_COLOURS[name], label=name) for name in precisions]
    figure.legend(handles=keys, loc="outside lower center", ncols=min(len(keys), 7), frameon=False, fontsize=9)
    where = record.get("hardware", {}).get("processor", "") if record["device"] == "cpu" else record["device"]
    said = filter(None, [where, record.get("date", "")])
    figure.suptitle("; ".join(said), fontsize=9, color="#4b5563")
