"""``cmtvision quantize`` as a person types it, on the small trained run."""

import csv
import json

import pytest
from cli_process import run_cli


@pytest.mark.slow
def test_quantize_the_runs_own_model(trained, photos, tmp_path):
    pytest.importorskip("onnxruntime")
    run, _ = trained
    data = tmp_path / "photos"
    for part in ("train", "val"):
        for folder in photos.iterdir():
            (data / part / folder.name).mkdir(parents=True)
            for file in folder.iterdir():
                (data / part / folder.name / file.name).symlink_to(file)
    out = tmp_path / "small"
    options = ("--to", "onnx", "--out", out, "--weight-only", "--max-drop", "10")
    done = run_cli("quantize", run, data, *options, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    names = {f"{file.parent.name}/{file.name}" for file in photos.glob("*/*")}
    rows = list(csv.DictReader((run / "split.csv").read_text().splitlines()))
    held_out = [row["path"] for row in rows if row["split"] == "val" and row["path"] in names]
    assert found["num_images"] == 2 * len(held_out) > 0  # in train/ and val/; what the run trained on is not counted
    assert found["bytes_after"] < 0.3 * found["bytes_before"]
    assert sorted(file.name for file in out.iterdir())[:2] == ["model.json", "model.onnx"]
    again = run_cli("quantize", run, data, *options, cwd=tmp_path)
    assert again.returncode == 2
    assert "already exists" in again.stderr
    measured = run_cli("eval", out, data, "--json", cwd=tmp_path)
    assert measured.returncode == 0, measured.stderr
    assert json.loads(measured.stdout)["top1_correct"] == found["accuracy"]["after"]


def test_too_small_a_calibration_set_is_one_line(trained, photos, tmp_path):
    run, _ = trained
    done = run_cli("quantize", run, photos, "--to", "onnx", "--calibration", "5", "--out", "out", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip().endswith("give 32 or more")
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
