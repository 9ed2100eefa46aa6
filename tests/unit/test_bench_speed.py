"""Speed: percentiles, ratios, limits and the roofline's numbers on known samples; processes that take turns."""

import ast
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import cmtvision
from cmtvision.artefact.card import Card, ExportBlock
from cmtvision.artefact.runtime_openvino import capabilities
from cmtvision.artefact.runtimes import openvino_core
from cmtvision.bench import turns
from cmtvision.bench.activation_need import activation_need
from cmtvision.bench.cells import Samples, Work, limit_facts, percentile, times_as_fast, timing_facts
from cmtvision.bench.forms import Form, check_options, find_forms, find_targets
from cmtvision.bench.limits import _tried, finalists, in_words, measure_limits, raise_limits, summarise
from cmtvision.bench.measure import timed_passes
from cmtvision.bench.products import Candidate, Sizes, candidates, parse, sizes_for
from cmtvision.bench.speed import _groups, measure_speed
from cmtvision.bench.turns import Crew, FormError
from cmtvision.cli.bench_table import show_speed
from cmtvision.data import Preprocess
from cmtvision.errors import CheckpointError, ConfigError
from cmtvision.report.roofline import draw_roofline

WORK = Work(input_size=(3, 4, 4), parameters=1000, macs=50_000, activations=2000)
SMALL = Sizes(products=[(16, 32, 48), (64, 64, 64)], graphs=[(16, 32, 48)], maps=[(1, 16, 8, 32, 3)], memory=2**16,
              caches=[2**12])  # fmt: skip
FP32, COPY = "fp32 torch.mm 32x32x32", "copy copy 4096"
LITTLE = {"rounds": 1, "seconds": 0.005, "sizes": SMALL}


def write_card(folder, side=48, **arguments):
    """An export's card in a folder, and an empty file of it: enough to find it."""
    block = ExportBlock("onnx", "model.onnx", {"model.onnx": ""}, "int8", (side, side))
    preprocess = Preprocess((side, side), 1.0, "bicubic", (0.5,) * 3, (0.5,) * 3)
    card = Card("cmt_nano", arguments, ["a", "b"], preprocess, export=block).to_dict()
    folder.mkdir(exist_ok=True)
    (folder / "model.json").write_text(json.dumps(card))
    (folder / "model.onnx").touch()
    return card


class KnownCrew:
    """Processes that answer at once: a form takes 0.1 s; of the machine's limits they know what they are given."""

    def __init__(self, limits=None):
        self._limits, self.started, self.left = limits, 0, []

    def __enter__(self):
        return self

    def __exit__(self, *error):
        assert self.left == []

    def start(self):
        self.started += 1
        self.left.append(KnownWorker(self._limits))
        return self.left[-1]

    def dismiss(self, worker):
        self.left.remove(worker)


class KnownWorker:
    ended = False

    def __init__(self, limits):
        self._limits = limits

    def ask(self, question, *arguments):
        if question == "limits":
            if not self._limits:
                raise FormError("its process was killed")
            return self._limits.pop(0)
        facts = {"first_pass_seconds": 0.1, "memory_bytes": None, "activation_bytes": None}
        return {"open": {"open_seconds": 0.1, "note": None}, "warm_up": facts, "turn": [0.1] * 3}[question]


@pytest.mark.parametrize("percent", [0, 50, 95, 99, 100])
def test_percentiles_are_those_of_numpy(percent):
    values = list(np.random.default_rng(0).exponential(size=137))
    assert percentile(values, percent) == pytest.approx(np.percentile(values, percent), rel=1e-12)


def test_percentiles_that_too_few_passes_cannot_tell_are_none():
    few = Samples([[0.2, 0.1], [0.4]])
    assert few.latency() == {"p50": 0.2, "p95": None, "p99": None, "min": 0.1, "max": 0.4}
    some = Samples([[0.001 * n for n in range(1, 21)]]).latency()
    assert some["p95"] == pytest.approx(0.01905)
    assert some["p99"] is None
    many = Samples([[0.001 * n for n in range(1, 102)]]).latency()
    assert many["p99"] == pytest.approx(0.100)


