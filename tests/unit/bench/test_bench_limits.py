"""The machine's limits: what is tried, what is kept, what a network may raise."""

from dataclasses import replace

import pytest
import torch
from bench_workers import SMALL

from cmtvision.bench.limits import _tried, finalists, in_words, measure_limits, raise_limits, summarise
from cmtvision.bench.products import Candidate, candidates, parse, sizes_for


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


def test_an_array_that_does_not_fit_is_no_copy_limit():
    too_large = replace(SMALL, memory=2**60)
    found = measure_limits(["copy", "fp32"], "cpu", 0.001, too_large)
    assert {parse(name)[0] for name in found} == {"fp32"}
