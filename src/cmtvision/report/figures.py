"""Curves over the epochs as inline SVG. Colours are CSS variables of the page, so they follow light and dark mode."""

import io
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from markupsafe import Markup, escape
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

MAX_POINTS = 1000
# matplotlib knows no CSS variables: it draws with these stand-ins, which are then replaced
STAND_INS = {"ink": "#010101", "line": "#020202", "accent": "#030303", "warn": "#040404"}


class Curve(NamedTuple):
    """One line of a figure: what it is called, its column in metrics.csv, its colour's name, its line style."""

    name: str
    column: str
    colour: str
    style: str


class Chart(NamedTuple):
    """A figure of the page: its heading, the drawing, what it shows in words."""

    title: str
    svg: Markup
    caption: str


_CHARTS: list[tuple[str, list[Curve], Callable[[float], str], float]] = [
    (
        "Loss",
        [Curve("training", "train_loss", "warn", "--"), Curve("held out", "val_loss", "accent", "-")],
        lambda value: f"{value:.3f}",
        1.0,
    ),
    ("Held-out top-1 accuracy (%)", [Curve("held out", "val_top1", "accent", "-")], lambda value: f"{value:.2f}%", 100),
    (
        "Held-out mean average precision (%)",
        [Curve("held out", "val_map", "accent", "-")],
        lambda value: f"{value:.2f}%",
        100,
    ),
    (
        "Held-out AP (%)",
        [Curve("boxes", "val_ap", "accent", "-"), Curve("masks", "val_mask_ap", "warn", "--")],
        lambda value: f"{value:.1f}%",
        100,
    ),
    ("Held-out mIoU (%)", [Curve("held out", "val_miou", "accent", "-")], lambda value: f"{value:.1f}%", 100),
    ("Learning rate", [Curve("learning rate", "lr", "accent", "-")], lambda value: f"{value:.2e}", 1.0),
]


def curves(metrics: Sequence[dict[str, float]]) -> list[Chart]:
    """Loss, held-out accuracy and learning rate over the epochs; a figure without a single value is left out."""
    charts = []
    for number, (title, lines, show, factor) in enumerate(_CHARTS):
        drawn: list[tuple[Curve, list[float], list[float]]] = []
        for line in lines:
            xs, ys = _points(metrics, line.column, factor)
            if xs:
                drawn.append((line, xs, ys))
        if drawn:
            caption = "; ".join(_in_words(line, xs, ys, show, len(lines) > 1) for line, xs, ys in drawn)
            charts.append(Chart(title, _draw(title, drawn, f"chart{number}", caption), caption))
    return charts


def _points(metrics: Sequence[dict[str, float]], column: str, factor: float) -> tuple[list[float], list[float]]:
    points = [
        (row.get("epoch", math.nan), row[column] * factor)
        for row in metrics
        if math.isfinite(row.get(column, math.nan))
    ]
    # metrics.csv counts epochs from 0, people from 1
    points = [(1 + (x if math.isfinite(x) else i), y) for i, (x, y) in enumerate(points)]
    if len(points) > MAX_POINTS:
        points = [points[i] for i in np.linspace(0, len(points) - 1, MAX_POINTS).round().astype(int)]
    return [x for x, _ in points], [y for _, y in points]


def _in_words(line: Curve, xs: list[float], ys: list[float], show: Callable[[float], str], named: bool) -> str:
    values = show(ys[0]) if len(ys) == 1 else f"from {show(ys[0])} to {show(ys[-1])}"
    if line.column in ("val_loss", "val_top1", "val_map", "val_ap", "val_mask_ap", "val_miou") and len(ys) > 1:
        best = int(np.argmin(ys) if line.column == "val_loss" else np.argmax(ys))
        values += f" (best {show(ys[best])}, epoch {xs[best]:g})"
    return f"{line.name} {values}" if named else values


def _draw(title: str, drawn: list[tuple[Curve, list[float], list[float]]], prefix: str, caption: str) -> Markup:
    ink = STAND_INS["ink"]
    figure = Figure(figsize=(4.8, 2.9), layout="constrained")
    FigureCanvasSVG(figure)
    axes: Any = figure.add_subplot()
    for line, xs, ys in drawn:
        marker = "o" if len(xs) <= 30 else None
        axes.plot(
            xs, ys, line.style, color=STAND_INS[line.colour], marker=marker, markersize=3.5, linewidth=1.8,
            label=line.name,
        )  # fmt: skip
    axes.set_xlabel("epoch", color=ink)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
    if max(len(xs) for _, xs, _ in drawn) == 1:
        axes.set_xlim(drawn[0][1][0] - 1, drawn[0][1][0] + 1)
    if drawn[0][0].column == "lr":
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
        axes.yaxis.get_offset_text().set_color(ink)
    plain_axes(axes)
    if len(drawn) > 1:
        axes.legend(frameon=False, labelcolor=ink, fontsize=9)
    return inline(figure, prefix, f"{title} by epoch: {caption}")


def precision_recall(named: dict[str, Sequence[float]]) -> Chart:
    """Precision over recall, the lines by their names; a line is precision at recalls that are evenly spread from 0 to
    1.
    """
    ink = STAND_INS["ink"]
    figure = Figure(figsize=(4.8, 2.9), layout="constrained")
    FigureCanvasSVG(figure)
    axes: Any = figure.add_subplot()
    said = []
    for (name, values), colour, style in zip(named.items(), ("accent", "warn"), ("-", "--"), strict=False):
        recalls = np.linspace(0, 100, len(values))
        axes.plot(recalls, [100 * value for value in values], style, color=STAND_INS[colour], linewidth=1.8, label=name)
        said.append(f"{name}: precision {values[len(values) // 2]:.0%} where half of the objects are found")
    axes.set_xlabel("recall (%)", color=ink)
    axes.set_ylabel("precision (%)", color=ink)
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 102)
    plain_axes(axes)
    axes.legend(frameon=False, labelcolor=ink, fontsize=9)
    caption = "; ".join(said)
    return Chart("Precision over recall", inline(figure, "recall", f"Precision over recall: {caption}"), caption)


def plain_axes(axes: Any) -> None:
    """Axes in the page's colours: a grid behind the lines, no frame."""
    axes.tick_params(colors=STAND_INS["ink"], labelsize=9)
    axes.grid(color=STAND_INS["line"], linewidth=0.8)
    axes.set_axisbelow(True)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(STAND_INS["line"])


def inline(figure: Figure, prefix: str, in_words: str) -> Markup:
    """A figure as an <svg> element for the page: themed, described to screen readers, its ids its own.

    Args:
        figure: drawn in colours of STAND_INS.
        prefix: of its ids, unique on the page.
        in_words: what it shows.
    """
    out = io.StringIO()
    # text stays text: it is smaller, can be found and copied, and takes the page's font
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": prefix}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    for name, stand_in in STAND_INS.items():
        svg = svg.replace(stand_in, f"var(--{name})")
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    svg = re.sub(r'(<svg [^>]*?)width="[^"]*" height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r' height="[\d.]+pt"| width="[\d.]+pt"', "", svg, count=2)
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{escape(in_words)}" ', 1))
