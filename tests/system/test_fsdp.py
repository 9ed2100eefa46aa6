"""train.strategy fsdp: a share of every weight in each process, and nothing else that differs from ddp."""

import csv
import gc
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli_process import run_cli

from cmtvision.engine import fit
from cmtvision.engine.callbacks.ema import EmaCallback
from cmtvision.engine.callbacks.stopping import TrainingInterrupted
from cmtvision.engine.distributed.fsdp import check_sharding, local
from cmtvision.engine.distributed.processes import Processes
from cmtvision.engine.module import TrainingModule
from cmtvision.errors import ConfigError
from cmtvision.recipe import load_recipe
from cmtvision.weights import read_state_dict

# as in test_processes.py: what draws differently in each process is off, and Adam's eps is above rounding errors
PLAIN = {
    "augment.mixup": 0, "augment.random_erasing": 0, "model.drop_path_rate": 0, "model.drop_rate": 0,
    "data.val_fraction": 0.19, "data.workers": 0, "schedule.warmup_epochs": 1, "train.sync_bn": "true",
    "train.threads": 1, "train.device": "cpu", "train.batch_size": 5, "schedule.epochs": 3, "optim.eps": 1e-4,
    "train.early_stop_patience": 3, "data.split_seed": 12,
}  # fmt: skip


def settings(strategy, more=None):
    return [f"{name}={value}" for name, value in {**PLAIN, "train.strategy": strategy, **(more or {})}.items()]


def numbers(out, *names):
    with (Path(out) / "metrics.csv").open() as file:
        return [[float(row[name]) for name in names] for row in csv.DictReader(file)]


def saved(out):
    return torch.load(Path(out) / "checkpoints" / "last.ckpt", weights_only=True)


def tensors(value, path=""):
    """Every tensor in a checkpoint, by its place."""
    if isinstance(value, torch.Tensor):
        return {path: value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return {name: found for key, one in items for name, found in tensors(one, f"{path}/{key}").items()}


@pytest.fixture(scope="module")
def runs(photos, tmp_path_factory):
    """The same run with either strategy: 29 photos to train on, 7 held out, so that the shares of those differ."""
    root = tmp_path_factory.mktemp("runs")
    for strategy in ("ddp", "fsdp"):
        chosen = [word for setting in settings(strategy) for word in ("--set", setting)]
        done = run_cli(
            "train", photos, "--recipe", "demo", "--out", root / strategy, "--devices", 2, *chosen, cwd=root
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    return root


@pytest.mark.slow
def test_it_learns_as_ddp_does(runs):
    names = ("step", "lr", "train_loss", "val_loss", "val_top1", "gradient_norm", "ema_distance")
    for mine, theirs in zip(numbers(runs / "fsdp", *names), numbers(runs / "ddp", *names), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5, abs=1e-5)
    mine, theirs = read_state_dict(runs / "fsdp/model.safetensors"), read_state_dict(runs / "ddp/model.safetensors")
    assert list(mine) == list(theirs)
    for name, value in theirs.items():
        torch.testing.assert_close(mine[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_its_checkpoint_is_one_file_like_that_of_ddp(runs):
    """Whole tensors of the same names: weights, average, the best weights so far, and the optimiser's state."""
    mine, theirs = tensors(saved(runs / "fsdp")), tensors(saved(runs / "ddp"))
    assert {name: (value.shape, value.dtype) for name, value in mine.items()} == {
        name: (value.shape, value.dtype) for name, value in theirs.items()
    }
    for part in ("/state_dict/", "/callbacks/EmaCallback/weights/", "/callbacks/RunCallback/best/weights/", "exp_avg"):
        names = [name for name in theirs if part in name and theirs[name].is_floating_point()]
        assert len(names) > 100, part
        for name in names:
            torch.testing.assert_close(mine[name], theirs[name], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_each_process_holds_half_and_goes_on_bit_for_bit(photos, tmp_path):
    """Stopped in mid-epoch. Dropout and mixing draw from what is restored; only the head learns in the first epoch."""
    noisy = {"augment.mixup": 0.4, "model.drop_rate": 0.2, "model.drop_path_rate": 0.2, "optim.head_warmup_epochs": 1}
    for out in ("whole", "parts"):
        work = [str(photos), str(tmp_path / out), *settings("fsdp", noisy)]
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__, *work],
            cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        stops = re.findall(r"stopped by SIGTERM at epoch 2, step \d", done.stdout)
        assert len(stops) == (2 if out == "parts" else 0)
    done = run_cli(
        "train", photos, "--out", tmp_path / "parts", "--resume", "--devices", 2, "--device", "cpu", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    names = ("train_loss", "val_loss", "gradient_norm", "ema_distance")
    assert numbers(tmp_path / "parts", *names) == numbers(tmp_path / "whole", *names)
    expected, got = (
        {name: value for name, value in tensors(saved(tmp_path / run)).items() if "/numpy/" not in name}
        for run in ("whole", "parts")
    )  # numpy's own generator is neither seeded nor used
    assert list(expected) == list(got)
    assert [name for name in expected if not torch.equal(expected[name], got[name])] == []


@pytest.mark.parametrize(
    ("setting", "pattern"),
    [("optim.name=muon", "optim.name muon.*ddp"), ("train.precision=fp16", "train.precision fp16.*bf16")],
)
def test_what_cannot_be_spread_is_one_clear_line(setting, pattern):
    recipe = load_recipe("demo", ["train.strategy=fsdp", setting])
    with pytest.raises(ConfigError, match=pattern):
        check_sharding(recipe, Processes(0, 2, 0, 2))


def _work(photos, out, *chosen):
    """What each process of the third test does: train, and look at what it holds after each epoch."""

    def look(row):
        found = [one for one in gc.get_objects() if type(one) in (TrainingModule, EmaCallback)]
        networks = [one.model if type(one) is TrainingModule else one.network for one in found]
        assert len(networks) == 2
        for network in networks:
            held = sum(local(one).numel() for one in network.parameters())
            assert 0.45 < held / sum(one.numel() for one in network.parameters()) < 0.55
        if Path(out).name == "parts" and row["epoch"] == 0 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        fit(load_recipe("demo", chosen), photos, out, on_epoch=look)
    except TrainingInterrupted as error:
        print(error, flush=True)


if __name__ == "__main__":
    _work(*sys.argv[1:])
