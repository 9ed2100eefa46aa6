"""Comparing models: what is compared, who stands on the front, whose turn it is, and what a bad model may not do."""

import itertools
import json
import sys
import textwrap
from dataclasses import replace

import pytest
import torch

from cmtvision.bench import compare, measure
from cmtvision.bench.compare import entries_to_train, family, measure_all, staying, with_training
from cmtvision.bench.comparison import Accuracy, Row, chosen_kind, in_order, row_record, with_fronts
from cmtvision.bench.pareto import pareto_front
from cmtvision.bench.probe import Probed, Prober
from cmtvision.bench.subjects import Subject, find_subjects
from cmtvision.bench.training import Entry, EntryResult, SeedRun
from cmtvision.errors import CheckpointError, ConfigError

TEN = (
    "cmt_nano", "vit_nano", "ceit_nano", "test_vit", "test_resnet", "test_convnext", "test_efficientnet",
    "mobilenetv3_small_050", "lcnet_035", "cmt_ladder_3_lpu_nano",
)  # fmt: skip


def accuracy(percent, kind="published", source="a paper"):
    return Accuracy(kind, percent, source)


def row(name, macs, latency=1.0, **facts):
    return Row(name, name, macs=macs, latency=(latency,), batch_seconds=(2 * latency,), **facts)


class KnownProber:
    """Stands in for the child process: what it would find is known."""

    def __init__(self, found):
        self.found = found

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def probe(self, subject, img_size=None):
        return self.found[subject.name]


class KeptProber(KnownProber):
    """A real one that goes on behind the end of a comparison."""

    def probe(self, subject, img_size=None):
        return self.found.probe(subject, img_size)


def runs(*names, **facts):
    found = Probed((3, 32, 32), 1, 10, 1, weight_bytes=100, memory_bytes_batch_1=150, memory_bytes=200)
    return KnownProber({name: replace(found, **facts.get(name, {})) for name in names})


def test_the_front_is_what_no_other_point_beats():
    torch.manual_seed(3)
    for drawn in torch.randint(0, 6, (40, 9, 2)).tolist():
        points = [tuple(point) for point in drawn]
        beaten = {
            i for i, j in itertools.permutations(range(len(points)), 2)
            if points[j][0] <= points[i][0] and points[j][1] >= points[i][1] and points[j] != points[i]
        }  # fmt: skip
        assert set(pareto_front(points)) == set(range(len(points))) - beaten
    assert pareto_front([]) == []


def test_rows_stand_by_multiply_adds_then_name_and_failed_ones_last():
    rows = [row("d", 7), row("z", 1, failure="no"), row("b", 7), row("c", 2), Row("a", "a", failure="no")]
    assert [one.model for one in in_order(rows)] == ["c", "b", "d", "a", "z"]


def test_fronts_leave_out_what_failed_and_what_has_no_accuracy():
    rows = [
        row("cheap", 1, 5.0, published=accuracy(70)),
        row("unknown", 0, 0.1),
        row("failed", 0, 0.1, published=accuracy(99), failure="no"),
        row("beaten", 2, 6.0, published=accuracy(69)),
        row("fast", 3, 1.0, published=accuracy(72)),
    ]
    assert [one.front for one in with_fronts(rows)] == [("gmacs",), (), (), (), ("gmacs", "latency")]


def test_accuracies_of_different_photos_are_never_set_against_each_other():
    both = row("a", 1, published=accuracy(70), trained=accuracy(60, "trained"))
    assert chosen_kind([row("b", 1, published=accuracy(70))]) == "published"
    assert chosen_kind([both, row("b", 1, published=accuracy(70))]) == "trained"
    own = [row(name, 1, own=accuracy(60, "run", source)) for name, source in (("a", "x"), ("b", "x"), ("c", "y"))]
    assert chosen_kind(own[:2]) == "run"
    assert chosen_kind(own) is None
    assert chosen_kind([row("a", 1, failure="no", published=accuracy(70))]) is None


def test_a_record_is_plain_json_with_the_figures_people_read():
    one = row("a", 2_000_000_000, 0.5, activations=3_000_000, published=accuracy(70))
    record = json.loads(json.dumps(row_record(replace(one, latency=(0.5, 0.1, 0.2)), batch=8)))
    assert record["gmacs"] == 2.0
    assert record["activations_m"] == 3.0
    assert record["latency_seconds"] == {"median": 0.2, "min": 0.1, "max": 0.5}
    assert record["images_per_second"]["median"] == 8.0
    assert record["published"]["source"] == "a paper"


