"""The record of ``bench``: its figures on known samples, and who wrote it."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from bench_workers import COPY, FP32, SMALL, KnownWorkers, measure_speed

from cmtvision.bench.record import limit_facts, timing_facts
from cmtvision.bench.runtimes import in_runtimes
from cmtvision.bench.target import Work, find_targets
from cmtvision.bench.timing import Samples
from cmtvision.cli.bench_table import show_speed
from cmtvision.report.roofline import draw_roofline

WORK = Work(input_size=(3, 4, 4), parameters=900, values=1000, macs=50_000, activations=2000)


def test_what_was_timed():
    facts = timing_facts(Samples([[0.1, 0.3], [0.1, 0.1], [0.5, 0.5]]), batch=4)
    assert facts["images_per_second"] == pytest.approx({"median": 20, "min": 8, "max": 40})
    assert facts["passes"] == 6
    assert [one["median_seconds"] for one in facts["rounds"]] == pytest.approx([0.2, 0.1, 0.5])


def test_the_numbers_of_the_roofline():
    facts = limit_facts(10.0, WORK, 2, "fp32", {"fp32": 4e6, "bf16": 8e6, "copy": 5e4, "cache": 1e5})
    intensity = 2 * 50_000 * 2 / 36_384
    assert facts["macs_per_second"] == 500_000
    assert facts["flops_per_second"] == 1_000_000
    assert facts["intensity"] == pytest.approx(intensity)
    assert facts["fraction_of_limit"] == pytest.approx(0.25)
    assert facts["fraction_of_roof"] == pytest.approx(1e6 / (intensity * 1e5))  # the slope is the lower roof here
    only_memory = limit_facts(10.0, WORK, 2, "fp32", {"fp32": 4e6, "copy": 5e4})  # caches were not measured
    assert only_memory["fraction_of_roof"] == pytest.approx(2 * facts["fraction_of_roof"])
    assert limit_facts(10.0, WORK, 2, "amp", {"fp32": 4e6, "bf16": 8e6, "copy": 1e5})["fraction_of_limit"] == 0.125
    assert limit_facts(10.0, Work(), 2, "fp32", {"fp32": 4e6})["fraction_of_limit"] is None
    assert limit_facts(10.0, WORK, 2, "int8", {"fp32": 4e6})["fraction_of_limit"] is None  # no such limit was measured


@pytest.mark.parametrize("limits", [[], [{FP32: 1e9, COPY: 1e9}], [{FP32: 1e9}], [{COPY: 1e9}]])
def test_a_limit_that_cannot_be_measured_takes_no_time_with_it(limits, capsys):
    known = {name.split()[0] for one in limits for name in one}
    targets = in_runtimes(find_targets(["cmt_nano"]), runtimes=["eager"])
    found = measure_speed(targets, batches=[1], rounds=2, workers=KnownWorkers(list(limits)))
    (cell,) = found["cells"]
    assert len(cell["rounds"]) == 2
    assert (cell["fraction_of_limit"] is None) == ("fp32" not in known)
    assert (cell["fraction_of_roof"] is None) == (len(known) < 2)
    assert set(found["limits"][0]) == {"threads", *known}
    assert found["notes"] == [f"limits, 1 thread, left out from round {len(limits) + 1} on: its process was killed"]
    show_speed({**found, "device": "cpu"})
    assert ("limits, 1 thread: could not be measured" in capsys.readouterr().out) == (not known)
    (axes,) = draw_roofline({**found, "device": "cpu"}).axes
    assert len(axes.lines) == len(known)


@pytest.mark.slow
def test_no_cell_exceeds_a_limit_and_the_first_round_names_what_is_measured_further():
    targets = in_runtimes(find_targets(["cmt_nano"]), runtimes=["eager", "fused"])
    slow = [{FP32: 1e6, "bf16 torch.mm 8x8x8": 2e6, COPY: 1e3, "cache copy 4096": 2e3}] * 3
    workers = KnownWorkers(slow.copy())
    found = measure_speed(targets, batches=[1, 2], rounds=3, workers=workers)
    macs = 1e9 * found["cells"][0]["gmacs"]
    assert [cell["fraction_of_limit"] for cell in found["cells"]] == pytest.approx([0.5, 1, 0.5, 1])  # 10 passes/s each
    assert max(cell["fraction_of_roof"] for cell in found["cells"]) == pytest.approx(1)
    (limits,) = found["limits"]
    assert limits["fp32"]["median"] == pytest.approx(2 * macs * 20)
    assert limits["fp32"]["network"] == "cmt_nano eager fp32, batch 2"
    assert limits["fp32"]["measured"]["median"] == 1e6
    assert limits["bf16"]["computed_in"] == "fp32"
    assert [note.partition(": raised")[0] for note in found["notes"]] == [
        "limits, 1 thread, cache", "limits, 1 thread, fp32"
    ]  # fmt: skip
    first, *others = [words[2:] for words in workers.asked if words[1] == "limits"]
    assert first == (1, ["copy", "cache", "fp32", "bf16"], 0.3, None, None)
    assert {tuple(words[-1]) for words in others} == {tuple(sorted(slow[0]))}
    brief = KnownWorkers(slow[:1])
    measure_speed(targets[:1], batches=[1], rounds=1, seconds=0.01, workers=brief)
    assert brief.asked[-2][4] == 0.01  # a short turn has short limits


@pytest.mark.slow
def test_every_cell_is_a_row_and_what_fails_says_why():
    nano = find_targets(["cmt_nano", "resnet10t"])
    targets = in_runtimes(nano, runtimes=["eager", "fused"], img_size=64)
    found = measure_speed(targets, batches=[2, 1], rounds=1, seconds=0.005, sizes=SMALL)
    rows = {(row["target"], row["runtime"], row["batch"]): row for row in found["cells"]}
    assert list(rows) == [(t, r, b) for t in ("cmt_nano", "resnet10t") for r in ("eager", "fused") for b in (1, 2)]
    assert rows["resnet10t", "fused", 1]["failure"] == "fuse: ResNet is no CMT; other networks run as they are"
    assert rows["cmt_nano", "eager", 1]["x_eager"] == {"median": 1.0, "min": 1.0, "max": 1.0}
    for place in (("cmt_nano", "fused", 2), ("resnet10t", "eager", 1)):
        row = rows[place]
        assert row["failure"] is None
        assert row["input_size"] == [3, 64, 64]
        assert row["passes"] >= 3
        assert row["macs_per_second"] == pytest.approx(row["gmacs"] * 1e9 * row["images_per_second"]["median"])
    eager, fused = (rows["cmt_nano", runtime, 2]["images_per_second"]["median"] for runtime in ("eager", "fused"))
    assert rows["cmt_nano", "fused", 2]["x_eager"]["median"] == pytest.approx(fused / eager)
    (limits,) = found["limits"]
    assert set(limits) == {"threads", "fp32", "bf16", "copy", "cache"}
    assert all(row["fraction_of_limit"] <= 1 for row in rows.values() if row["failure"] is None)
    assert all(row["fraction_of_roof"] <= 1 + 1e-9 for row in rows.values() if row["failure"] is None)
    if sys.platform == "linux":
        # weights alone are more than this, and the process as a whole is far larger than the growth
        assert 4e6 < rows["cmt_nano", "eager", 1]["memory_bytes"] < 3e8


def test_a_record_names_the_command_that_was_run(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[3] / "benchmarks")
    import run_all

    written = {}
    monkeypatch.setattr(run_all, "speed", lambda *arguments: {"cells": []})
    monkeypatch.setattr(run_all, "write_record", lambda name, command, content: written.update({name: command}))
    for words in (["--quick"], ["--quick", "--out", "cpu", "--also", "an export"]):
        monkeypatch.setattr(sys, "argv", ["run_all.py", *words, "--minutes", "0"])
        run_all.main()
    assert written == {
        "speed-quick": "python benchmarks/run_all.py --quick --minutes 0",
        "speed-cpu": "python benchmarks/run_all.py --quick --out cpu --also 'an export' --minutes 0",
    }
    assert run_all.options([]).out == "cpu"


@pytest.mark.skipif(find_spec("triton") is None, reason="no Triton here")
def test_the_script_for_a_gpu_can_be_rehearsed_without_one():
    script = Path(__file__).parents[3] / "benchmarks" / "gpu.py"
    command = [sys.executable, script, "--rehearse", "--part", "kernels"]
    done = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=True
    )
    assert done.stdout.count("kernels ") == 6
    assert "wrote" not in done.stdout


def test_the_readme_says_where_records_were_made_and_what_their_limits_are(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[3] / "benchmarks")
    import tables

    hardware = {"processor": "A CPU", "cores": "2 usable of 2", "GPU": "none"}
    place = {"hardware": hardware, "versions": {"torch": "2.15.0"}, "date": "2026-11-26"}
    newer = {**place, "hardware": {**hardware, "kernels": "torch AVX512, oneDNN fp32"}}
    monkeypatch.setattr(tables, "record", lambda name: {"a": place, "b": newer, "c": place}[name])
    assert tables.measured("a", "b", "c").splitlines() == [
        "Measured on A CPU, 2 usable of 2 cores; torch 2.15.0; 2026-11-26 (`a`, `c`).",
        "Measured on A CPU (torch AVX512, oneDNN fp32), 2 usable of 2 cores; torch 2.15.0; 2026-11-26 (`b`).",
    ]
    known = {"median": 2e11, "library": "oneDNN linear", "shape": [8, 8, 8]}
    seen = {"median": 5e11, "network": "cmt_s fused bf16, batch 8", "measured": known}
    assert tables.limits_of({"limits": [{"threads": 2, "fp32": known, "bf16": seen, "copy": {"median": 1e9}}]}) == (
        "fp32 200 GFLOP/s (oneDNN linear, 8 x 8 x 8); bf16 500 GFLOP/s (cmt_s fused bf16, batch 8)"
    )
    assert tables.limits_of({"limits": [{"fp32": {"median": 1e11, "side": 64}}]}).endswith("shares may be too high")
