"""What must answer at once, without torch: help, version, recipes, and mistakes that a look at the input shows."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from cli_process import assert_one_error, command_line, run_cli

from cmtvision import __version__

HEAVY = ("torch", "timm", "torchvision", "pytorch_lightning", "numpy")


def imported(*words, cwd):
    """(the process, the modules it imported)."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command_line(*words)[1:]], cwd=cwd, capture_output=True, check=False
    )
    lines = done.stderr.decode().splitlines()
    return done, {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}


def test_help_imports_nothing_heavy(tmp_path):
    done, modules = imported("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert not modules.intersection([*HEAVY, "pydantic", "yaml"])
    assert "cmtvision.cli.commands.train" in modules  # the list above would be empty if nothing had been recorded
    for command in (b"train", b"predict", b"doctor"):
        assert command in done.stdout


@pytest.mark.parametrize(
    ("words", "patterns"),
    [
        (["--set", "optim.lrr=3"], ["unknown key 'optim.lrr'", "did you mean 'optim.lr'"]),
        (["--recipe", "dem"], ["unknown recipe 'dem'", "did you mean 'demo'"]),
        (["--epochs", "2", "--set", "schedule.epochs=3"], ["--epochs and --set schedule.epochs: both given"]),
        (["--batch-size", "many"], ["train.batch_size: got 'many'"]),
        (["--resume"], ["--out"]),
    ],
)
def test_a_mistaken_option_is_answered_without_torch(words, patterns, photos, tmp_path):
    done, modules = imported("train", photos, *words, cwd=tmp_path)
    assert not modules.intersection(HEAVY[:-1])
    done.stdout, done.stderr = done.stdout.decode(), done.stderr.decode()
    done.stderr = "\n".join(line for line in done.stderr.splitlines() if not line.startswith("import time:"))
    assert_one_error(done, *patterns)
    assert list(tmp_path.iterdir()) == []


def test_missing_empty_and_one_class_folders_are_named(tmp_path, photos):
    (tmp_path / "empty").mkdir()
    shutil.copytree(photos / "bag", tmp_path / "one" / "bag")
    assert_one_error(run_cli("train", "nowhere", cwd=tmp_path), "nowhere: no such folder or file")
    assert_one_error(run_cli("train", "empty", cwd=tmp_path), "empty: ")
    assert_one_error(run_cli("train", "one", cwd=tmp_path), r"one: only one class \('bag'\)")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "patterns"),
    [
        (["trian"], ["'trian'", "did you mean 'train'"]),
        (["train", "photos", "--recipee", "demo"], ["--recipee", "did you mean --recipe"]),
        (["train"], ["missing argument 'DATA'", "cmtvision train --help"]),
        (["eval", "run", "photos", "--split", "dev"], ["'dev' is not one of 'val', 'train', 'test', 'all'"]),
        (["info", "cmt_s", "--img-size", "x"], ["--img-size"]),
        (["predict", "run", "a.png", "--json", "--csv"], ["--json and --csv"]),
        (["predict", "run", "*.nothing"], ["no file matches"]),
    ],
)
def test_a_mistyped_command_line_is_one_line(words, patterns, tmp_path):
    assert_one_error(run_cli(*words, cwd=tmp_path), *patterns)


def test_version_and_the_bare_command(tmp_path):
    assert run_cli("--version", cwd=tmp_path).stdout == f"cmtvision {__version__}\n"
    bare = run_cli(cwd=tmp_path)
    assert bare.returncode == 2
    assert bare.stdout.startswith("Usage: cmtvision")


def test_debug_shows_the_traceback_wherever_it_stands(tmp_path):
    for words in (["--debug", "train", "nowhere"], ["train", "nowhere", "--debug"]):
        done = run_cli(*words, cwd=tmp_path)
        assert done.returncode == 2
        assert "Traceback" in done.stderr
        assert done.stderr.splitlines()[-1].startswith("error: nowhere")


def test_recipes_are_listed_and_shown_so_that_the_output_is_a_recipe(tmp_path, photos):
    listed = json.loads(run_cli("recipes", "--json", cwd=tmp_path).stdout)
    assert {"default", "demo", "fashion_mnist"} <= listed.keys()
    (tmp_path / "mine.yaml").write_text(run_cli("recipes", "demo", cwd=tmp_path).stdout)
    shown = json.loads(run_cli("recipes", "demo", "--json", cwd=tmp_path).stdout)
    again = json.loads(run_cli("recipes", "mine.yaml", "--json", cwd=tmp_path).stdout)
    assert shown == again
    assert shown["model"]["name"] == "cmt_nano"


def test_sample_data_is_written_once_and_replaced_only_when_told(tmp_path):
    first = run_cli("sample-data", "photos", "--json", cwd=tmp_path)
    facts = json.loads(first.stdout)
    assert (facts["train"], facts["val"], len(facts["classes"])) == (8000, 2000, 10)
    assert len(list((tmp_path / "photos" / "val" / "bag").iterdir())) == 200
    assert_one_error(run_cli("sample-data", "photos", cwd=tmp_path), "not empty", "--overwrite")
    assert run_cli("sample-data", "photos", "--overwrite", cwd=tmp_path).returncode == 0


def test_sample_scenes_are_written_for_both_tasks_and_options_belong_to_them(tmp_path):
    for task in ("detection", "segmentation"):
        done = run_cli("sample-data", task, "--task", task, "--scenes", "10", "--seed", "3", "--json", cwd=tmp_path)
        facts = json.loads(done.stdout)
        assert (facts["task"], facts["train"], facts["val"]) == (task, 8, 2)
        assert facts["objects"] > 20
    assert len(list((tmp_path / "segmentation" / "val" / "masks").iterdir())) == 2
    words = ("sample-data", "detection", "--task", "detection", "--scenes")
    assert_one_error(run_cli(*words, "10", cwd=tmp_path), "not empty", "--overwrite")
    done = run_cli(*words, "10", "--overwrite", cwd=tmp_path)
    assert "next: cmtvision detect train detection" in done.stderr
    assert_one_error(run_cli(*words, "1", cwd=tmp_path), "scenes: got 1, expected 5")
    assert_one_error(run_cli("sample-data", "photos", "--seed", "1", cwd=tmp_path), "--seed", "add --task detection")
    assert not (tmp_path / "photos").exists()


def test_a_reader_that_stops_early_is_no_fault(tmp_path):
    with subprocess.Popen(
        command_line("recipes", "demo"), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        child.stdout.close()
        assert b"Traceback" not in child.stderr.read()


def test_a_folder_that_may_not_be_written_to_is_one_line(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    tmp_path.chmod(0o500)
    done = run_cli("sample-data", "photos", cwd=tmp_path)
    assert_one_error(done, "[Pp]ermission denied")


def test_ctrl_c_in_the_midst_of_an_import_ends_with_its_own_code(tmp_path):
    (tmp_path / "stopped.py").write_text(
        "import sys, cmtvision.cli.faults, cmtvision.cli.output as output\n"
        "output.show_anything = lambda: exec('import signal; signal.raise_signal(signal.SIGINT)')\n"
        "from cmtvision.cli import main\n"
        "sys.exit(main(['models']))\n"
    )
    command = [sys.executable, "-m", "stopped"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.startswith("stopped by Ctrl-C")