def test_words_mean_names_patterns_and_runs_each_once(tmp_path):
    found = [subject.name for subject in find_subjects(["resnet18", "cmt_ladder_?_*_nano", "cmt_ladder_3_lpu_nano"])]
    assert found[0] == "resnet18"
    assert len(found) == 7
    with pytest.raises(ConfigError, match="did you mean cmt_nano"):
        find_subjects(["cmt_s", "cmt_nanno"])
    with pytest.raises(ConfigError, match=r"no model matches 'cmt_\?\?\?\?\?\?\?\?\?\?_no\*'"):
        find_subjects(["cmt_??????????_no*"])
    with pytest.raises(CheckpointError, match=r"no model\.json"):
        find_subjects([str(tmp_path)])


def test_models_are_timed_in_interleaved_rounds(monkeypatch):
    timed = []
    monkeypatch.setattr(compare, "forward_pass", lambda model, size, batch, device: lambda: (model.tag, batch))
    monkeypatch.setattr(compare, "time_round", lambda forward: timed.append(forward()) or 0.1)
    built = tagged(monkeypatch)
    rows = measure_all(subjects("a", "b"), batch=4, rounds=3, prober=runs("a", "b"), room=10_000)
    assert timed == [("a", 1), ("a", 4), ("b", 1), ("b", 4)] * 3
    assert built == ["a", "b"]
    assert [len(one.latency) for one in rows] == [3, 3]


def test_a_model_without_room_is_built_for_every_turn(monkeypatch):
    monkeypatch.setattr(compare, "forward_pass", lambda model, size, batch, device: lambda: None)
    monkeypatch.setattr(compare, "time_round", lambda forward: 0.1)
    built = tagged(monkeypatch)
    prober = runs("big", "small", big={"weight_bytes": 900, "memory_bytes": 1000})
    measure_all(subjects("big", "small"), rounds=3, prober=prober, room=1200)
    assert built == ["big", "small", "big", "big"]


def test_the_lightest_stay_while_the_largest_has_its_peak():
    known = {
        name: Probed(weight_bytes=weights, memory_bytes=peak)
        for name, weights, peak in [("a", 10, 20), ("b", 30, 60), ("c", 50, 100)]
    }
    assert staying(known, 190) == {"a", "b", "c"}
    assert staying(known, 189) == {"a", "b"}
    assert staying(known, 139) == {"a"}
    assert staying(known, 50) == set()


def test_a_model_that_fails_late_keeps_its_reason_and_the_others_go_on(monkeypatch):
    def forward_pass(model, size, batch, device):
        if model.tag == "a" and batch > 1:
            raise RuntimeError("not enough memory\nand a page of advice")
        return lambda: None

    monkeypatch.setattr(compare, "forward_pass", forward_pass)
    monkeypatch.setattr(compare, "time_round", lambda forward: 0.1)
    tagged(monkeypatch)
    first, second, third = measure_all(
        subjects("a", "b", "c"), rounds=2, prober=runs("a", "b", "c", c={"failure": "too big"}), room=10_000
    )
    assert (first.failure, first.latency, first.macs) == ("not enough memory", (), 10)
    assert (second.failure, len(second.latency)) == (None, 2)
    assert third.failure == "too big"


def subjects(*names):
    return [Subject(name, name) for name in names]


def tagged(monkeypatch):
    """Models that know their name; returns the list of those that were built."""
    built = []

    def build(self, img_size=None):
        built.append(self.name)
        network = torch.nn.Identity()
        network.tag = self.name
        return network

    monkeypatch.setattr(Subject, "build", build)
    return built


@pytest.mark.parametrize(
    ("name", "size", "known"), [("cmt_s", 224, 83.5), ("cmt_s", 160, None), ("cmt_nano", 32, None)]
)
def test_a_published_accuracy_holds_at_its_own_input_size(name, size, known):
    found = compare._published(Subject(name, name), Probed(input_size=(3, size, size)))
    assert (found and found.percent) == known


def test_families():
    found = [
        family(name) for name in ("cmt_s.in1k", "cmt_ladder_1_stem", "ceit_nano", "resnet50", "mobilenetv3_large_100")
    ]
    assert found == ["CMT", "CMT ladder", "CeiT", "resnet", "MobileNetV3"]


