"""Figures and table of a comparison, drawn from its record: accuracy against what models cost, the Pareto fronts drawn.

A record is the JSON that ``cmtvision compare`` writes. Where it holds no accuracy, parameters and multiply-adds are
drawn against measured latency instead.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from cmtvision.report.csv_file import write_csv
from cmtvision.report.labels import label_points
from cmtvision.report.plot_files import save_figure

_OURS = {"CMT": "#1f5fa8", "CMT ladder": "#7fa6d6"}
# Okabe and Ito's colours, which the colour-blind can tell apart, without the blue that is CMT's
_OTHERS = ("#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6b7280", "#8b5e3c", "#b8a400")
_INK = "#374151"
_REST, _REST_COLOUR = "other networks", "#9ca3af"
_FIELD = {"published": "published", "trained": "trained", "run": "own"}
_MARKERS = {"published": "o", "trained": "D", "run": "s"}
_MEANING = {
    "published": "published figure, ImageNet-1k",
    "trained": "trained here, bars: 95% over seeds",
    "run": "the runs' own held-out photos",
}
_FRONT: dict[str, Any] = {"color": _INK, "linewidth": 1, "linestyle": "--"}
_PAPER_FRONT: dict[str, Any] = {"color": _OURS["CMT"], "linewidth": 1.4, "linestyle": ":"}
_GMACS = "multiply-adds of one image (GMACs)"
_DISTILLED = " distilled"  # of published networks that learned from another one; a star in figures
_OURS_AREA = 110  # of a CMT's point
_CROWDED = 16  # points, from which on a figure is higher
_LOG_FROM = 4.0  # costs that differ by more are drawn on a logarithmic axis
_COLUMNS = (
    "model", "architecture", "input_px", "parameters", "gmacs", "activations_m", "memory_mb", "latency_ms",
    "latency_ms_min", "latency_ms_max", "images_per_second", "images_per_second_min", "images_per_second_max",
    "published_top1", "published_source", "trained_top1", "trained_low", "trained_high", "run_top1", "front_gmacs",
    "front_latency", "paper_front_gmacs", "paper_front_latency", "runtime", "precision", "failure",
)  # fmt: skip

Row = Mapping[str, Any]


def write_comparison_csv(record: Mapping[str, Any], out: Path) -> Path:
    """Write comparison.csv, a row for each model. Raises CheckpointError if it cannot be written."""
    return write_csv(out / "comparison.csv", _COLUMNS, map(_cells, record["rows"]))


def _cells(row: Row) -> list[Any]:
    latency, rate = row["latency_seconds"] or {}, row["images_per_second"] or {}
    published, trained, own = row["published"] or {}, row["trained"] or {}, row["own"] or {}
    size, memory = row["input_size"], row["memory_bytes"]
    return [
        row["model"],
        row["architecture"],
        f"{size[1]}x{size[2]}" if size else None,
        row["parameters"],
        row["gmacs"],
        row["activations_m"],
        None if memory is None else memory / 1e6,
        *(1e3 * latency[key] if latency else None for key in ("median", "min", "max")),
        *(rate.get(key) for key in ("median", "min", "max")),
        published.get("percent"),
        published.get("source"),
        trained.get("percent"),
        trained.get("low"),
        trained.get("high"),
        own.get("percent"),
        int("gmacs" in row["front"]),
        int("latency" in row["front"]),
        int("gmacs" in row.get("paper_front", ())),
        int("latency" in row.get("paper_front", ())),
        row.get("runtime"),
        row.get("precision"),
        row["failure"] or row["training_failure"],
    ]


def write_comparison_figures(record: Mapping[str, Any], out: Path) -> list[Path]:
    """Write comparison.svg and comparison.png; nothing where no model was measured.

    Raises:
        CheckpointError: they cannot be written.
    """
    if not any(row["failure"] is None for row in record["rows"]):
        return []
    return [save_figure(comparison_figure(record), out / f"comparison{suffix}") for suffix in (".svg", ".png")]


class _Panel(NamedTuple):
    """One half of the figure: points with their intervals, which of them are on the front, the axes' names."""

    xs: list[float]
    ys: list[float]
    bounds: list[tuple[float, float] | None]
    front: list[bool]
    paper_front: list[bool]
    x_label: str
    y_label: str


