"""Names next to the points of a figure, placed so that they overlap neither each other nor a point if there is room."""

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

# where a name may stand around its point: direction, and distance in points, the nearest first
_DISTANCES = (6.0, 15.0, 26.0)
_ANGLES = (0, 180, 90, 270, 45, 315, 135, 225)
_POINT = 5.0
_COVERED, _CROSSED, _OUTSIDE, _FAR = 10.0, 3.0, 100.0, 0.02


def label_points(
    figure: Figure, axes: Any, points: Sequence[tuple[float, float]], names: Sequence[str], size: float = 8
) -> None:
    """Write a name next to each point of axes whose limits and layout are final.

    Args:
        figure: the axes' own; it is laid out here.
        axes: where the points are drawn already.
        points: (x, y) in data coordinates.
        names: one for each.
        size: of the letters, in points.
    """
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    scale = figure.dpi / 72
    places: list[tuple[float, float]] = [tuple(axes.transData.transform(point)) for point in points]
    taken = [_around(x, y, _POINT * scale) for x, y in places]
    # from the left to the right and from below, so that the same figure always gets the same labels
    for number in sorted(range(len(points)), key=lambda n: places[n]):
        text = axes.annotate(
            names[number], points[number], xytext=(0, 0), textcoords="offset points", fontsize=size, color="#111827",
            ha="center", va="center", zorder=2, bbox={"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 0.4},
        )  # fmt: skip
        box = text.get_window_extent(renderer)
        width, height = box.width, box.height
        best, cost = (0.0, 0.0), math.inf
        for dx, dy in _offsets(width / scale, height / scale):
            x, y = places[number][0] + dx * scale, places[number][1] + dy * scale
            wanted = Bbox.from_bounds(x - width / 2, y - height / 2, width, height)
            price = _price(wanted, taken, axes.bbox) + _FAR * math.hypot(dx, dy)
            price += _CROSSED * _crossings(places[number], (x, y), [*taken[:number], *taken[number + 1 :]])
            if price < cost:
                best, cost = (dx, dy), price
        text.set_position(best)
        x, y = places[number][0] + best[0] * scale, places[number][1] + best[1] * scale
        taken.append(Bbox.from_bounds(x - width / 2, y - height / 2, width, height))
        if best not in _offsets(width / scale, height / scale)[: len(_ANGLES)]:  # a line must say whose it is
            axes.annotate(
                "", points[number], xytext=best, textcoords="offset points", zorder=1,
                arrowprops={"arrowstyle": "-", "color": "#9ca3af", "linewidth": 0.6, "shrinkA": 4, "shrinkB": 3},
            )  # fmt: skip


def _offsets(width: float, height: float) -> list[tuple[float, float]]:
    """Centres of a label of that size around its point, in points."""
    offsets = []
    for distance in _DISTANCES:
        for angle in _ANGLES:
            across, up = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            offsets.append((across * distance + _sign(across) * width / 2, up * distance + _sign(up) * height / 2))
    return offsets


def _sign(value: float) -> float:
    return 0.0 if abs(value) < 1e-9 else math.copysign(1.0, value)


def _around(x: float, y: float, half: float) -> Bbox:
    return Bbox.from_bounds(x - half, y - half, 2 * half, 2 * half)


def _crossings(start: tuple[float, float], end: tuple[float, float], taken: Sequence[Bbox]) -> int:
    """How many boxes a straight line runs through."""
    steps = [step / 20 for step in range(1, 20)]
    line = [(start[0] + t * (end[0] - start[0]), start[1] + t * (end[1] - start[1])) for t in steps]
    return sum(any(box.contains(x, y) for x, y in line) for box in taken)


def _price(wanted: Bbox, taken: Sequence[Bbox], room: Bbox) -> float:
    """The cost of a position: the share of the label that is covered, and whether it leaves the axes."""
    area = wanted.width * wanted.height
    covered = 0.0
    for other in taken:
        common = Bbox.intersection(wanted, other)
        if common is not None:
            covered += common.width * common.height / area + 0.05
    inside = room.x0 <= wanted.x0 and wanted.x1 <= room.x1 and room.y0 <= wanted.y0 and wanted.y1 <= room.y1
    return _COVERED * covered + (0.0 if inside else _OUTSIDE)
