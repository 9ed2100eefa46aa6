"""compare as a user types it: a table, a record and figures; one bad model among good ones; mistakes in the line."""

import csv
import json
import re
import signal
import subprocess
import time

import pytest
from cli_process import assert_one_error, command_line, run_cli

pytestmark = pytest.mark.slow

BRIEF = ("--rounds", "1", "--batch", "2")


def test_a_bad_model_is_a_row_and_the_others_are_measured(tmp_path):
    # ceit_nano takes multiples of 8 px only
    done = run_cli("compare", "cmt_nano", "ceit_nano", "vit_n*", "--img-size", "30", *BRIEF, "--out", "c", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split()[:3] == ["model", "input", "px"]
    assert [line.split()[0] for line in lines[1:4]] == ["vit_nano", "cmt_nano", "ceit_nano"]
    assert "failed: " in lines[3]
    assert "multiples of 8 px" in lines[3]
    record = json.loads((tmp_path / "c" / "comparison.json").read_text())
    assert record["command"].startswith("cmtvision compare cmt_nano")
    assert record["hardware"]["processor"]
    assert record["versions"]["torch"]
    vit, cmt, ceit = record["rows"]
    assert vit["gmacs"] < cmt["gmacs"]
    assert cmt["parameters"] == 1_240_733
    assert len(cmt["latency"]) == len(cmt["batch_seconds"]) == 1
    assert cmt["memory_bytes"] >= 4 * cmt["parameters"]
    assert ceit["failure"]
    rows = list(csv.DictReader((tmp_path / "c" / "comparison.csv").read_text().splitlines()))
    assert [row["model"] for row in rows] == ["vit_nano", "cmt_nano", "ceit_nano"]
    assert "no accuracy is known" in (tmp_path / "c" / "comparison.svg").read_text()
    assert (tmp_path / "c" / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert_one_error(run_cli("compare", "cmt_nano", "--out", "c", cwd=tmp_path), "is not empty", "--overwrite")


def test_the_exit_code_says_when_nothing_could_be_measured(tmp_path):
    done = run_cli(
        "compare", "ceit_nano", "--img-size", "30", *BRIEF, "--json", "--overwrite", "--out", "c", cwd=tmp_path
    )
    assert done.returncode == 1
    record = json.loads(done.stdout)
    assert record["rows"][0]["failure"]
    assert not (tmp_path / "c" / "comparison.svg").exists()


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        (["cmt_s", "cmt_nanno"], "did you mean cmt_nano"),
        (["cmt_nano", "nothing_*"], r"no model matches 'nothing_\*'"),
        (["cmt_nano", "--seeds", "2"], "add --train DATA"),
        (["cmt_nano", "--train", "nowhere"], "nowhere"),
        (["cmt_nano", "--device", "tpu"], "device 'tpu'"),
        (["cmt_nano", "--precision", "bf16"], "add --runtime best"),
        (["cmt_nano", "--runtime", "best", "--precision", "bf61"], "unknown precision 'bf61'; did you mean 'bf16'"),
    ],
)
def test_mistakes_are_answered_before_anything_is_measured(words, pattern, tmp_path, monkeypatch, capsys):
    from cmtvision.cli import main

    monkeypatch.chdir(tmp_path)
    assert main(["compare", *words]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert re.search(pattern, line)
    assert list(tmp_path.iterdir()) == []


def test_each_model_is_timed_in_its_fastest_runtime_and_a_runtime_that_refuses_says_why(tmp_path):
    words = ("compare", "cmt_nano", "test_resnet", "--runtime", "best", "--rounds", "1", "--batch", "2", "--out", "c")
    done = run_cli(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = {row["model"]: row for row in json.loads((tmp_path / "c" / "comparison.json").read_text())["rows"]}
    assert set(rows) == {"cmt_nano", "test_resnet"}
    for name, row in rows.items():
        assert row["failure"] is None
        assert row["runtime"] in ("eager", "fused", "torch", "onnx", "openvino")
        assert f"{name}  " in done.stdout
        assert f"{row['runtime']} fp32" in done.stdout
    assert rows["cmt_nano"]["runtime"] != "eager"  # its calls cost more than its arithmetic
    assert rows["test_resnet"]["refused"] == {}  # what only a CMT has is not asked of others


def test_models_and_a_run_are_trained_under_one_recipe(photos, trained, tmp_path):
    run, _ = trained
    small = ("--recipe", "ladder", "--set", "train.batch_size=8", "--set", "schedule.epochs=1", "--set",
             "schedule.warmup_epochs=0.1", "--set", "train.loggers=[]")  # fmt: skip
    words = ("compare", "vit_nano", run, "--train", photos, *small, "--seeds", "2", *BRIEF, "--out", "c")
    done = run_cli(*words, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["accuracy"] == "trained"
    assert record["training"]["seeds"] == [0, 1]
    assert any("gmacs" in row["front"] for row in record["rows"])
    for row in record["rows"]:
        found = row["trained"]
        assert len(found["counts"]) == 2
        mean = sum(correct / total for correct, total in found["counts"]) / 2
        assert found["percent"] == pytest.approx(100 * mean)
        assert found["low"] <= found["percent"] <= found["high"]
    assert record["rows"][1]["model"] == str(run)
    assert record["rows"][1]["own"]["percent"] > 0
    assert "trained here" in (tmp_path / "c" / "comparison.svg").read_text()


def test_a_stopped_comparison_goes_on_by_its_own_hint(photos, tmp_path):
    words = ("compare", "vit_nano", "ceit_nano", "--img-size", "64", *BRIEF, "--train", photos, "--seeds", "1")
    settings = ("--recipe", "ladder", "--set", "train.batch_size=8", "--set", "schedule.epochs=8")
    command = command_line(*words, *settings, "--out", "c")
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 200
    while not list((tmp_path / "c").glob("runs/*/seed-0/metrics.csv")):
        assert time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=200)[1].splitlines()[-1]
    assert process.returncode == 130, said
    resumed = run_cli(*said.partition("go on with: cmtvision ")[2].split(), "--json", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    record = json.loads(resumed.stdout)
    assert (record["batch"], record["rounds"], record["img_size"]) == (2, 1, 64)
    assert [len(row["trained"]["counts"]) for row in record["rows"]] == [1, 1]