def test_rates_are_of_rounds_and_a_ratio_is_of_their_medians():
    samples = Samples([[0.1, 0.3], [0.1, 0.1], [0.5, 0.5]])
    facts = timing_facts(samples, batch=4)
    assert samples.rates(4) == pytest.approx([20, 40, 8])
    assert facts["images_per_second"] == pytest.approx({"median": 20, "min": 8, "max": 40})
    assert facts["passes"] == 6
    assert [one["median_seconds"] for one in facts["rounds"]] == pytest.approx([0.2, 0.1, 0.5])
    ratio = times_as_fast([20, 40, 8], [10, 10, 8])
    assert ratio == pytest.approx({"median": 2.0, "min": 1.0, "max": 4.0})


def test_the_numbers_of_the_roofline():
    # a pass of 2 images: weights 1000 * 4, activations 2 * 2000 * 4 each, image 48 * 4 each
    assert WORK.bytes_moved(2, "fp32") == 4000 + 2 * (16_000 + 192)
    assert WORK.bytes_moved(2, "bf16") == 2000 + 2 * (8000 + 192)
    assert WORK.bytes_moved(2, "amp") == 4000 + 2 * (8000 + 192)  # weights stay in float32
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


def test_a_limit_is_that_of_the_best_library_and_shape_by_its_median():
    one, other = "fp32 torch.mm 32x32x32", "fp32 oneDNN linear 16x64x8"
    rounds = [{one: 10.0, other: 30.0, "copy read 64": 5.0}, {one: 21.0, other: 1.0, "copy read 64": 7.0}]
    rounds.append({one: 22.0, other: 2.0, "copy read 64": 6.0})
    assert summarise(rounds) == {
        "copy": {"median": 6.0, "min": 5.0, "max": 7.0, "library": "read", "shape": [64]},
        "fp32": {"median": 21.0, "min": 10.0, "max": 22.0, "library": "torch.mm", "shape": [32, 32, 32]},
    }
    rounds.append({other: 40.0})  # a round more, of which the former best is no part
    rounds.append({other: 50.0})
    assert summarise(rounds)["fp32"]["library"] == "oneDNN linear"


def test_a_type_that_is_computed_in_a_wider_one_has_its_limit():
    rounds = [{"fp32 torch.mm 8x8x8": 20.0, "bf16 torch.mm 8x8x8": 3.0, "int8 OpenVINO 8x8x8": 60.0}]
    found = summarise(rounds)
    assert found["bf16"] == {**found["fp32"], "computed_in": "fp32"}
    assert found["int8"]["median"] == 60
    assert "computed_in" not in found["fp32"]
    assert in_words("bf16", {**found["bf16"], "median": 2e9}) == "2 GFLOP/s (torch.mm, 8 x 8 x 8, in fp32)"


def test_what_a_network_reached_raises_the_limit_and_is_said():
    limits = {"fp32": {"median": 2e9, "min": 1e9, "max": 3e9, "library": "torch.mm", "shape": [8, 8, 8]},
              "bf16": {"median": 3e9, "min": 3e9, "max": 3e9, "library": "torch.mm", "shape": [4, 4, 4]}}  # fmt: skip
    net = {"median": 4e9, "min": 3.5e9, "max": 5e9}
    reached = [("fp32", {**net, "median": 1.9e9}, "slow"), ("fp32", net, "cmt_s fused fp32, batch 1"),
               ("fp32", {**net, "median": 3e9}, "between"), ("int8", net, "has no limit")]  # fmt: skip
    found, said = raise_limits(limits, reached)
    assert found["fp32"] == {**net, "network": "cmt_s fused fp32, batch 1", "measured": limits["fp32"]}
    assert found["bf16"] == {**found["fp32"], "computed_in": "fp32"}  # a wider type's products are the limit here
    assert set(found) == {"fp32", "bf16"}
    assert said == ["fp32: raised from 2 GFLOP/s (torch.mm, 8 x 8 x 8) to what a network reached, 4 GFLOP/s "
                    "(cmt_s fused fp32, batch 1)"]  # fmt: skip
    assert raise_limits(limits, reached[:1]) == (limits, [])


def test_limits_of_older_records_can_be_said():
    assert in_words("fp32", {"median": 379e9, "side": 2048}) == "379 GFLOP/s (torch.mm, side 2048)"
    assert in_words("copy", {"median": 25.84e9}) == "25.8 GB/s"
    assert in_words("cache", {"median": 9e10, "library": "read", "shape": [2**19]}) == "90.0 GB/s (read of 0.5 MB)"


