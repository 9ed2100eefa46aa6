"""`cmtvision train photos`, as everyone types it first: nothing but a folder, or a folder and the time there is."""

import re

import pytest
import yaml
from cli_process import assert_one_error, run_cli

pytestmark = pytest.mark.slow
BRIEF = ("--epochs", "2", "--set", "train.max_steps=4")


def recipe_of(run):
    return yaml.safe_load((run / "recipe.yaml").read_text())


@pytest.fixture(scope="module")
def first(photos, tmp_path_factory):
    """(run folder, the finished process) of a run that nobody has written a recipe for."""
    folder = tmp_path_factory.mktemp("first")
    done = run_cli("train", photos, *BRIEF, "--out", "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run", done


def test_a_folder_is_enough(first):
    run, done = first
    plan = [line for line in done.stderr.splitlines() if re.match(r"[a-z]+ {2,}\S", line)]
    assert len(plan) <= 10
    assert [line.split()[0] for line in plan][:3] == ["data", "model", "weights"]
    said = "\n".join(plan)
    assert "half of them 28 px or smaller" in said
    assert re.search(r"model +cmt_nano, [\d,]+ parameters, 32 x 32 px, from random weights: .*half of the photos", said)
    assert re.search(r"expect +about \d+ s .*photos/s measured here.*commonest class scores \d", said)
    recipe = recipe_of(run)
    assert (recipe["name"], recipe["model"]["name"], recipe["schedule"]["epochs"]) == ("chosen", "cmt_nano", 2)
    assert "model.img_size 32: half of the photos are no larger than 28 px." in recipe["description"]


def test_its_end_says_how_good_it_is_how_sure_where_it_fails_and_what_next(first):
    _, done = first
    assert re.search(r"held-out accuracy: [\d.]+% \(\d+/\d+\)", done.stdout)
    assert re.search(r"on new photos like these: [\d.]+% to [\d.]+% \(95%\)", done.stdout)
    assert re.search(r"most often mistaken: \w+ for \w+ \(\d+ of \d+\)", done.stdout)
    next_ = done.stderr[done.stderr.index("next, ") :].splitlines()
    assert len(next_) == 2
    assert all(re.match(r"(next|or), (to|since) .*: cmtvision \w+ ", line) for line in next_)


def test_resume_auto_goes_on_without_choosing_again(first, photos, tmp_path):
    run, _ = first
    again = run_cli("train", photos, *BRIEF, "--out", run, "--resume", "auto", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "the run is finished" in again.stderr
    other = run_cli("train", photos, "--epochs", "3", "--out", run, "--resume", "auto", cwd=tmp_path)
    assert_one_error(other, "schedule.epochs is 2, not 3", "or another --out")
    timed = run_cli("train", photos, "--minutes", "3", "--out", run, "--resume", "auto", cwd=tmp_path)
    assert_one_error(timed, "train.max_minutes is null, not 3.0")
    assert_one_error(
        run_cli("train", photos, "--minutes", "3", "--out", run, "--resume", cwd=tmp_path),
        "--minutes: a resumed run keeps its recipe",
    )


def test_a_folder_in_the_way_is_said_before_anything_is_looked_at(first, photos, tmp_path):
    run, _ = first
    done = run_cli("train", photos, "--out", run, cwd=tmp_path)
    assert_one_error(done, "is not empty", "--overwrite")
    assert "measured" not in done.stderr


def test_minutes_bound_a_run(photos, tmp_path):  # how well is measured in benchmarks/first_run.py
    done = run_cli("train", photos, "--minutes", "0.2", "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    recipe = recipe_of(tmp_path / "run")
    assert recipe["train"]["max_minutes"] == 0.2
    assert "or what fits into 0.2 minutes" in done.stderr
    epochs = len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) - 1
    assert 1 <= epochs < recipe["schedule"]["epochs"] or recipe["schedule"]["epochs"] == 1


def test_several_processes_train_what_one_has_chosen(photos, tmp_path):
    done = run_cli("train", photos, *BRIEF, "--devices", "2", "--device", "cpu", "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("photos/s measured here") == 1
    recipe = recipe_of(tmp_path / "run")
    assert (recipe["name"], recipe["model"]["img_size"]) == ("chosen", 32)
    assert '"processes": 2' in (tmp_path / "run" / "run.json").read_text()


def test_a_search_varies_what_train_would_choose_for_as_long_as_one_likes(photos, tmp_path):
    done = run_cli("tune", photos, "--minutes", "0.4", "--out", "search", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    recipe = recipe_of(tmp_path / "search")
    assert (recipe["name"], recipe["train"]["max_minutes"]) == ("chosen", 0.4 / 12)
    more = ("--out", "search", "--resume", "auto", "--trials", "1")
    again = run_cli("tune", photos, "--set", "train.max_minutes=0.1", *more, cwd=tmp_path)
    assert_one_error(again, "train.max_minutes is 0.033", "or another --out")
    again = run_cli("tune", photos, "--set", "data.val_fraction=0.2", *more, cwd=tmp_path)
    assert again.returncode == 0, again.stderr  # what was given is what the search has
    assert_one_error(run_cli("tune", photos, "--out", "other", cwd=tmp_path), "--trials N or --minutes N")