def comparison_figure(record: Mapping[str, Any]) -> Figure:
    """Two panels: accuracy against multiply-adds and against latency; without accuracy, two costs against latency."""
    rows, kind = _known(record), record["accuracy"]
    return _figure(record, rows, _accuracy_panels(record, rows, kind) if kind else _cost_panels(record, rows))


def latency_figure(record: Mapping[str, Any]) -> Figure:
    """One panel, accuracy against latency, for a record that has accuracies."""
    rows = _known(record)
    return _figure(record, rows, _accuracy_panels(record, rows, record["accuracy"])[1:])


def _known(record: Mapping[str, Any]) -> list[Row]:
    """The rows to draw: those with an accuracy, where there are any."""
    rows, kind = _measured(record), record["accuracy"]
    return [row for row in rows if kind and row[_FIELD[kind]]] or rows


def _measured(record: Mapping[str, Any]) -> list[Row]:
    return [row for row in record["rows"] if row["failure"] is None]


def _figure(record: Mapping[str, Any], rows: Sequence[Row], panels: Sequence[_Panel]) -> Figure:
    kind, colours = record["accuracy"], _colours(rows)
    crowded = len(rows) > _CROWDED
    figure = Figure(figsize=(12.0 if crowded and len(panels) == 1 else 14.0, 9.0 if crowded else 6.0))
    figure.set_layout_engine("constrained")
    drawn = [figure.add_subplot(1, len(panels), place) for place in range(1, len(panels) + 1)]
    for axes, panel in zip(drawn, panels, strict=True):
        _draw(axes, panel, [colours[row["family"]] for row in rows], _MARKERS.get(kind, "o"))
    _explain(figure, record, kind, colours, len(_measured(record)) - len(rows))
    for axes, panel in zip(drawn, panels, strict=True):
        label_points(figure, axes, list(zip(panel.xs, panel.ys, strict=True)), [_name(row, kind) for row in rows])
    return figure


def _name(row: Row, kind: str | None) -> str:
    """What stands at a point: the name in the literature where the accuracy is from there, or the user's word."""
    found = row[_FIELD[kind]] if kind else None
    system = (found or {}).get("system")
    return Path(row["model"]).name if system is None else system.replace(_DISTILLED, "*")


def _accuracy_panels(record: Mapping[str, Any], rows: Sequence[Row], kind: str) -> list[_Panel]:
    found = [row[_FIELD[kind]] for row in rows]
    bounds = [None if one["low"] is None else (one["low"], one["high"]) for one in found]
    ys, said = [one["percent"] for one in found], f"{kind if kind != 'run' else 'held-out'} top-1 (%)"
    return [
        _Panel(
            xs,
            ys,
            bounds,
            [cost in row["front"] for row in rows],
            [cost in row.get("paper_front", ()) for row in rows],
            x_label,
            said,
        )
        for cost, xs, x_label in (("gmacs", _gmacs(rows), _GMACS), ("latency", _latency(rows), _latency_label(record)))
    ]


def _cost_panels(record: Mapping[str, Any], rows: Sequence[Row]) -> list[_Panel]:
    costs = (([row["parameters"] / 1e6 for row in rows], "parameters (M)"), (_gmacs(rows), _GMACS))
    nothing: list[Any] = [None] * len(rows)
    return [
        _Panel(xs, _latency(rows), nothing, [False] * len(rows), [False] * len(rows), x_label, _latency_label(record))
        for xs, x_label in costs
    ]


def _gmacs(rows: Sequence[Row]) -> list[float]:
    return [row["gmacs"] for row in rows]


def _latency(rows: Sequence[Row]) -> list[float]:
    return [1e3 * row["latency_seconds"]["median"] for row in rows]


