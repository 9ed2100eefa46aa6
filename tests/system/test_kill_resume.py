"""A run killed at any point and resumed ends with the weights of one that was never killed, bit for bit."""

import csv
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli_process import run_cli

from cmtvision.weights import read_state_dict

# everything random is on, and checkpoints fall inside epochs: 30 photos to train on, 3 steps an epoch, one save each 2
SETTINGS = [
    "train.batch_size=8", "data.val_fraction=0.17", "train.checkpoint_steps=2", "augment.mixup=0.4",
    "augment.cutmix=0.5", "augment.random_erasing=0.3", "model.drop_path_rate=0.2", "model.drop_rate=0.2",
    "data.workers=0", "schedule.warmup_epochs=1", "train.threads=1", "data.split_seed=12",
]  # fmt: skip
KINDS = {"step": 9, "validation": 3, "writing": 6, "written": 6, "between": 5}


def kill_points():
    """Ten places by a fixed seed: each kind twice, the second time with ``make test-all``."""
    chosen = random.Random(2107)
    places = [(kind, *sorted(chosen.sample(range(1, most + 1), 2))) for kind, most in KINDS.items()]
    return [
        param
        for kind, first, second in places
        for param in (pytest.param(kind, first), pytest.param(kind, second, marks=pytest.mark.every_size))
    ]


def words(photos, out, *more):
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    return ["train", str(photos), "--recipe", "demo", "--epochs", "3", "--out", str(out), *settings, *more]


def final_weights(out):
    return read_state_dict(Path(out) / "model.safetensors")


def rows(out):
    with (Path(out) / "metrics.csv").open() as file:
        kept = ("epoch", "step", "lr", "train_loss", "val_loss", "val_top1", "gradient_norm", "ema_distance")
        return [[row[key] for key in kept] for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    done = run_cli(*words(photos, out), cwd=out.parent)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "number"), kill_points())
def test_a_killed_run_ends_where_it_would_have(photos, whole, tmp_path, kind, number):
    out = tmp_path / "run"
    script = str(Path(__file__).with_name("killed_run.py"))
    killed = subprocess.run(
        [sys.executable, script, kind, str(number), *words(photos, out)], capture_output=True, timeout=300, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not (out / "model.safetensors").exists()
    done = run_cli(*words(photos, out, "--resume", "auto"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    expected, got = final_weights(whole), final_weights(out)
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert rows(out) == rows(whole)


@pytest.mark.slow
def test_sigusr1_saves_and_a_torn_checkpoint_gives_way_to_the_one_before(photos, whole, tmp_path):
    """SLURM's warning ahead of a time limit; then the last checkpoint loses its tail."""
    out = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "cmtvision", *words(photos, out)], stderr=subprocess.PIPE, text=True, bufsize=1
    )
    for line in process.stderr:
        if line.startswith("epoch 1/3"):
            process.send_signal(signal.SIGUSR1)
            break
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=300) == 130
    assert "stopped by SIGUSR1" in said
    assert "--resume" in said
    last = out / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-1000])
    done = run_cli("train", photos, "--out", out, "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "last.ckpt: torn" in done.stderr
    assert "going on from previous.ckpt" in done.stderr
    expected, got = final_weights(whole), final_weights(out)
    assert all(torch.equal(expected[name], got[name]) for name in expected)


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_reaches_loader_processes_too(photos, tmp_path):
    command = [*words(photos, tmp_path / "run"), "--set", "schedule.epochs=500", "--set", "train.max_minutes=null"]
    command = [word.replace("data.workers=0", "data.workers=2") for word in command if word not in ("--epochs", "3")]
    process = subprocess.Popen(
        [sys.executable, "-m", "cmtvision", *command], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    for line in process.stderr:
        if line.startswith("epoch 2/500"):
            os.killpg(process.pid, signal.SIGINT)  # what a terminal does
            break
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=120) == 130, said
    assert "stopped by Ctrl-C" in said
    assert "Traceback" not in said
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.slow
def test_resume_auto_starts_goes_on_and_refuses_another_recipe(photos, whole, tmp_path):
    again = run_cli(*words(photos, whole, "--resume", "auto"), cwd=tmp_path)  # finished long ago
    assert again.returncode == 0, again.stderr
    other = run_cli(*words(photos, whole, "--resume", "auto", "--set", "optim.lr=0.5"), cwd=tmp_path)
    assert other.returncode == 2
    assert "optim.lr is 0.0015, not 0.5" in other.stderr
