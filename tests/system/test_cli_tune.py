"""tune and lr-find as a user types them: killed, interrupted, resumed, and with mistakes in the line."""

import csv
import json
import re
import signal
import subprocess
import time

import pytest
from cli_process import assert_one_error, command_line, run_cli

pytestmark = pytest.mark.slow

SMALL = ("--recipe", "demo", "--set", "train.batch_size=8", "--set", "schedule.warmup_epochs=0.1", "--set",
         "train.loggers=[]")  # fmt: skip
SHORT = (*SMALL, "--set", "schedule.epochs=1", "--space", "optim.lr=log:1e-4..1e-2")
LONG = (*SMALL, "--set", "schedule.epochs=400", "--space", "optim.lr=log:1e-4..1e-2")


def start(*words, cwd):
    return subprocess.Popen(
        command_line(*words), cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )  # fmt: skip


def wait_for(path, seconds=120):
    until = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < until, f"{path} never came"
        time.sleep(0.05)


def states(out):
    return [row["state"] for row in csv.DictReader((out / "trials.csv").read_text().splitlines())]


def test_a_search_ends_with_a_table_a_recipe_and_a_plot(photos, tmp_path):
    done = run_cli("tune", photos, "--trials", "2", *SHORT, "--out", "search", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^trial +state +top1 +epochs +time +optim\.lr$", done.stdout, re.MULTILINE)
    scores = [float(found) for found in re.findall(r"complete +([\d.]+)%", done.stdout)]
    assert scores == sorted(scores, reverse=True)
    assert "they chose it" in done.stdout
    for name in ("best.yaml", "trials.csv", "study.db", "tuning.svg", "tuning.png"):
        assert (tmp_path / "search" / name).stat().st_size > 0, name
    again = run_cli("tune", photos, "--trials", "2", "--out", "search", "--resume", "--json", cwd=tmp_path)
    found = json.loads(again.stdout)
    assert [trial["state"] for trial in found["trials"]] == ["complete"] * 2
    assert found["best"] == found["trials"][0]
    trained = run_cli("train", photos, "--recipe", "search/best.yaml", "--out", "run", "--json", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    top1 = json.loads(trained.stdout)["evaluation"]["top1"]
    assert top1 == found["best"]["score"]  # same photos, same seed: the very same training


def test_a_killed_trial_is_run_again_with_its_settings(photos, tmp_path):
    out = tmp_path / "search"
    process = start("tune", photos, "--trials", "1", *LONG, "--out", out, cwd=tmp_path)
    wait_for(out / "trials" / "000" / "metrics.csv")
    process.kill()
    process.communicate()
    recipe = out / "recipe.yaml"
    first = re.search(r"lr: (\S+)", (out / "trials" / "000" / "recipe.yaml").read_text())[1]
    # the rest of the search need not be as long
    recipe.write_text(recipe.read_text().replace("epochs: 400", "epochs: 1"))
    done = run_cli("tune", photos, "--trials", "1", "--out", out, "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert states(out) == ["interrupted", "complete"]
    assert f"lr: {first}\n" in (out / "best.yaml").read_text()


def test_ctrl_c_stops_between_photos_and_says_how_to_go_on(photos, tmp_path):
    out = tmp_path / "search"
    process = start("tune", photos, "--trials", "3", *LONG, "--out", out, cwd=tmp_path)
    wait_for(out / "trials" / "000" / "metrics.csv")
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert stdout == ""
    assert "Traceback" not in stderr
    assert re.search(r"stopped with 0 of 3 trials over; go on with: cmtvision tune .* --resume", stderr)


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        (["--space", "optim.lrr=1..2"], "did you mean 'optim.lr'"),
        (["--space", "optim.lr=2..1"], "smaller number first"),
        (["--space", "optim.lr=1..2", "--set", "optim.lr=1"], "both given"),
        (["--resume"], "say which search with --out"),
        (["--resume", "--out", "nowhere"], "nothing to resume"),
        (["--set", "data.val_fraction=0"], r"data\.val_fraction: got 0"),
    ],
)
def test_mistakes_are_answered_in_one_line(words, pattern, photos, tmp_path):
    assert_one_error(run_cli("tune", photos, "--trials", "2", *words, cwd=tmp_path), pattern)


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_lr_find_prints_what_to_set_and_draws_it(suffix, photos, tmp_path):
    plot = tmp_path / f"sweep{suffix}"
    base = ("--set", "optim.lr_base_batch=32", "--set", "train.batch_size=8")
    words = ("lr-find", photos, "--recipe", "demo", *base, "--steps", "40", "--out", plot)
    done = run_cli(*words, "--json", "--csv", "sweep.csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["effective_batch"] == 8
    assert found["optim_lr"] == pytest.approx(found["suggestion"] * 32 / 8)
    assert found["lrs"][0] < found["suggestion"] < found["lrs"][-1]
    rows = list(csv.DictReader((tmp_path / "sweep.csv").read_text().splitlines()))
    assert [float(row["lr"]) for row in rows] == found["lrs"]
    drawn = plot.read_bytes()
    assert b"suggested" in drawn if suffix == ".svg" else drawn.startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([plot.name, "sweep.csv"])
    assert_one_error(run_cli(*words, cwd=tmp_path), "already exists", "--overwrite")
    said = run_cli(*words, "--overwrite", cwd=tmp_path).stdout
    assert f"--set optim.lr={found['optim_lr']:.2g}" in said


def test_lr_find_refuses_a_plot_it_cannot_draw_before_it_trains(photos, tmp_path):
    done = run_cli("lr-find", photos, "--recipe", "demo", "--out", "sweep.gif", cwd=tmp_path)
    assert_one_error(done, r"sweep\.gif", r"\.svg or \.png")
