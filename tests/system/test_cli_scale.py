"""``cmtvision scale`` as a user types it, and what later commands know of its networks."""

import json

import pytest
from cli_process import assert_one_error, run_cli

from cmtvision import load
from cmtvision.recipe import load_recipe

BRIEFLY = ["--epochs", "1", "--set", "schedule.warmup_epochs=0"]


def assert_opens_here(run, dims):
    card = json.loads((run / "model.json").read_text(encoding="utf-8"))
    assert (card["architecture"], card["arguments"]["dims"]) == ("cmt_nano", dims)
    assert [stage["num_chs"] for stage in load(run).artefact.model.feature_info] == dims


@pytest.mark.parametrize(
    ("words", "patterns"),
    [
        (["--params", "12X"], ["--params 12X: expected a number such as 12M"]),
        (["--gmacs", "-2"], ["--gmacs -2: expected a number of thousand million multiply-adds"]),
        (["--latency", "20ms", "--params", "12M"], ["--params and --latency: several targets; choose one"]),
        (["--phi", "much"], ["--phi", "cmtvision scale --help"]),
    ],
)
def test_a_mistaken_target_is_answered_at_once(words, patterns, tmp_path):
    assert_one_error(run_cli("scale", *words, cwd=tmp_path), *patterns)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_from_a_target_to_a_run_that_opens_anywhere(photos, tmp_path):
    made = run_cli(
        "scale", "--from", "cmt_nano", "--params", "1M", "--name", "own_net", "--out", "own.yaml", "--json",
        cwd=tmp_path,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    said = json.loads(made.stdout)
    assert said["name"] == "own_net"
    assert abs(said["parameters"] / 1e6 - 1) < 0.06
    assert said["off_percent"] == pytest.approx((said["parameters"] / 1e6 - 1) * 100)
    assert load_recipe(tmp_path / "own.yaml").model.name == "cmt_nano"

    info = run_cli("info", "own.yaml", "--json", cwd=tmp_path)
    assert json.loads(info.stdout)["total"]["parameters"] == said["parameters"]
    assert json.loads(info.stdout)["input_size"] == [3, 32, 32]

    done = run_cli("train", photos, "--recipe", "own.yaml", *BRIEFLY, "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_opens_here(tmp_path / "run", said["options"]["dims"])


@pytest.mark.slow
def test_a_run_by_a_recipes_network_keeps_what_it_stands_for_and_goes_on(photos, tmp_path):
    made = run_cli("scale", "--from", "cmt_nano", "--phi", "-2", "--out", "own.yaml", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    words = ["train", photos, "--model", "own.yaml", *BRIEFLY, "--out", "run", "--resume", "auto"]
    for _ in range(2):
        done = run_cli(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    (tmp_path / "own.yaml").unlink()
    assert load_recipe(tmp_path / "run" / "recipe.yaml").model.name == "cmt_nano"
    assert_opens_here(tmp_path / "run", [18, 36, 54, 90])


@pytest.mark.slow
def test_the_law_alone(tmp_path):
    told = run_cli("scale", cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    lines = [line.split() for line in told.stdout.splitlines()]
    assert [
        "cmt_s",
        "phi",
        "0",
        "3/3/16/3",
        "64/128/256/512",
        "32",
        "224",
        "26.26",
        "M",
        "4.032",
        "4.032",
        "4.032",
    ] in lines
    assert "the product of these coefficients is 2.35" in told.stdout
    assert {"cmt_ti", "cmt_xs", "cmt_b"} <= {line[0] for line in lines if line}
