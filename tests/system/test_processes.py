"""Several processes: the same training as one with the larger batch, the same evaluation, saved together."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from cli_process import assert_one_error, command_line, run_cli

from cmtvision.weights import read_state_dict

# No mixing and no dropping: those draw differently in each process, on purpose. And a larger eps: by its own, Adam
# moves a weight whose gradient is all but zero by the full rate, in the direction of the gradient's rounding error.
PLAIN = [
    "augment.mixup=0", "augment.random_erasing=0", "augment.label_smoothing=0.1", "model.drop_path_rate=0",
    "model.drop_rate=0", "data.val_fraction=0.17", "data.workers=0", "schedule.warmup_epochs=1", "train.sync_bn=true",
    "train.threads=1", "optim.eps=1e-4", "data.split_seed=12",
]  # fmt: skip


def words(photos, out, batch_size, *more, epochs=3, settings=PLAIN):
    chosen = [word for setting in settings for word in ("--set", setting)]
    return ["train", photos, "--recipe", "demo", "--epochs", epochs, "--batch-size", batch_size, "--out", out,
            "--device", "cpu", *chosen, *more]  # fmt: skip


def rows(out):
    with (Path(out) / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def numbers(out, *names):
    return [[float(row[name]) for name in names] for row in rows(out)]


def weights(out):
    return read_state_dict(Path(out) / "model.safetensors")


@pytest.fixture(scope="module")
def two(photos, tmp_path_factory):
    """A run of two processes, batch 5 each."""
    out = tmp_path_factory.mktemp("two") / "run"
    done = run_cli(*words(photos, out, 5, "--devices", 2), cwd=out.parent)
    assert done.returncode == 0, done.stderr
    assert "held-out accuracy" in done.stdout
    return out


@pytest.mark.slow
def test_two_processes_learn_as_one_with_the_doubled_batch(photos, two, tmp_path):
    done = run_cli(*words(photos, tmp_path / "one", 10), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    names = ("step", "lr", "train_loss", "val_loss", "val_top1")
    for mine, theirs in zip(numbers(two, *names), numbers(tmp_path / "one", *names), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5, abs=1e-5)
    card = json.loads((two / "model.json").read_text())
    assert card["provenance"]["processes"] == 2


@pytest.mark.slow
def test_without_synchronised_norms_they_differ(photos, two, tmp_path):
    """So that the test above sees what it says it sees."""
    apart = [*[one for one in PLAIN if "sync_bn" not in one], "train.sync_bn=false"]
    done = run_cli(*words(photos, tmp_path / "run", 5, "--devices", 2, settings=apart), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert numbers(tmp_path / "run", "train_loss")[-1] != pytest.approx(numbers(two, "train_loss")[-1], rel=1e-5)


@pytest.mark.slow
def test_an_evaluation_is_the_same_on_one_two_and_three_processes(photos, two, tmp_path):
    shutil.copytree(photos, tmp_path / "photos")
    next((tmp_path / "photos" / "bag").iterdir()).unlink()  # 35 photos: neither two nor three divide them
    found = []
    for processes in (1, 2, 3):
        done = run_cli(
            "eval", two, tmp_path / "photos", "--split", "all", "--device", "cpu", "--devices", processes, "--json",
            "--csv", f"{processes}.csv", cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout))
    assert found[0]["num_images"] == 35
    keys = ("num_images", "top1_correct", "top5_correct", "confusion", "per_class")
    for other in found[1:]:
        assert {key: other[key] for key in keys} == {key: found[0][key] for key in keys}
        assert other["loss"] == pytest.approx(found[0]["loss"], rel=1e-6)
    columns = [[line.split(",")[:3] for line in (tmp_path / f"{n}.csv").read_text().splitlines()] for n in (1, 2, 3)]
    assert columns[0] == columns[1] == columns[2]


@pytest.mark.slow
def test_one_of_two_is_killed_and_the_run_goes_on(photos, tmp_path):
    noisy = ["augment.mixup=0.4", "model.drop_rate=0.2", "model.drop_path_rate=0.2", "data.val_fraction=0.17",
             "train.checkpoint_steps=1", "train.threads=1", "data.workers=1", "data.split_seed=12"]  # fmt: skip
    whole = run_cli(*words(photos, tmp_path / "whole", 5, "--devices", 2, settings=noisy), cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    started = list(map(str, words(photos, tmp_path / "parts", 5, "--devices", 2, settings=noisy)))
    process = subprocess.Popen(command_line(*started), stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    for line in process.stderr:
        if line.startswith("epoch 1/3"):
            os.kill(_worker(process.pid, rank=1), signal.SIGKILL)
            break
    process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=120) != 0
    one = run_cli("train", photos, "--out", tmp_path / "parts", "--resume", "--device", "cpu", cwd=tmp_path)
    assert_one_error(one, "began with 2 processes", "--devices 2")
    done = run_cli(
        "train", photos, "--out", tmp_path / "parts", "--resume", "--devices", 2, "--device", "cpu", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    expected, got = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(expected[name], got[name]) for name in expected)


@pytest.mark.slow
def test_sigterm_reaches_all_and_saves(photos, tmp_path):
    loading = [one for one in PLAIN if "workers" not in one] + ["data.workers=1"]  # the signal reaches loaders too
    started = list(map(str, words(photos, tmp_path / "run", 5, "--devices", 2, epochs=50, settings=loading)))
    process = subprocess.Popen(command_line(*started), stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    for line in process.stderr:
        if line.startswith("epoch 1/50"):
            process.send_signal(signal.SIGTERM)
            break
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=120) == 130, said
    assert said.count("stopped by SIGTERM") == 1, said
    assert "--resume --devices 2" in said
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.slow
def test_more_processes_than_photos_is_one_line(photos, tmp_path):
    small = tmp_path / "photos"
    for folder in sorted(photos.iterdir()):
        (small / folder.name).mkdir(parents=True)
        for file in sorted(folder.iterdir())[:2]:
            shutil.copy(file, small / folder.name)
    done = run_cli(
        "train", small, "--recipe", "demo", "--out", tmp_path / "run", "--device", "cpu", "--devices", 4, cwd=tmp_path
    )
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert "processes" in errors[0]


@pytest.mark.slow
def test_slurm_is_joined_by_what_it_says_in_the_environment(photos, two, tmp_path):
    """The variables that srun sets for two tasks on one machine; there is no SLURM here."""
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2", "SLURM_NNODES": "1",
           "SLURM_NTASKS_PER_NODE": "2", "SLURM_NODEID": "0", "SLURM_NODELIST": "localhost"}  # fmt: skip
    tasks = [
        subprocess.Popen(
            command_line(*words(photos, tmp_path / "run", 5)),
            env={**os.environ, **job, "SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for task in (0, 1)
    ]  # fmt: skip
    said = [task.communicate(timeout=300) for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], said
    assert "5 x 2 processes" in said[0][1]
    assert said[1] == ("", "")
    for mine, theirs in zip(numbers(tmp_path / "run", "train_loss"), numbers(two, "train_loss"), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-6)


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and iproute2")
@pytest.mark.slow
def test_two_nodes_in_two_network_namespaces(photos, two, tmp_path):
    """Two machines as far as the network is concerned: a torchrun in each, a cable between them, a shared folder."""
    names = [f"cmt{os.getpid() % 10000}{letter}" for letter in "ab"]

    def ip(*args):
        subprocess.run(["ip", *args], check=True, capture_output=True)

    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip("link", "add", f"{names[0]}v", "type", "veth", "peer", "name", f"{names[1]}v")
            for number, name in enumerate(names, start=1):
                ip("link", "set", f"{name}v", "netns", name)
                ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", f"{name}v")
                ip("-n", name, "link", "set", f"{name}v", "up")
                ip("-n", name, "link", "set", "lo", "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
        processes = [
            subprocess.Popen(
                [
                    "ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run", "--nnodes", "2",
                    "--nproc-per-node", "1", "--node-rank", str(number), "--master-addr", "10.77.0.1",
                    "--master-port", "29517", "-m", "cmtvision", *map(str, words(photos, tmp_path / "run", 5)),
                ],
                env={**os.environ, "GLOO_SOCKET_IFNAME": f"{name}v"},
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
            )
            for number, name in enumerate(names)
        ]  # fmt: skip
        said = [process.communicate(timeout=300) for process in processes]
        assert [process.returncode for process in processes] == [0, 0], said
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
    # two machines of one process each compute what two processes of one machine do
    for mine, theirs in zip(numbers(tmp_path / "run", "train_loss"), numbers(two, "train_loss"), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-6)
    pairs = zip(weights(tmp_path / "run").values(), weights(two).values(), strict=True)
    assert all(torch.allclose(mine, theirs, rtol=1e-4, atol=1e-5) for mine, theirs in pairs)
    assert "held-out accuracy" in said[0][0]
    assert "held-out accuracy" not in said[1][0]


def _worker(parent, rank):
    """The process of a rank among the launcher's children."""
    for _ in range(100):
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            try:
                stat = (folder / "stat").read_text().rpartition(")")[2].split()
                environment = (folder / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if int(stat[1]) == parent and f"RANK={rank}".encode() in environment:
                return int(folder.name)
        time.sleep(0.1)
    raise AssertionError("no such process")
