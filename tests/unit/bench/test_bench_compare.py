"""Comparing models: what a row holds, what is trained, and what a bad model may not do."""

import sys
import textwrap
from contextlib import nullcontext

import pytest
import torch
from bench_workers import KnownWorkers

from cmtvision.bench import compare
from cmtvision.bench.compare import (
    entries_to_train,
    family,
    measure_all,
    measure_best,
    published_accuracy,
    with_training,
)
from cmtvision.bench.comparison import Row, in_order, with_fronts
from cmtvision.bench.target import Target, Work, find_targets
from cmtvision.bench.workers import Workers
from cmtvision.study.seeds import Entry, EntryResult, SeedRun

TEN = (
    "cmt_nano", "vit_nano", "ceit_nano", "test_vit", "test_resnet", "test_convnext", "test_efficientnet",
    "mobilenetv3_small_050", "lcnet_035", "cmt_ladder_3_lpu_nano",
)  # fmt: skip


def targets(*names):
    return [Target(name, name) for name in names]


def test_a_row_is_of_two_batches_in_the_memory_format_of_the_engine():
    workers = KnownWorkers()
    (found,) = measure_all(targets("cmt_nano"), img_size=64, batch=4, rounds=2, workers=workers)
    (opened,) = [words[2] for words in workers.asked if words[1] == "open"]
    assert (opened.runtime, opened.precision, opened.img_size) == ("as-trained", "fp32", 64)
    assert (found.latency, found.batch_seconds) == ((0.1, 0.1), (0.1, 0.1))
    assert (found.memory_bytes_batch_1, found.memory_bytes) == (100, 120)  # the first is of building it
    assert (found.parameters, found.input_size) == (1_264_568, (3, 64, 64))


def test_a_model_that_fails_late_keeps_its_reason_and_the_others_go_on():
    workers = KnownWorkers(failures={("cmt_nano", "turn", 8): "not enough memory"})
    first, second = measure_all(targets("cmt_nano", "vit_nano"), rounds=2, workers=workers)
    assert (first.failure, first.latency, first.macs) == ("not enough memory", (), 6_035_904)
    assert (second.failure, len(second.latency)) == (None, 2)


@pytest.mark.parametrize(
    ("name", "size", "known"),
    [
        ("cmt_s", 224, 83.5),
        ("cmt_s.in1k", 224, 83.5),
        ("cmt_s", 160, None),
        ("cmt_nano", 32, None),
        ("convnext_tiny", 288, 82.698),
        ("convnext_tiny", 224, None),
        ("swin_tiny_patch4_window7_224", 224, 81.3),
    ],
)
def test_a_published_accuracy_holds_at_its_own_input_size(name, size, known):
    found = published_accuracy(Target(name, name), (3, size, size))
    assert (found and found.percent) == known


class FewRuntimes(torch.nn.Module):
    """A network that PyTorch runs and no exporter takes."""

    def __init__(self):
        super().__init__()
        self.num_classes, self.pretrained_cfg = 3, {"input_size": (3, 8, 8), "num_classes": 3}
        self.layer = torch.nn.Linear(8, 3)

    def forward(self, x):
        return self.layer(torch.linalg.svdvals(x.mean(1)))


def test_a_runtime_that_does_not_take_a_model_is_named_with_its_reason(monkeypatch):
    def phase(_):
        return nullcontext(lambda done, total: None)

    monkeypatch.setattr(Target, "build", lambda self: FewRuntimes())
    monkeypatch.setattr(Target, "work", lambda self: Work((3, 8, 8), 27, 27, 1, 1))
    (row,) = measure_best(targets("resnet18"), batch=2, rounds=1, phase=phase, workers=KnownWorkers())
    assert (row.failure, row.runtime, row.latency) == (None, "eager", (0.1,))
    assert set(row.refused) == {"onnx fp32", "openvino fp32"}
    assert "svd" in row.refused["onnx fp32"]
    workers = KnownWorkers(failures={("resnet18", "turn", 1): "not enough memory"})
    (row,) = measure_best(targets("resnet18"), batch=2, rounds=1, phase=phase, workers=workers)
    assert row.failure == "not enough memory"
    assert set(row.refused) == {"eager fp32", "onnx fp32", "openvino fp32"}


def test_families():
    found = [
        family(name) for name in ("cmt_s.in1k", "cmt_ladder_1_stem", "ceit_nano", "resnet50", "mobilenetv3_large_100")
    ]
    assert found == ["CMT", "CMT ladder", "CeiT", "resnet", "MobileNetV3"]


def test_trainings_join_their_rows():
    rows = [Row("runs/a", "runs/a"), Row("b", "b"), Row("c", "c", failure="no")]
    named = targets("runs/a", "b", "c")
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
    from cmtvision.bench.worker_process import main

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
def test_a_bad_model_takes_nothing_with_it(tmp_path, monkeypatch):
    script = tmp_path / "bad.py"
    script.write_text("__all__ = []\n" + BAD_MODELS)
    monkeypatch.setattr(Target, "work", lambda self: Work((3, 8, 8), 72, 72, 1, 1))  # only children know the models
    names = ("bad_falls", "bad_killed", "bad_exits", "bad_large")
    workers = Workers(command=(sys.executable, "-W", "ignore", str(script)))
    rows = measure_all(targets(*names), batch=2, rounds=1, workers=workers)
    falls, killed, exits, large = rows
    assert falls.failure == "RuntimeError: it fell"
    assert "killed" in killed.failure
    assert killed.parameters == 72  # what was known before stays known
    assert "code 7" in exits.failure
    assert large.failure is None
    assert 100e6 <= large.memory_bytes < 130e6
    assert len(large.latency) == 1


def test_a_broken_child_gives_reasons():
    workers = Workers(command=(sys.executable, "-c", "raise SystemExit('no torch here')"))
    first, second = measure_all(targets("cmt_nano", "vit_nano"), batch=2, workers=workers)
    assert "no torch here" in first.failure
    assert second.failure is not None


@pytest.mark.slow
def test_the_order_is_the_same_in_three_runs_of_ten_models(monkeypatch):
    monkeypatch.setattr(compare, "SECONDS_A_ROUND", 0.001)
    orders = []
    with Workers() as workers:
        for start in range(3):
            turned = find_targets([*TEN[start:], *TEN[:start]])
            measured = measure_all(turned, img_size=32, batch=2, rounds=1, workers=nullcontext(workers))
            rows = with_fronts(in_order(measured))
            assert [one.failure for one in rows] == [None] * 10
            orders.append([one.model for one in rows])
    assert orders[0] == orders[1] == orders[2]
    assert set(orders[0]) == set(TEN)
