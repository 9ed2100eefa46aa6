"""A comparison's figure shows every known model once, marks the front, and says what its points are."""

import csv
import re

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cmtvision.report.comparison import (
    comparison_figure,
    latency_figure,
    write_comparison_csv,
    write_comparison_figures,
)
from cmtvision.report.labels import label_points


def row(model, gmacs, milliseconds, family="CMT", front=(), failure=None, **facts):
    return {
        "model": model,
        "architecture": model,
        "family": family,
        "input_size": [3, 32, 32],
        "parameters": round(gmacs * 1e7),
        "gmacs": gmacs,
        "activations_m": gmacs,
        "memory_bytes": 5_000_000,
        "latency_seconds": {"median": milliseconds / 1e3, "min": milliseconds / 2e3, "max": milliseconds / 5e2},
        "images_per_second": {"median": 10.0, "min": 9.0, "max": 11.0},
        "published": None,
        "trained": None,
        "own": None,
        "training_failure": None,
        "failure": failure,
        "front": list(front),
        **facts,
    }


def figure_of(percent, kind="published", low=None, high=None):
    return {kind: {"kind": kind, "percent": percent, "source": "a paper", "low": low, "high": high, "counts": []}}


def record(rows, accuracy="published"):
    return {
        "rows": rows,
        "accuracy": accuracy,
        "device": "cpu",
        "threads": 2,
        "date": "2026-01-01",
        "hardware": {"processor": "A Processor"},
    }


ROWS = [
    row("tiny_net", 0.5, 5, "other", ("gmacs", "latency"), **figure_of(70.0)),
    row("cmt_x", 1.0, 9, "CMT", ("gmacs",), **figure_of(80.0)),
    row("slow_net", 2.0, 8, "other", (), **figure_of(75.0)),
    row("unknown_net", 3.0, 7, "other"),
    {**row("broken_net", 1, 1, failure="it fell"), "latency_seconds": None, "images_per_second": None, "gmacs": None},
]


def drawn(path):
    return path.read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_svg_names_what_is_known_and_says_that_it_is_published(tmp_path):
    svg, png = write_comparison_figures(record(ROWS), tmp_path)
    text = drawn(svg)
    for name in ("tiny_net", "cmt_x", "slow_net"):
        assert text.count(f">{name}<") == 2, name  # once in each panel
    assert "unknown_net" not in text
    assert "broken_net" not in text
    assert "1 without a known accuracy left out" in text
    assert "published figure" in text
    assert "Pareto front" in text
    assert re.search(r"latency.*ms, CPU, 2 threads", text)
    assert png.read_bytes().startswith(b"\x89PNG")
    before = text
    assert drawn(write_comparison_figures(record(ROWS), tmp_path)[0]) == before


def test_the_front_is_a_staircase_through_the_marked_rows():
    left, right = comparison_figure(record(ROWS)).axes
    for axes, wanted in ((left, [(0.5, 70.0), (1.0, 80.0)]), (right, [(5.0, 70.0)])):
        (line,) = [line for line in axes.lines if line.get_linestyle() == "--"]
        points = list(zip(line.get_xdata(), line.get_ydata(), strict=True))
        assert points[:-1] == wanted
        assert points[-1][1] == wanted[-1][1]  # it goes on level
        assert line.get_drawstyle() == "steps-post"


def test_the_systems_of_the_paper_have_a_front_of_their_own():
    rows = [
        row("today", 0.5, 5, "other", ("gmacs", "latency"), **figure_of(82.0)),
        row("cmt_x", 1.0, 9, "CMT", (), **figure_of(80.0), paper_front=["gmacs", "latency"]),
        row("deit_x", 2.0, 12, "DeiT", (), **figure_of(79.0), paper_front=[]),
    ]
    figure = comparison_figure(record(rows))
    for axes, wanted in zip(figure.axes, [(1.0, 80.0), (9.0, 80.0)], strict=True):
        (line,) = [line for line in axes.lines if line.get_linestyle() == ":"]
        assert (line.get_xdata()[0], line.get_ydata()[0]) == wanted
    said = " ".join(text.get_text() for text in figure.legends[0].texts)
    assert "systems of CMT's paper" in said
    assert "systems of CMT's paper" not in " ".join(
        text.get_text() for text in comparison_figure(record(ROWS)).legends[0].texts
    )