def _latency_label(record: Mapping[str, Any]) -> str:
    where = record["device"]
    if where == "cpu":
        where = f"CPU, {record['threads']} thread{'s' if record['threads'] > 1 else ''}"
    best = ", each in its fastest runtime" if record.get("runtime") == "best" else ""
    return f"measured latency of one image (ms, {where}{best})"


def _draw(axes: Any, panel: _Panel, colours: Sequence[str], marker: str) -> None:
    for scale, values in ((axes.set_xscale, panel.xs), (axes.set_yscale, panel.ys)):
        if max(values) > _LOG_FROM * min(values) > 0:
            scale("log")
    for x, y, bound, on_front, colour in zip(panel.xs, panel.ys, panel.bounds, panel.front, colours, strict=True):
        if bound is not None:
            axes.plot([x, x], bound, color=colour, linewidth=1.4, alpha=0.6, zorder=2)
        edge = {"edgecolor": _INK, "linewidth": 1.5} if on_front else {"edgecolor": "white", "linewidth": 0.8}
        axes.scatter([x], [y], s=_OURS_AREA if colour == _OURS["CMT"] else 52, color=colour, marker=marker, zorder=3,
                     **edge)  # fmt: skip
    crowded = len(panel.xs) > _CROWDED
    axes.margins(x=0.06 if crowded else 0.2, y=0.05 if crowded else 0.12)  # room for names
    last = axes.get_xlim()[1]  # nothing dearer is better than the last: a front goes on level
    for marked, line in ((panel.front, _FRONT), (panel.paper_front, _PAPER_FRONT)):
        front = sorted((x, y) for x, y, on_front in zip(panel.xs, panel.ys, marked, strict=True) if on_front)
        if front:
            axes.step(*zip(*front, (last, front[-1][1]), strict=True), where="post", zorder=1, **line)
            axes.set_xlim(right=last)
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log":
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
    axes.grid(color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    for name in ("top", "right"):
        axes.spines[name].set_visible(False)


def _explain(
    figure: Figure, record: Mapping[str, Any], kind: str | None, colours: dict[str, str], left_out: int
) -> None:
    """The legend below, and above what the points are and where they were measured."""
    marker = _MARKERS.get(kind or "", "o")
    names = {(_REST if colour == _REST_COLOUR else name): colour for name, colour in colours.items()}
    keys: list[Any] = [Line2D([], [], marker="o", linestyle="", color=names[name], label=name) for name in names]
    if kind:
        keys.append(Line2D([], [], marker=marker, linestyle="", color=_INK, label=_MEANING[kind]))
        keys.append(Line2D([], [], marker=marker, markerfacecolor="none", label="Pareto front", **_FRONT))
        if any(row.get("paper_front") for row in record["rows"]):
            keys.append(Line2D([], [], label="front of the systems of CMT's paper", **_PAPER_FRONT))
    figure.legend(handles=keys, loc="outside lower center", ncols=min(len(keys), 7), frameon=False, fontsize=9)
    said = [record["hardware"].get("processor", ""), record["date"]]
    said += [] if kind else ["no accuracy is known of these models"]
    said += [f"{left_out} without a known accuracy left out"] if left_out else []
    if any(_DISTILLED in ((row["published"] or {}).get("system") or "") for row in record["rows"]):
        said.append("* learned from a larger network")
    figure.suptitle("; ".join(filter(None, said)), fontsize=9, color="#4b5563")


def _colours(rows: Sequence[Row]) -> dict[str, str]:
    """A colour for each family, ours first; the same families always get the same.

    Where there are more families than colours, only those of CMT's paper have one, and the rest is grey.
    """
    families = sorted({row["family"] for row in rows}, key=lambda name: (name not in _OURS, name))
    others = [name for name in families if name not in _OURS]
    if len(others) > len(_OTHERS):
        of_paper = {row["family"] for row in rows if row.get("of_paper")}
        families.sort(key=lambda name: (name not in _OURS, name not in of_paper, name))
        others = [name for name in others if name in of_paper]
    return {
        name: _OURS.get(name) or (_OTHERS[others.index(name) % len(_OTHERS)] if name in others else _REST_COLOUR)
        for name in families
    }