def test_what_is_near_the_fastest_is_measured_further():
    assert finalists({"a": 89.0, "b": 100.0, "c": 91.0, "d": 5.0}) == ["b", "c"]
    assert finalists({"a": 99.0, "b": 100.0, "c": 98.0, "d": 97.0}) == ["b", "a", "c"]
    assert finalists({}) == []


@pytest.mark.parametrize("kind", ["fp32", "bf16", "int8"])
def test_each_library_computes_the_product_that_is_counted(kind):
    """Every candidate runs, and its FLOPs are those of its output: rows x columns x length of a dot product."""
    for one in candidates(kind, "cpu", SMALL):
        assert parse(one.name) == (kind, one.library, list(one.shape))
        M, K, N = one.shape
        if one.library == "ONNX Runtime" and kind == "bf16":
            continue  # it has none on a processor
        if one.library == "OpenVINO" and kind not in capabilities(openvino_core(), "CPU"):
            with pytest.raises(ConfigError, match=f"no {kind} arithmetic"):
                one.open()
            continue
        out = one.open()()
        found = next(iter(out.values())).shape if one.library == "OpenVINO" else np.shape(out)
        found = found[1:] if one.library == "ONNX Runtime" else found
        if "conv" in one.library:
            assert out.numel() == M * N
            assert out.is_contiguous(memory_format=torch.channels_last)
        else:
            assert tuple(found) == ((M, K) if one.library == "OpenVINO" else (M, N))
        products = 4 if one.library == "OpenVINO" else 1
        assert one.work == 2 * M * K * N * products
    libraries = {one.library for one in candidates(kind, "cpu", SMALL)}
    assert libraries >= {"torch.mm", "oneDNN linear", "OpenVINO", "ONNX Runtime"}
    assert ("PyTorch conv 3x3" in libraries) == (kind != "int8")


def test_a_first_round_tries_all_and_later_ones_measure_what_was_fastest(monkeypatch):
    speed = {"fp32 slow 8x8x8": 0.5, "fp32 fast 8x8x8": 2.0, "fp32 near 8x8x8": 1.875, "fp32 lacking 8x8x8": 0}
    opened, asked = [], []

    def known(kind, device, sizes):
        def open_it(name):
            if not speed[name]:
                raise RuntimeError("no such kernel here")
            opened.append(name)
            return lambda: name

        for name in speed:
            yield Candidate(kind, name.split()[1], (8, 8, 8), 1, lambda name=name: open_it(name))

    def passes(step, device, seconds, at_least):
        asked.append((step(), at_least))
        return [1 / speed[step()]] * at_least

    monkeypatch.setattr("cmtvision.bench.limits.candidates", known)
    monkeypatch.setattr("cmtvision.bench.limits.timed_passes", passes)
    kept = {}
    first = measure_limits(["fp32"], "cpu", 1.0, SMALL, None, kept)
    assert first == pytest.approx({"fp32 fast 8x8x8": 2.0, "fp32 near 8x8x8": 1.875})
    assert set(opened[:3]) == set(speed) - {"fp32 lacking 8x8x8"}
    assert set(kept) == set(first)  # what is slow is not held in memory
    opened.clear(), asked.clear()
    assert measure_limits(["fp32"], "cpu", 1.0, SMALL, sorted(first), kept) == first
    assert opened == []
    assert asked == [(name, 3) for name in first]
    assert measure_limits(["fp32"], "cpu", 1.0, SMALL, ["fp32 near 8x8x8"]).keys() == {
        "fp32 near 8x8x8"
    }  # a new process


def test_a_slow_library_is_not_tried_in_larger_shapes(monkeypatch):
    tried = []

    def known(kind, device, sizes):
        for library, rate in (("slow", 10), ("fast", 1000)):
            for edge in (2, 4, 8):
                name = (library, edge)
                yield Candidate(kind, library, (edge,) * 3, edge**3, lambda at=(name, rate): lambda: at)

    def passes(step, device, seconds, at_least):
        (name, rate) = step()
        tried.append(name)
        return [name[1] ** 3 / rate]

    monkeypatch.setattr("cmtvision.bench.limits.candidates", known)
    monkeypatch.setattr("cmtvision.bench.limits.timed_passes", passes)
    measure_limits(["fp32"], "cpu", 1.0, SMALL)
    assert [name for name in tried if name[0] == "slow"] == [("slow", 2)]  # 4 ** 3 / 10 are more than a second
    assert [name for name in tried if name[0] == "fast"][:3] == [("fast", 2), ("fast", 4), ("fast", 8)]