def test_of_many_families_those_of_the_paper_have_colours_and_the_rest_is_grey():
    def accuracy(system):
        found = figure_of(80.0)
        found["published"]["system"] = system
        return found

    rows = [row(f"net_{n}", 1 + n, 1 + n, f"family {n}", **accuracy(f"Net-{n} distilled")) for n in range(20)]
    rows += [row("cmt_x", 3, 30, "CMT", of_paper=True, **accuracy("CMT-X"))]
    rows += [row("deit_x", 3, 40, "DeiT", of_paper=True, **accuracy("DeiT-X"))]
    figure = latency_figure({**record(rows), "runtime": "best"})
    (axes,) = figure.axes
    said = [text.get_text() for text in figure.legends[0].texts]
    assert said[:3] == ["CMT", "DeiT", "other networks"]
    assert len({tuple(points.get_facecolor()[0]) for points in axes.collections}) == 3
    names = {text.get_text() for text in axes.texts}
    assert {"Net-0*", "CMT-X", "DeiT-X"} <= names
    assert "* learned from a larger network" in figure.get_suptitle()
    assert "each in its fastest runtime" in axes.get_xlabel()


def test_trained_accuracies_have_other_markers_and_bars():
    rows = [row("a", 1, 1, **figure_of(60, "trained", 55, 65)), row("b", 2, 2, **figure_of(70, "trained"))]
    figure = comparison_figure(record(rows, "trained"))
    axes = figure.axes[0]
    assert [list(line.get_ydata()) for line in axes.lines] == [[55, 65]]
    circle = comparison_figure(record(ROWS)).axes[0].collections[0].get_paths()[0]
    assert axes.collections[0].get_paths()[0].vertices.shape != circle.vertices.shape
    assert axes.get_ylabel() == "trained top-1 (%)"
    assert "trained here" in " ".join(text.get_text() for text in figure.legends[0].texts)


def test_without_any_accuracy_costs_are_drawn_and_it_is_said(tmp_path):
    text = drawn(write_comparison_figures(record([row("a", 1, 1), row("b", 9, 2)], None), tmp_path)[0])
    assert "no accuracy is known" in text
    assert "parameters (M)" in text
    assert "Pareto" not in text


def test_nothing_is_drawn_where_nothing_was_measured(tmp_path):
    assert write_comparison_figures(record([ROWS[-1]], None), tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_the_table_has_a_row_for_every_model(tmp_path):
    with write_comparison_csv(record(ROWS), tmp_path).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [one["model"] for one in rows] == [one["model"] for one in ROWS]
    assert rows[1]["latency_ms"] == "9.0"
    assert (rows[1]["front_gmacs"], rows[1]["front_latency"]) == ("1", "0")
    assert rows[1]["published_source"] == "a paper"
    assert (rows[4]["failure"], rows[4]["latency_ms"]) == ("it fell", "")


@pytest.mark.parametrize("spread", [1.0, 0.2])
def test_names_cover_neither_each_other_nor_a_point(spread):
    figure = Figure(figsize=(7, 5))
    axes = figure.add_subplot()
    points = [(0.5 + spread * dx, 0.5 + spread * dy) for dx, dy in [(0, 0), (0.12, 0.02), (0.2, -0.1), (-0.2, 0.1)]]
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    label_points(figure, axes, points, ["a_model_of_ours", "another_model", "third_one", "small_patch16_224"])
    renderer = FigureCanvasAgg(figure).get_renderer()
    names = [text for text in axes.texts if text.get_text()]
    boxes = [text.get_window_extent(renderer) for text in names]
    assert len(boxes) == 4
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])
        assert not any(box.contains(*axes.transData.transform(point)) for point in points)
        assert axes.bbox.x0 <= box.x0
        assert box.x1 <= axes.bbox.x1
