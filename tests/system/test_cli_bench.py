"""``cmtvision bench`` as a person types it."""

import json
import re

import pytest
import torch
from cli_process import assert_one_error, run_cli

LITTLE = ("--rounds", "1", "--seconds", "0.005", "--threads", "1", "--device", "cpu")


@pytest.mark.slow
def test_a_run_and_its_exports(trained, tmp_path):
    run, _ = trained
    words = ("bench", run, "--runtime", "eager,fused,onnx", "--batch", "1,2", *LITTLE, "--out", "bench", "--json")
    done = run_cli(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record == json.loads((tmp_path / "bench" / "bench.json").read_text())
    assert record["hardware"]["kernels"].startswith(f"torch {torch.backends.cpu.get_cpu_capability()}, oneDNN fp32")
    assert all(row["fraction_of_limit"] <= 1 for row in record["cells"])
    assert {"command", "date", "hardware", "versions", "device", "rounds", "seconds", "limits", "cells"} <= set(record)
    assert [(row["runtime"], row["batch"]) for row in record["cells"]] == [
        (name, batch) for name in ("eager", "fused", "onnx") for batch in (1, 2)
    ]
    assert all(row["failure"] is None and row["x_eager"]["median"] > 0 for row in record["cells"])
    assert sorted(path.name for path in (tmp_path / "bench").iterdir()) == [
        "bench.csv", "bench.json", "plot.png", "plot.svg",
    ]  # fmt: skip
    again = run_cli(*words, cwd=tmp_path)
    assert again.returncode == 2
    assert "bench: is not empty; choose another --out, or use --overwrite" in again.stderr


@pytest.mark.slow
def test_the_table_and_a_form_that_fails(tmp_path):
    done = run_cli("bench", "cmt_nano", "resnet10t", "--runtime", "fused", "--batch", "1", *LITTLE, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    header, *rows = done.stdout.splitlines()
    for column in ("target", "p50 ms", "p99 ms", "images/s", "x eager", "GMAC/s", "% of limit", "memory MB"):
        assert column in header
    assert rows[0].split()[:6] == ["cmt_nano", "32", "fused", "fp32", "1", "1"]
    assert "resnet10t fused fp32 x1 batch 1  failed: fuse: ResNet is no CMT; other networks run as they are" in rows
    limits = done.stdout.partition("limits, 1 thread:\n")[2].splitlines()
    assert [line.split()[0] for line in limits] == ["bf16", "fp32", "caches", "memory"]
    assert all(re.search(r" G(FLOP|B)/s \(.*\)$", line) for line in limits)  # by which library, or which network
    assert "kernels  torch " in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("card", "said"),
    [
        ({"format_version": 3, "export": {}}, "model.json: 'architecture' is missing; the file is not whole"),
        ({"format_version": 1, "architecture": "cmt_nano"}, "model.json: 'arguments' is missing"),
    ],
)
def test_a_card_that_is_not_whole_is_one_line(card, said, tmp_path):
    (tmp_path / "model.json").write_text(json.dumps(card))
    assert_one_error(run_cli("bench", "cmt_nano", ".", *LITTLE, cwd=tmp_path), said)


def test_a_place_that_cannot_be_written_is_said_before_anything_is_measured(tmp_path):
    (tmp_path / "file").touch()
    done = run_cli("bench", "cmt_nano", "--runtime", "eager", *LITTLE, "--out", "file/bench", cwd=tmp_path)
    assert_one_error(done, "--out file/bench: cannot be written \\(Not a directory\\); choose another folder")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("cmt_nano", "--runtime", "openvin"), "unknown runtime 'openvin'; did you mean 'openvino'?"),
        (("cmt_nano", "--batch", "0"), "--batch: got '0', expected whole numbers of at least 1"),
        (("cmt_nano", "--threads", "two"), "--threads: got 'two'"),
        (("cmt_nanoo",), "did you mean cmt_nano"),
        (("cmt_nano", "--overwrite"), "nothing is written without --out"),
    ],
)
def test_bad_input_is_one_line(words, said, tmp_path):
    done = run_cli("bench", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1
    assert said in done.stderr