def test_limits_count_two_flops_a_multiply_add_and_what_a_copy_and_a_sum_move(monkeypatch):
    monkeypatch.setattr(
        "cmtvision.bench.limits.timed_passes", lambda step, device, seconds, least: [step() is None, 2.0, 2.0]
    )
    names = ["fp32 torch.mm 16x32x48", "copy copy 65536", "copy read 65536", "cache copy 4096"]
    found = measure_limits(["fp32", "copy", "cache"], "cpu", 0.01, SMALL, names)
    assert found == {
        "fp32 torch.mm 16x32x48": 16 * 32 * 48, "copy copy 65536": 65536, "copy read 65536": 32768,
        "cache copy 4096": 4096,
    }  # fmt: skip


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")
def test_the_limit_is_at_least_what_the_packed_product_of_the_same_process_reaches():
    """The fault: torch.mm alone was the limit, and networks whose products are oneDNN's packed ones stood above it."""
    rates = _tried(candidates("fp32", "cpu", SMALL), "cpu", 0.02)
    libraries = [parse(name)[1] for name in rates]
    assert set(libraries) >= {"torch.mm", "oneDNN linear", "PyTorch conv 3x3"}
    best = finalists(rates)[0]
    assert all(rates[best] >= rate for rate in rates.values())
    with_all = {one.library for one in candidates("fp32", "cpu", sizes_for("cpu"))}
    assert with_all == {"torch.mm", "oneDNN linear", "PyTorch conv 1x1", "PyTorch conv 3x3", "ONNX Runtime", "OpenVINO"}
    assert any(M > 4 * K for M, K, _ in sizes_for("cpu").products)  # tall, as maps are
    assert {one.library for one in candidates("fp32", "cuda:0", sizes_for("cuda:0"))} == {
        "torch.mm", "PyTorch conv 1x1", "PyTorch conv 3x3"
    }  # fmt: skip


def test_the_first_pass_is_not_counted_and_a_turn_has_its_least():
    calls = []
    assert len(timed_passes(lambda: calls.append(0), "cpu", 0.0, 4)) == 4
    assert len(calls) == 5


def test_what_activations_need_is_what_is_read_later_and_what_is_made():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1))
    assert activation_need(net, (3, 16, 16)) == 4 * 16 * 16 * (8 + 8)  # the image is read no more

    class Residual(nn.Module):
        def forward(self, x):
            return x + x.relu().flatten(1).view_as(x).exp()  # a view is no second tensor

    assert activation_need(Residual(), (2, 8, 8), batch=3) == 4 * 3 * 2 * 8 * 8 * 3

    class Attention(nn.Module):
        def forward(self, x):
            q = x.flatten(2).transpose(1, 2)[:, None]
            return torch.nn.functional.scaled_dot_product_attention(q, q, q)

    assert activation_need(Attention(), (2, 32, 32)) == 2 * 4 * 2 * 32 * 32  # no 1024 x 1024 scores
    with pytest.raises(ConfigError, match="Sequential on"):
        activation_need(net, (4, 16, 16))


@pytest.mark.parametrize(
    ("runtimes", "precisions", "device", "said"),
    [
        (["openvin"], [], "cpu", "did you mean 'openvino'"),
        (["tensorrt9000"], [], "cpu", "expected one of eager"),
        ([], ["fp23"], "cpu", "did you mean"),
        ([], ["int8"], "cpu", "cmtvision quantize"),
        (["cuda-graph"], [], "cpu", "needs an NVIDIA GPU"),
        (["openvino"], [], "cuda", "add --device cpu"),
        (["onnx"], ["amp"], "cpu", "autocast is PyTorch's own"),
    ],
)
def test_options_that_cannot_be(runtimes, precisions, device, said):
    with pytest.raises(ConfigError, match=said):
        check_options(runtimes, precisions, device)


def test_a_runtime_that_is_not_installed_names_its_extra(monkeypatch):
    monkeypatch.setattr("cmtvision.bench.forms.find_spec", lambda name: None if name == "openvino" else object())
    with pytest.raises(ConfigError, match=r"pip install 'cmtvision\[openvino\]'"):
        check_options(["openvino"], [], "cpu")
    forms = find_forms(find_targets(["cmt_nano"]))
    assert [form.runtime for form in forms] == ["eager", "fused", "torch", "onnx"]


