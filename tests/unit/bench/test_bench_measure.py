"""Targets take turns; what cannot be measured has a reason, and the others go on."""

import json

from bench_workers import FP32, KnownWorkers, measure_speed
from cards import write_export_card

from cmtvision.bench.measure import _groups, measure
from cmtvision.bench.runtimes import in_runtimes
from cmtvision.bench.target import Target, find_targets
from cmtvision.bench.workers import WorkerError


def test_targets_are_timed_in_interleaved_rounds():
    workers = KnownWorkers()
    measure([Target(name, name) for name in ("cmt_nano", "vit_nano")], batches=[4, 1], rounds=3, workers=workers)
    turns = [(name, *words[:1]) for name, question, *words in workers.asked if question == "turn"]
    assert turns == [("cmt_nano", 1), ("cmt_nano", 4), ("vit_nano", 1), ("vit_nano", 4)] * 3
    assert workers.started == 2


def test_what_fails_in_a_turn_is_asked_no_more():
    workers = KnownWorkers(failures={("cmt_nano", "turn", 4): "no memory"})
    targets = [Target(name, name) for name in ("cmt_nano", "vit_nano")]
    first, second = measure(targets, batches=[1, 4], rounds=3, workers=workers).targets
    assert first.failures == {4: "no memory"}
    assert len(first.samples[1].rounds) == len(second.samples[4].rounds) == 3
    assert sum(words[:3] == ("cmt_nano", "turn", 4) for words in workers.asked) == 1


def test_a_network_that_cannot_fit_is_not_built(monkeypatch):
    monkeypatch.setattr("cmtvision.bench.measure.free_bytes", lambda device: 1_000_000)
    workers = KnownWorkers()
    (found,) = measure([Target("cmt_nano", "cmt_nano")], batches=[1], workers=workers).targets
    assert found.failures == {1: "does not fit: weights of 5 MB, 1 MB are free"}
    assert found.work.macs == 6_035_904
    assert workers.started == 0


def test_a_target_that_cannot_be_costed_takes_no_other_with_it(tmp_path):
    write_export_card(tmp_path, no_such_option=1)
    targets = in_runtimes(find_targets([str(tmp_path), "cmt_nano"]), runtimes=["eager"])
    broken, sound = measure(targets, batches=[1], rounds=1, workers=KnownWorkers()).targets
    assert "no_such_option" in broken.failures[1]
    assert sound.samples[1].rounds == [[0.1] * 3]


def test_processes_that_do_not_start_for_limits_are_a_note():
    class Two(KnownWorkers):
        def start(self):
            if self.started == 1:
                raise WorkerError("no room")
            return super().start()

    found = measure(
        in_runtimes(find_targets(["cmt_nano"]), runtimes=["eager"]),
        batches=[1],
        rounds=1,
        workers=Two(),
        limits=["fp32"],
    )
    assert found.notes == ["limits, 1 thread, left out: no room"]
    assert found.targets[0].failures == {}


def test_models_stay_whole_in_groups_that_fit(monkeypatch):
    targets = in_runtimes(find_targets(["cmt_nano", "cmt_ti"]), runtimes=["eager", "fused"])
    names = lambda: [[target.name for target, _ in group] for group in _groups(targets, "cpu", 1)]  # noqa: E731
    monkeypatch.setattr("cmtvision.bench.measure.free_bytes", lambda device: 10**12)
    assert names() == [["cmt_nano", "cmt_nano", "cmt_ti", "cmt_ti"]]
    monkeypatch.setattr("cmtvision.bench.measure.free_bytes", lambda device: 3 * 10**8)
    assert names() == [["cmt_nano", "cmt_nano"], ["cmt_ti", "cmt_ti"]]


def test_out_of_time_is_said():
    targets = in_runtimes(find_targets(["cmt_nano"]), runtimes=["eager"])
    found = measure_speed(targets, batches=[1], until=0.0, workers=KnownWorkers([{FP32: 1e9}]), rounds=1)
    assert found["cells"][0]["failure"] == "left out: no time left"
    json.dumps(found)  # limits were measured all the same
