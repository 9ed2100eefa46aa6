"""The roofline: a point for each cell where it belongs, a roof for each precision; the table as CSV."""

import csv

import pytest
from PIL import Image

from cmtvision.report.roofline import draw_roofline, write_roofline, write_speed_csv


def row(runtime, precision, batch, rate, threads=2, **more):
    return {
        "target": "cmt_nano", "architecture": "cmt_nano", "runtime": runtime, "precision": precision,
        "threads": threads, "batch": batch, "input_size": [3, 32, 48], "gmacs": 0.5, "failure": None, "passes": 30,
        "latency_seconds": {"p50": 0.002, "p95": 0.004, "p99": None, "min": 0.001, "max": 0.005},
        "images_per_second": {"median": rate, "min": rate / 2, "max": 2 * rate},
        "x_eager": {"median": 1.5, "min": 1.0, "max": 2.0}, "macs_per_second": 5e8 * rate,
        "flops_per_second": 1e9 * rate, "intensity": 10.0 * batch, "fraction_of_limit": 0.1, "fraction_of_roof": 0.2,
        "memory_bytes": 5_000_000, "activation_bytes": None, "open_seconds": 1.0, "first_pass_seconds": 0.1,
        "note": None, **more,
    }  # fmt: skip


@pytest.fixture
def record():
    def spread(value):
        return {"median": value, "min": value, "max": value}

    cells = [row("eager", "fp32", 1, 20), row("fused", "fp32", 8, 60), row("openvino", "bf16", 1, 200, threads=1)]
    cells.append({**row("onnx", "fp32", 1, 1), "failure": "does not fit"})
    for key in ("passes", "latency_seconds", "images_per_second", "x_eager", "macs_per_second", "intensity", "note"):
        del cells[-1][key]  # a row that failed was never measured
    limits = [
        {"threads": count, "fp32": spread(1e11 * count), "bf16": spread(1e12), "copy": spread(1e10)} for count in (1, 2)
    ]
    return {"device": "cpu", "date": "2026-01-01", "hardware": {"processor": "a CPU"}, "limits": limits, "cells": cells}


def test_points_stand_at_intensity_and_rate_under_their_roofs(record):
    one, two = draw_roofline(record).axes
    offsets = [tuple(found.get_offsets()[0]) for found in two.collections]
    assert offsets == [(10.0, 20.0), (80.0, 60.0)]
    assert [tuple(found.get_offsets()[0]) for found in one.collections] == [(10.0, 200.0)]
    slope, fp32, bf16 = two.lines
    assert slope.get_ydata()[1] / slope.get_xdata()[1] == pytest.approx(10)  # GB/s
    assert (fp32.get_xdata()[0], fp32.get_ydata()[0]) == pytest.approx((20, 200))  # where slope and roof meet
    assert bf16.get_ydata()[0] == pytest.approx(1000)
    assert "memory 10.0 GB/s" in two.get_xlabel()
    for axes, texts in ((one, {"openvino b1"}), (two, {"eager b1", "fused b8"})):
        assert texts <= {text.get_text() for text in axes.texts}
        (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
        for found in axes.collections:
            x, y = found.get_offsets()[0]
            assert left < x < right
            assert low < y < high


def test_the_roof_begins_at_the_slope_of_the_caches(record):
    for row in record["limits"]:
        row["cache"] = {"median": 5e10, "min": 5e10, "max": 5e10}
    _, two = draw_roofline(record).axes
    caches, memory, fp32, _ = two.lines
    assert [line.get_ydata()[1] / line.get_xdata()[1] for line in (caches, memory)] == pytest.approx([50, 10])
    assert (fp32.get_xdata()[0], fp32.get_ydata()[0]) == pytest.approx((4, 200))  # where the higher slope meets it
    assert caches.get_linestyle() != memory.get_linestyle()
    assert two.get_xlim()[1] >= memory.get_xdata()[1]
    assert "caches 50.0 GB/s; slope: memory 10.0 GB/s" in two.get_xlabel()


def test_files(record, tmp_path):
    names = [path.name for path in write_roofline(record, tmp_path)]
    assert names == ["plot.svg", "plot.png"]
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.width > 1000
        assert len(picture.convert("L").getcolors()) > 50
    assert "FLOPs a byte" in (tmp_path / "plot.svg").read_text()
    before = (tmp_path / "plot.svg").read_bytes()
    write_roofline(record, tmp_path)
    assert (tmp_path / "plot.svg").read_bytes() == before


def test_nothing_is_drawn_of_nothing(record, tmp_path):
    record["cells"] = record["cells"][-1:]
    assert write_roofline(record, tmp_path) == []


def test_csv(record, tmp_path):
    with write_speed_csv(record, tmp_path).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [found["runtime"] for found in rows] == ["eager", "fused", "openvino", "onnx"]
    assert rows[0]["input_px"] == "32x48"
    assert float(rows[0]["p95_ms"]) == 4.0
    assert rows[0]["p99_ms"] == rows[0]["activation_mb"] == ""
    assert float(rows[1]["gmacs_per_second"]) == pytest.approx(30.0)
    assert float(rows[1]["images_per_second_max"]) == 120.0
    assert rows[3]["failure"] == "does not fit"
    assert rows[3]["p50_ms"] == ""
