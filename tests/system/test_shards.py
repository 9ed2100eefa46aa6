"""Shards as a user makes and trains on them; an epoch over real processes, killed in the middle and resumed."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from cli_process import assert_one_error, run_cli
from shard_reader import PREPROCESS

from cmtvision.data import read_dataset

READER = Path(__file__).with_name("shard_reader.py")
PROCESSES, WORKERS = 3, 2


@pytest.fixture(scope="module")
def shards(sample, tmp_path_factory):
    """200 of the bundled photos in about a dozen shards, 200 being a number that 3 processes do not divide."""
    folder = tmp_path_factory.mktemp("shards")
    rows = [f"{file.relative_to(sample).as_posix()},{file.parent.name}" for name in ("bag", "sandal", "coat", "dress")
            for file in sorted((sample / "train" / name).iterdir())[:50]]  # fmt: skip
    (sample / "some.csv").write_text("path,label\n" + "\n".join(rows))
    done = run_cli("shard", sample / "some.csv", folder / "out", "--shard-size", "30KB", "--json", cwd=folder)
    (sample / "some.csv").unlink()
    assert done.returncode == 0, done.stderr
    written = json.loads(done.stdout)
    assert (written["train"], written["val"], written["skipped"]) == (200, 0, [])
    assert 8 < written["shards"] < 30
    assert written["classes"] == ["bag", "coat", "dress", "sandal"]
    return folder / "out"


def read_epoch(data, folder, stop=None):
    """Run an epoch in three processes at once; what each wrote to its log."""
    words = [
        [sys.executable, READER, data, rank, PROCESSES, WORKERS, folder / f"{rank}.log", folder / f"{rank}.json"]
        for rank in range(PROCESSES)
    ]
    more = [] if stop is None else [stop]
    running = [subprocess.Popen(list(map(str, line + more)), stderr=subprocess.PIPE, text=True) for line in words]
    for process in running:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == (0 if stop is None else -9), errors
    return [
        [json.loads(line) for line in (folder / f"{rank}.log").read_text().splitlines()] for rank in range(PROCESSES)
    ]


@pytest.mark.slow
def test_an_epoch_over_three_processes_and_two_workers_visits_each_photo_once(shards, tmp_path):
    samples = read_dataset(shards, val_fraction=0).train
    (tmp_path / "whole").mkdir()
    whole = read_epoch(shards, tmp_path / "whole")
    seen = [row for rows in whole for row in rows]
    assert sorted(index for index, *_ in seen) == list(range(200))
    assert sorted(map(len, whole)) == [66, 67, 67]
    for index, location, name, total in seen:  # and it is that photo
        assert (location, name) == (samples[index].path.store.location, samples[index].path.name)
        assert total == pytest.approx(float(PREPROCESS(samples[index].path).astype("float64").sum()), abs=1e-6)

    (tmp_path / "killed").mkdir()
    part = read_epoch(shards, tmp_path / "killed", stop=7)
    assert [len(rows) for rows in part] == [28] * 3
    in_shard = Counter(sample.path.store.location for sample in samples)
    for rows in part:  # the kill fell into the middle of a shard
        assert any(0 < count < in_shard[shard] for shard, count in Counter(row[1] for row in rows).items())
    resumed = read_epoch(shards, tmp_path / "killed")
    assert resumed == whole  # the same photos in the same order, none lost, none twice


def test_shards_from_the_command_line_are_what_it_was_given(photos, mixed_photos, tmp_path):
    done = run_cli("shard", photos, tmp_path / "out", "--val-fraction", "0.25", "--seed", "12", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "27 photos to train on, 9 held out, 3 classes, 2 shards" in done.stdout
    expected, found = read_dataset(photos, val_fraction=0.25, split_seed=12), read_dataset(tmp_path / "out")
    assert found.fingerprint == expected.fingerprint
    assert [one.path.name for one in found.val] == [expected.relative(one.path) for one in expected.val]
    assert_one_error(run_cli("shard", photos, tmp_path / "out", cwd=tmp_path), "not empty", "--overwrite")
    again = run_cli("shard", mixed_photos, tmp_path / "out", "--overwrite", "--json", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["skipped"] != []
    assert not (tmp_path / "out" / "val").exists()
    assert_one_error(run_cli("shard", photos, tmp_path / "x", "--shard-size", "big", cwd=tmp_path), "like 256MB or 1GB")
    assert_one_error(run_cli("shard", tmp_path / "absent", tmp_path / "x", cwd=tmp_path), "no such folder or file")
    assert not (tmp_path / "x").exists()
    assert_one_error(
        run_cli("shard", photos, tmp_path / "big", cwd=tmp_path, file_limit=2000), "cannot be written", "too large"
    )
    assert sorted(item.name for item in tmp_path.iterdir()) == ["out"]
