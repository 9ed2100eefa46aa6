"""The search for settings: real short trainings, stopped, resumed, failed and pruned."""

import csv
import json
import shutil

import optuna
import pytest
from engine_photos import TINY, write_photos

from cmtvision.data import read_dataset
from cmtvision.engine.held_out import held_out_of_training
from cmtvision.errors import ConfigError, DataError
from cmtvision.recipe import load_recipe
from cmtvision.recipe.space import parse_space
from cmtvision.report.tuning import write_tuning_plots
from cmtvision.study import optuna_study as studies
from cmtvision.study.tune import tune

SPACE = ["optim.lr=log:1e-4..1e-2", "augment.label_smoothing=0,0.1"]


def recipe_of(*more):
    return load_recipe("demo", [*TINY, "schedule.epochs=1", "ema.enabled=false", "train.loggers=[]", *more])


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos") / "shapes", per_class=8)


@pytest.fixture(scope="module")
def found(photos, tmp_path_factory):
    """A search of three trials."""
    return tune(recipe_of(), parse_space(SPACE), photos, tmp_path_factory.mktemp("tune") / "search", trials=3)


@pytest.mark.slow
def test_the_best_recipe_is_ready_to_train_and_only_its_run_keeps_weights(found):
    best = found.best
    assert [trial.state for trial in found.trials] == ["complete"] * 3
    assert best.score == max(trial.score for trial in found.trials)
    chosen = load_recipe(found.out / "best.yaml")
    assert chosen.optim.lr == best.settings["optim.lr"]
    assert chosen.augment.label_smoothing == best.settings["augment.label_smoothing"]
    assert chosen.schedule == recipe_of().schedule
    for trial in found.trials:
        folder = found.out / "trials" / f"{trial.number:03}"
        assert (folder / "metrics.csv").is_file()
        assert (folder / "model.safetensors").exists() == (trial.number == best.number)
        assert json.loads((folder / "evaluation.json").read_text())["top1"] == trial.score
        assert load_recipe(folder / "recipe.yaml").optim.lr == trial.settings["optim.lr"]
    rows = list(csv.DictReader((found.out / "trials.csv").read_text().splitlines()))
    assert [float(row["val_top1"]) for row in rows] == [
        trial.score for trial in sorted(found.trials, key=lambda trial: trial.number)
    ]


@pytest.mark.slow
def test_plots_are_drawn_as_svg_and_png(found):
    svg, png = write_tuning_plots(found)
    assert "best so far" in svg.read_text()
    assert png.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_search_that_lost_its_process_proposes_what_it_would_have_proposed(found, photos, tmp_path):
    out = tmp_path / "search"
    tune(recipe_of(), parse_space(SPACE), photos, out, trials=1)
    # what a kill in mid-trial leaves behind: a trial that runs for ever
    study = studies.open_study(f"sqlite:///{out / 'study.db'}", "search", "median", resume=True)
    torn, settings = studies.propose(study, parse_space(SPACE), 0, str(out.resolve()))
    again = tune(recipe_of(), [], photos, out, trials=3, resume=True)
    expected = {trial.number: trial for trial in found.trials}
    got = sorted(again.trials, key=lambda trial: trial.number)
    assert [trial.number for trial in got] == [0, 2, 3]
    assert [trial.settings for trial in got] == [expected[number].settings for number in (0, 1, 2)]
    assert [trial.score for trial in got] == [expected[number].score for number in (0, 1, 2)]
    states = {int(row["trial"]): row["state"] for row in csv.DictReader((out / "trials.csv").read_text().splitlines())}
    assert states[torn.number] == "interrupted"
    assert settings == [f"{key}={json.dumps(value)}" for key, value in got[1].settings.items()]


@pytest.mark.slow
def test_settings_that_cannot_be_are_failed_trials_with_their_reason(photos, tmp_path):
    space = parse_space(["schedule.warmup_epochs=0.5,5"])
    found = tune(recipe_of(), space, photos, tmp_path / "search", trials=4)
    failed = [trial for trial in found.trials if trial.state == "failed"]
    assert failed
    assert all("warmup_epochs: got 5" in trial.reason for trial in failed)
    assert found.best.settings == {"schedule.warmup_epochs": 0.5}


def test_a_search_without_a_single_finished_trial_says_why(photos, tmp_path):
    recipe = recipe_of("model.weights=nowhere.safetensors")
    with pytest.raises(ConfigError, match=r"none of 2 trials finished.*nowhere.safetensors"):
        tune(recipe, parse_space(["optim.lr=log:1e-4..1e-2"]), photos, tmp_path / "search", trials=2)


@pytest.mark.slow
def test_a_hopeless_trial_is_stopped_early(photos, tmp_path):
    # four good ones first, then one at a rate that learns nothing: below their median from its second epoch on
    recipe = recipe_of("schedule.epochs=6", "optim.lr=3e-3", "schedule.warmup_epochs=0.1", "augment.label_smoothing=0")
    space = parse_space(["optim.lr=3e-3,1e-9"])
    out = tmp_path / "search"
    tune(recipe, space, photos, out, trials=1)
    study = studies.open_study(f"sqlite:///{out / 'study.db'}", "search", "median", resume=True)
    for value in ("0.003", "0.003", "0.003", "0.003", "1e-09"):
        study.enqueue_trial({"optim.lr": value})
    found = tune(recipe, [], photos, out, trials=6, resume=True)
    last = max(found.trials, key=lambda trial: trial.number)
    assert last.settings == {"optim.lr": 1e-9}
    assert last.state == "pruned"
    assert last.epochs < 6
    assert not (out / "trials" / f"{last.number:03}" / "checkpoints").exists()


