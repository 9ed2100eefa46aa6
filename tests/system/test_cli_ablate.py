"""cmtvision ablate as a user types it: a study in two parts, resumed, killed, and with mistakes in the line."""

import json
import re
import signal
import subprocess
import time

import pytest
from cli_process import assert_one_error, command_line, run_cli

pytestmark = pytest.mark.slow

SHORT = ("--recipe", "ladder", "--set", "train.batch_size=8", "--set", "schedule.epochs=1", "--set",
         "schedule.warmup_epochs=0.1", "--set", "train.loggers=[]")  # fmt: skip


def test_a_study_ends_in_a_table_grows_is_stopped_and_never_trains_twice(photos, tmp_path):
    first = run_cli("ablate", photos, "--only", "ladder", "--seeds", "1", *SHORT, "--out", "study", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    rows = [line.split("  ")[0] for line in first.stdout.splitlines()[2:8]]
    assert rows == ["DeiT", "+ stem", "+ stages", "+ LPU", "+ LMHSA", "+ IRFFN = CMT"]
    study = tmp_path / "study"
    weights = sorted(study.rglob("model.safetensors"))
    written = [file.stat().st_mtime_ns for file in weights]
    assert len(weights) == 6
    for name in ("ablation.json", "ablation.csv", "ablation.svg", "ablation.png", "recipe.yaml", "study.json"):
        assert (study / name).stat().st_size > 0, name
    assert_one_error(run_cli("ablate", photos, *SHORT, "--out", "study", cwd=tmp_path), "not empty", "--resume")
    other = run_cli("ablate", photos, *SHORT, "--set", "optim.lr=1", "--out", "study", "--resume", cwd=tmp_path)
    assert_one_error(other, "another recipe", "choose another --out")

    table = (study / "ablation.csv").read_text()
    words = ("ablate", photos, "--only", "ladder", "--seeds", "1", "--out", "killed")
    process = subprocess.Popen(command_line(*words, *SHORT), cwd=tmp_path, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 200
    while not list(tmp_path.glob("killed/runs/*_2_*/seed-0/run.json")):
        assert time.monotonic() < until
        time.sleep(0.02)
    process.kill()
    process.wait()
    again = run_cli(*words, "--resume", cwd=tmp_path)
    assert "kept" in again.stderr
    assert (tmp_path / "killed" / "ablation.csv").read_text() == table

    words = ("ablate", photos, "--only", "ladder", "--seeds", "2", "--out", "study", "--resume")
    process = subprocess.Popen(command_line(*words), cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 200
    while not list(study.glob("runs/*/seed-1/metrics.csv")):
        assert time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)  # in or after the last epoch of a run: that run is finished, the next not begun
    said = process.communicate(timeout=200)[1].splitlines()[-1]
    assert process.returncode == 130, said
    assert re.match(r"stopped with \d+ of 12 trainings over; go on with: cmtvision ablate ", said)
    finished = run_cli(*said.partition("go on with: cmtvision ")[2].split(), "--json", cwd=tmp_path)
    record = json.loads(finished.stdout)
    assert [len(row["correct"]) for row in record["rows"]] == [2] * 6
    assert all(row["difference"]["low"] <= row["difference"]["high"] for row in record["rows"][1:])
    assert record["num_val"] == record["rows"][0]["num_images"]
    assert record["versions"]["torch"]
    assert [file.stat().st_mtime_ns for file in weights] == written


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--size", "b"), "nano"),
        (("--seeds", "0"), "seeds"),
        (("--resume",), "say which study with --out"),
        (("--out", "nowhere", "--resume"), "nothing to resume"),
        (("--recipe", "dem"), "did you mean 'demo'"),
        (("--set", "data.val_fraction=0"), "nothing is held out"),
        (("--recipe", "demo"), "max_minutes"),
    ],
)
def test_mistakes_get_one_line(photos, tmp_path, words, said):
    assert_one_error(run_cli("ablate", photos, *words, cwd=tmp_path), said)
    assert not (tmp_path / "nowhere").exists()