def test_trainings_join_their_rows():
    rows = [row("runs/a", 1), row("b", 1), row("c", 1, failure="no")]
    named = subjects("runs/a", "b", "c")
    entries = entries_to_train(named, rows)
    assert [(entry.key, entry.model) for entry in entries] == [("runs-a", "runs/a"), ("b", "b")]
    results = [
        EntryResult(entries[0], [SeedRun(0, 70, 100, 1.0), SeedRun(1, 80, 100, 1.0)]),
        EntryResult(Entry("b", "b"), [], "no such option"),
    ]
    first, second, third = with_training(rows, results)
    assert first.trained.percent == 75.0
    assert first.trained.counts == ((70, 100), (80, 100))
    assert first.trained.low == pytest.approx(75 - 12.706 * 5, abs=0.01)
    assert (second.trained, second.training_failure) == (None, "no such option")
    assert third == rows[2]


BAD_MODELS = textwrap.dedent(
    """
    import os, signal, sys, torch, timm
    from timm.models import register_model
    from cmtvision.bench.probe_model import main

    default_cfgs = {}

    class Bad(torch.nn.Module):
        def __init__(self, deed):
            super().__init__()
            self.deed, self.pretrained_cfg = deed, {"input_size": (3, 8, 8)}
            self.layer = torch.nn.Linear(8, 8)

        def forward(self, x):
            if x.device.type != "meta":
                self.deed()
            return self.layer(x)

    def hundred_megabytes():
        print("printing is no answer")
        torch.ones(25_000_000)

    def fall():
        raise RuntimeError("\\n\\nit fell\\nand more")

    DEEDS = {"bad_falls": fall, "bad_killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
             "bad_exits": lambda: os._exit(7), "bad_large": hundred_megabytes}
    for name, deed in DEEDS.items():
        def create(pretrained=False, deed=deed, **kwargs):
            return Bad(deed)
        create.__name__ = name
        register_model(create)
    main()
    """
)


@pytest.mark.slow
def test_a_bad_model_takes_nothing_with_it(tmp_path):
    script = tmp_path / "bad.py"
    script.write_text("__all__ = []\n" + BAD_MODELS)
    with Prober(2, command=(sys.executable, "-W", "ignore", str(script))) as prober:
        found = {name: prober.probe(Subject(name, name)) for name in
                 ("bad_falls", "bad_killed", "bad_exits", "bad_large", "cmt_nano")}  # fmt: skip
    assert found["bad_falls"].failure == "RuntimeError: it fell"
    assert "killed" in found["bad_killed"].failure
    assert found["bad_killed"].parameters == 72  # what was known before stays known
    assert "code 7" in found["bad_exits"].failure
    assert found["bad_large"].failure is None
    assert 100e6 <= found["bad_large"].memory_bytes < 130e6
    assert found["cmt_nano"].failure is None
    assert found["cmt_nano"].weight_bytes <= found["cmt_nano"].memory_bytes < 10 * found["cmt_nano"].weight_bytes


@pytest.mark.slow
def test_a_model_that_cannot_fit_is_not_built_and_a_broken_child_gives_reasons():
    with Prober(2, memory_limit=1_000_000) as prober:
        found = prober.probe(Subject("cmt_nano", "cmt_nano"))
    assert found.failure == "does not fit: weights of 5 MB, 1 MB are free"
    assert found.macs == 6_035_904
    with Prober(2, command=(sys.executable, "-c", "raise SystemExit('no torch here')")) as prober:
        assert "no torch here" in prober.probe(Subject("cmt_nano", "cmt_nano")).failure
        assert prober.probe(Subject("cmt_nano", "cmt_nano")).failure is not None


@pytest.mark.slow
def test_the_order_is_the_same_in_three_runs_of_ten_models(monkeypatch):
    monkeypatch.setattr(measure, "SECONDS_A_ROUND", 0.001)
    orders = []
    with Prober(2) as prober:
        for start in range(3):
            turned = find_subjects([*TEN[start:], *TEN[:start]])
            measured = measure_all(turned, img_size=32, batch=2, rounds=1, prober=KeptProber(prober))
            rows = with_fronts(in_order(measured))
            assert [one.failure for one in rows] == [None] * 10
            orders.append([one.model for one in rows])
    assert orders[0] == orders[1] == orders[2]
    assert set(orders[0]) == set(TEN)