def test_folders_photos_and_a_second_search_in_the_way(photos, tmp_path):
    recipe, space = recipe_of("model.weights=nowhere.safetensors"), parse_space(SPACE)
    out = tmp_path / "search"
    moved = tmp_path / "photos"
    shutil.copytree(photos, moved)
    with pytest.raises(ConfigError, match="nothing to resume"):
        tune(recipe, [], moved, out, trials=1, resume=True)
    with pytest.raises(ConfigError, match="none of 1 trials"):
        tune(recipe, space, moved, out, trials=1)
    with pytest.raises(ConfigError, match=r"is not empty; resume it"):
        tune(recipe, space, moved, out, trials=1)
    with pytest.raises(ConfigError, match="leave out --storage"):
        tune(recipe, [], moved, out, trials=1, resume=True, storage="sqlite:///other.db")
    with (out / ".lock").open("w") as lock:
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another process is at work"):
            tune(recipe, [], moved, out, trials=2, resume=True)
    next((moved / "disc").iterdir()).unlink()
    with pytest.raises(DataError, match="photos changed"):
        tune(recipe, [], moved, out, trials=2, resume=True)


@pytest.mark.parametrize("shared", [False, True])
def test_a_search_goes_on_where_its_folder_was_renamed(shared, photos, tmp_path):
    recipe, out = recipe_of("model.weights=nowhere.safetensors"), tmp_path / "search"
    storage = f"sqlite:///{tmp_path / 'shared.db'}" if shared else None
    with pytest.raises(ConfigError, match="none of 1 trials"):
        tune(recipe, parse_space(SPACE), photos, out, trials=1, storage=storage)
    study = studies.open_study(storage or f"sqlite:///{out / 'study.db'}", "search", "median", resume=True)
    torn, _ = studies.propose(study, parse_space(SPACE), 0, str(out.resolve()))  # a kill in mid-trial leaves it running
    moved = out.rename(tmp_path / "renamed")
    plan = json.loads((moved / "tune.json").read_text())
    for twice in (2, 3):
        with pytest.raises(ConfigError, match=f"none of {twice} trials"):
            tune(recipe, [], photos, moved, trials=twice, resume=True, storage=storage)
        # a search of an earlier version, which wrote down neither its name nor its place, goes on in its own study.db
        if not shared:
            old = {key: value for key, value in plan.items() if key not in ("study", "folder")}
            (moved / "tune.json").write_text(json.dumps(old))
    states = {
        int(row["trial"]): row["state"] for row in csv.DictReader((moved / "trials.csv").read_text().splitlines())
    }
    assert states[torn.number] == "interrupted"
    assert not out.exists()


def test_unknown_models_and_storages_are_refused_before_training(photos, tmp_path):
    with pytest.raises(ConfigError, match="did you mean cmt_nano"):
        tune(recipe_of(), parse_space(["model.name=cmt_nano,cmt_nanoo"]), photos, tmp_path / "a", trials=1)
    with pytest.raises(ConfigError, match=r"--storage: cannot be opened"):
        tune(recipe_of(), parse_space(SPACE), photos, tmp_path / "b", trials=1, storage="nonsense")


def test_trials_are_compared_on_training_photos_only(photos, tmp_path):
    """Photos that the data holds out itself are the ones to measure with later; choosing by them would spoil them."""
    root = tmp_path / "own"
    for name in ("train", "val", "test"):
        shutil.copytree(photos, root / name)
    recipe = recipe_of()
    whole = read_dataset(root)
    chosen = held_out_of_training(whole, recipe)
    assert {sample.path for sample in [*chosen.train, *chosen.val]} == {sample.path for sample in whole.train}
    assert chosen.test == whole.test  # kept for later, and looked at by nobody
    assert not {sample.path for sample in chosen.train} & {sample.path for sample in chosen.val}
    assert all(1 <= val <= 7 for _, val in chosen.class_counts().values())  # about a quarter of eight
    again = held_out_of_training(whole, recipe)
    assert again == chosen
    other = held_out_of_training(whole, recipe_of("data.split_seed=1"))
    assert other.val != chosen.val
    seeded = read_dataset(photos, val_fraction=0.25)
    assert held_out_of_training(seeded, recipe) is seeded
    with pytest.raises(ConfigError, match=r"data\.val_fraction"):
        held_out_of_training(whole, recipe_of("data.val_fraction=0"))


def test_best_first_puts_complete_before_pruned_before_failed():
    trials = [
        studies.Trial(0, "failed", None, 0, 0.0, "reason"),
        studies.Trial(1, "pruned", 0.9, 2, 0.0),
        studies.Trial(2, "complete", 0.5, 4, 0.0),
        studies.Trial(3, "complete", 0.7, 4, 0.0),
    ]
    assert [trial.number for trial in studies.best_first(trials)] == [3, 2, 1, 0]


def test_optuna_speaks_as_loudly_as_before():
    optuna.logging.set_verbosity(optuna.logging.INFO)
    with studies.quiet_optuna():
        assert optuna.logging.get_verbosity() == optuna.logging.ERROR
    assert optuna.logging.get_verbosity() == optuna.logging.INFO