def test_forms_of_names_and_exports(tmp_path):
    write_card(tmp_path)
    (export,) = find_targets([str(tmp_path / "model.onnx")])
    assert find_targets([str(tmp_path), str(tmp_path / "model.json")])[0].export == tmp_path
    forms = find_forms([*find_targets(["cmt_nano"]), export], runtimes=["fused", "eager"], precisions=["fp32", "amp"])
    assert [(form.runtime, form.precision) for form in forms] == [
        ("eager", "fp32"), ("fused", "fp32"), ("eager", "amp"), ("fused", "amp"), ("onnx", "int8"),
    ]  # fmt: skip
    assert export.work().input_size == (3, 48, 48)
    with pytest.raises(ConfigError, match="--precision: fixed in an export"):
        find_forms([export], precisions=["bf16"])
    (square,) = find_forms([export], img_size=48)  # its own
    assert square.img_size is None
    with pytest.raises(ConfigError, match=r"--img-size: .* is an export for images of 48 x 48 px"):
        find_forms([*find_targets(["cmt_nano"]), export], runtimes=["eager"], img_size=64)
    with pytest.raises(CheckpointError):
        find_targets([str(tmp_path / "gone" / "model.onnx")])
    (tmp_path / "other.onnx").touch()
    with pytest.raises(CheckpointError, match=r"other.onnx: not of the model beside it"):
        find_targets([str(tmp_path / "other.onnx")])


@pytest.mark.parametrize("lost", ["export", "arguments", "runtime", "file"])
def test_a_card_that_is_not_whole_is_said_before_anything_is_measured(lost, tmp_path):
    card = write_card(tmp_path)
    del (card["export"] if lost in card["export"] else card)[lost]
    (tmp_path / "model.json").write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match=f"model.json: '{lost}' is missing"):
        find_targets(["cmt_nano", str(tmp_path)])


def test_a_target_that_cannot_be_costed_takes_no_other_with_it(tmp_path):
    write_card(tmp_path, no_such_option=1)
    forms = find_forms(find_targets([str(tmp_path), "cmt_nano"]), runtimes=["eager"])
    broken, sound = measure_speed(forms, batches=[1], rounds=1, crew=KnownCrew([{FP32: 1e9, COPY: 1e9}]))["cells"]
    assert "no_such_option" in broken["failure"]
    assert sound["images_per_second"]["median"] == pytest.approx(10)


@pytest.mark.parametrize("limits", [[], [{FP32: 1e9, COPY: 1e9}], [{FP32: 1e9}], [{COPY: 1e9}]])
def test_a_limit_that_cannot_be_measured_takes_no_time_with_it(limits, capsys):
    known = {name.split()[0] for one in limits for name in one}
    forms = find_forms(find_targets(["cmt_nano"]), runtimes=["eager"])
    found = measure_speed(forms, batches=[1], rounds=2, crew=KnownCrew(list(limits)))
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


def test_no_cell_exceeds_a_limit_and_the_first_round_names_what_is_measured_further():
    asked = []

    class Noted(KnownCrew):
        def start(self):
            worker = super().start()
            ask = worker.ask
            worker.ask = lambda *words: (words[0] == "limits" and asked.append(words[1:]), ask(*words))[1]
            return worker

    forms = find_forms(find_targets(["cmt_nano"]), runtimes=["eager", "fused"])
    slow = [{FP32: 1e6, "bf16 torch.mm 8x8x8": 2e6, COPY: 1e3, "cache copy 4096": 2e3}] * 3
    found = measure_speed(forms, batches=[1, 2], rounds=3, crew=Noted(slow.copy()))
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
    threads, kinds, seconds, sizes, only = asked[0]
    assert (threads, kinds, seconds, sizes, only) == (1, ["copy", "cache", "fp32", "bf16"], 0.3, None, None)
    assert {tuple(words[-1]) for words in asked[1:]} == {tuple(sorted(slow[0]))}
    asked.clear()
    measure_speed(forms[:1], batches=[1], rounds=1, seconds=0.01, crew=Noted(slow[:1]))
    assert asked[0][2] == 0.01  # a short turn has short limits


def test_processes_that_do_not_start_for_limits_are_a_note():
    class Two(KnownCrew):
        def start(self):
            if self.started == 1:
                raise FormError("no room")
            return super().start()

    found = measure_speed(find_forms(find_targets(["cmt_nano"]), runtimes=["eager"]), batches=[1], rounds=1, crew=Two())
    assert found["notes"] == ["limits, 1 thread, left out: no room"]
    assert found["cells"][0]["failure"] is None


def test_an_array_that_does_not_fit_is_no_copy_limit():
    too_large = replace(SMALL, memory=2**60)
    found = measure_limits(["copy", "fp32"], "cpu", 0.001, too_large)
    assert {parse(name)[0] for name in found} == {"fp32"}


def test_openvino_and_nncf_are_imported_where_their_telemetry_is_turned_off():
    root = Path(cmtvision.__file__).parent
    places = set()
    for file in root.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            here = file.relative_to(root).as_posix()
            places |= {(here, name) for name in names if name.partition(".")[0] in ("openvino", "nncf")}
    assert places == {
        ("artefact/runtimes.py", "openvino"), ("deploy/quantize_openvino.py", "nncf"),
        ("deploy/quantize_openvino.py", "openvino._offline_transformations"),  # of an OpenVINO that is in memory
    }  # fmt: skip


def test_a_record_names_the_command_that_was_run(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
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


def test_the_readme_says_where_records_were_made_and_what_their_limits_are(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
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


def test_targets_stay_whole_in_groups_that_fit(monkeypatch):
    forms = find_forms(find_targets(["cmt_nano", "cmt_ti"]), runtimes=["eager", "fused"])
    names = lambda: [[form.target.name for form, _ in group] for group in _groups(forms, "cpu", 1)]  # noqa: E731
    monkeypatch.setattr("cmtvision.bench.speed.free_bytes", lambda device: 10**12)
    assert names() == [["cmt_nano", "cmt_nano", "cmt_ti", "cmt_ti"]]
    monkeypatch.setattr("cmtvision.bench.speed.free_bytes", lambda device: 3 * 10**8)
    assert names() == [["cmt_nano", "cmt_nano"], ["cmt_ti", "cmt_ti"]]


@pytest.mark.slow
def test_every_cell_is_a_row_and_what_fails_says_why():
    nano = find_targets(["cmt_nano", "resnet10t"])
    forms = find_forms(nano, runtimes=["eager", "fused"], img_size=64)
    found = measure_speed(forms, batches=[2, 1], **LITTLE)
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


def test_out_of_time_is_said():
    forms = find_forms(find_targets(["cmt_nano"]), runtimes=["eager"])
    found = measure_speed(forms, batches=[1], until=0.0, **LITTLE)
    assert found["cells"][0]["failure"] == "left out: no time left"
    json.dumps(found)  # limits were measured all the same


@pytest.mark.skipif(sys.platform != "linux", reason="forks and signals")
def test_a_process_that_dies_is_reported_and_none_is_left():
    with Crew() as crew:
        first, second = crew.start(), crew.start()
        (target,) = find_targets(["cmt_nano"])
        second.ask("open", Form(target, "eager", "fp32", 1), (3, 32, 32))
        with pytest.raises(FormError, match="no_such_question"):
            second.ask("no_such_question")
        os.kill(first.pid, signal.SIGKILL)
        with pytest.raises(FormError, match="killed, as happens where memory runs out"):
            first.ask("turn", 1, 0.0, 1)
        assert second.ask("warm_up", 1)["first_pass_seconds"] > 0  # others go on
        pid = second.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_process_that_does_not_start_says_its_last_words():
    code = "import sys; print('no torch here', file=sys.stderr); sys.exit(3)"
    with Crew(command=[sys.executable, "-c", code]) as crew, pytest.raises(FormError, match="code 3: no torch here"):
        crew.start()


@pytest.mark.timeout(60)
def test_a_process_that_dies_before_it_calls_is_not_awaited():
    code = "import sys; print('ready', flush=True); sys.stdin.readline(); sys.exit('gone')"
    with Crew(command=[sys.executable, "-c", code]) as crew:
        for _ in range(2):  # what waited for the first one's call is no trap for the second
            with pytest.raises(FormError, match="code 1: gone"):
                crew.start()


@pytest.mark.timeout(60)
def test_a_process_that_never_calls_is_given_up(monkeypatch):
    monkeypatch.setattr(turns, "CALL_PATIENCE", 0.2)
    code = "import sys; print('ready', flush=True); sys.stdin.read()"
    with Crew(command=[sys.executable, "-c", code]) as crew, pytest.raises(FormError, match="did not call within"):
        crew.start()
