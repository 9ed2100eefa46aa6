"""Studies of many short trainings: real runs, stopped, resumed, failing; and the record and figure of an ablation."""

import csv
import json
import xml.etree.ElementTree as ET

import pytest
import torch
from engine_photos import TINY, write_photos
from safetensors.torch import load_file

from cmtvision.artefact import load
from cmtvision.engine.callbacks.stopping import TrainingInterrupted
from cmtvision.engine.held_out import read_photos
from cmtvision.errors import ConfigError, DataError
from cmtvision.recipe import load_recipe
from cmtvision.report.ablation import ablation_figure, in_points, label, write_ablation_csv, write_ablation_figures
from cmtvision.study import seeds as training
from cmtvision.study.ablation import LEAVE_ONE_OUT, ablate, ablation_entries
from cmtvision.study.seeds import Entry, run_recipe, train_all

NANO = Entry("cmt_nano", "cmt_nano")
BARE = Entry("bare", "cmt_nano", {"lpu": False, "depths": (1, 1, 1, 1)})
BROKEN = Entry("broken", "cmt_nano", {"no_such_option": 1})


def recipe_of(*more):
    return load_recipe(
        "demo", [*TINY, "schedule.epochs=1", "ema.enabled=false", "train.loggers=[]", "train.max_minutes=null", *more]
    )


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos") / "shapes", per_class=8)


def test_entries_are_the_ladder_then_cmt_without_one_idea_each():
    keys = [entry.key for entry in ablation_entries("nano")]
    assert keys[:6] == [
        "cmt_ladder_0_deit_nano", "cmt_ladder_1_stem_nano", "cmt_ladder_2_stages_nano", "cmt_ladder_3_lpu_nano",
        "cmt_ladder_4_lmhsa_nano", "cmt_ladder_5_irffn_nano",
    ]  # fmt: skip
    assert keys[6:] == [f"cmt_nano_{idea}" for idea in LEAVE_ONE_OUT]
    assert [entry.key for entry in ablation_entries("ti", ["leave-one-out"])][:2] == [
        "cmt_ladder_5_irffn_ti",
        "cmt_ti_no_lpu",
    ]
    with pytest.raises(ConfigError, match="expected s, ti, nano"):
        ablation_entries("b")


def test_a_runs_recipe_names_its_network_and_seed():
    chosen = run_recipe(recipe_of("model.options.mlp_ratio=2"), BARE, 7)
    assert (chosen.seed, chosen.model.name) == (7, "cmt_nano")
    assert chosen.model.options == {"mlp_ratio": 2, "lpu": False, "depths": (1, 1, 1, 1)}
    assert chosen.optim == recipe_of().optim
    without_bias = run_recipe(recipe_of(), Entry("no_bias", "cmt_nano", {"rel_pos": "none"}), 0)
    assert (without_bias.model.rel_pos, without_bias.model.options) == ("none", {})


@pytest.mark.slow
def test_networks_are_trained_alike_and_a_broken_one_is_a_row_with_its_reason(photos, tmp_path):
    said = []
    found = train_all([NANO, BROKEN, BARE], photos, recipe_of(), [0, 1], tmp_path, on_run=lambda *a: said.append(a))
    assert [len(result.runs) for result in found] == [2, 0, 2]
    assert "no_such_option" in found[1].failure
    assert [(entry.key, seed) for entry, seed, *_ in said] == [
        ("cmt_nano", 0), ("broken", 0), ("bare", 0), ("cmt_nano", 1), ("bare", 1),
    ]  # fmt: skip
    opened = load(tmp_path / "runs" / "bare" / "seed-1")  # the options travel with the trained network
    assert len(opened.artefact.model.stages[2].blocks) == 1
    held_out = len(read_photos(recipe_of(), photos).val)
    assert found[0].runs[0].num_images == found[2].runs[0].num_images == held_out
    assert not list(tmp_path.glob("runs/*/*/checkpoints"))

    trained_again = []
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("model.safetensors")}
    again = train_all([NANO, BARE], photos, recipe_of(), [0, 1, 2], tmp_path, on_run=lambda *a: trained_again.append(a))
    assert [run.correct for run in again[0].runs][:2] == [run.correct for run in found[0].runs]
    assert {file: file.stat().st_mtime_ns for file in before} == before  # finished runs stay as they are
    assert [len(result.runs) for result in again] == [3, 3]

    with pytest.raises(ConfigError, match="trains by another recipe"):
        train_all([NANO], photos, recipe_of("optim.lr=1e-4"), [0], tmp_path)
    with pytest.raises(DataError, match="of other photos"):
        train_all([NANO], write_photos(tmp_path / "other", per_class=4), recipe_of(), [0], tmp_path)


@pytest.mark.slow
def test_a_stopped_study_says_how_to_go_on_and_ends_as_if_never_stopped(photos, tmp_path, monkeypatch):
    whole = train_all([NANO, BARE], photos, recipe_of(), [3], tmp_path / "whole")
    fit = training.fit

    def stopped(recipe, data, out, **kwargs):
        if recipe.model.options:  # in the first epoch of the second network
            kwargs["on_epoch"] = lambda row: (_ for _ in ()).throw(TrainingInterrupted("stopped"))
        return fit(recipe, data, out, **kwargs)

    monkeypatch.setattr(training, "fit", stopped)
    with pytest.raises(TrainingInterrupted, match="1 of 2 trainings over; go on with: cmtvision ablate"):
        train_all([NANO, BARE], photos, recipe_of(), [3], tmp_path / "cut", again="cmtvision ablate")
    monkeypatch.undo()
    resumed = train_all([NANO, BARE], photos, recipe_of(), [3], tmp_path / "cut")
    for one, other in zip(whole, resumed, strict=True):
        assert one.runs[0].correct == other.runs[0].correct
    for name in ("cmt_nano", "bare"):
        files = [tmp_path / part / "runs" / name / "seed-3" / "model.safetensors" for part in ("whole", "cut")]
        one, other = (load_file(file) for file in files)
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_photos_must_be_held_out(photos, tmp_path):
    with pytest.raises(DataError, match="nothing is held out"):
        train_all([NANO], photos, recipe_of("data.val_fraction=0"), [0], tmp_path)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("train.max_minutes=3", "train slow networks for fewer steps"),
        ("train.early_stop_patience=2", "chooses by the photos"),
        ("model.weights=pretrained", "from random weights"),
    ],
)
def test_what_would_make_trainings_unlike_each_other_is_refused(photos, tmp_path, setting, said):
    with pytest.raises(ConfigError, match=said):
        train_all([NANO], photos, recipe_of(setting), [0], tmp_path)
    assert not list(tmp_path.iterdir())


def test_two_networks_never_share_a_folder(photos, tmp_path):
    with pytest.raises(ConfigError, match="share a folder"):
        train_all([NANO, NANO], photos, recipe_of(), [0], tmp_path)


@pytest.mark.slow
def test_record_table_and_figure_of_an_ablation(photos, tmp_path):
    record = ablate("nano", photos, recipe_of(), [0, 1], tmp_path, parts=["leave-one-out"], facts={"command": "x"})
    assert json.loads((tmp_path / "ablation.json").read_text())["command"] == "x"
    assert record["rows"][0]["parameters"] == sum(
        p.numel() for p in load(tmp_path / "runs" / record["rows"][0]["key"] / "seed-0").artefact.model.parameters()
    )  # the network that was trained, not one of a thousand classes
    again = ablate("nano", photos, recipe_of(), [0], tmp_path, parts=["leave-one-out"])
    assert [row["correct"] for row in again["rows"]] == [row["correct"] for row in record["rows"]]  # never shrinks
    with pytest.raises(ConfigError, match="of size nano"):
        ablate("ti", photos, recipe_of(), [0], tmp_path)
    assert [row["part"] for row in record["rows"]] == ["ladder", *["leave-one-out"] * 5]
    assert {row["compared_with"] for row in record["rows"][1:]} == {"cmt_ladder_5_irffn_nano"}
    rows = list(csv.DictReader(write_ablation_csv(record, tmp_path).read_text().splitlines()))
    by_hand = [int(rows[1][f"correct_seed_{s}"]) - int(rows[0][f"correct_seed_{s}"]) for s in (0, 1)]
    assert float(rows[1]["difference_mean"]) == pytest.approx(sum(by_hand) / 2 / 6)
    svg, png = write_ablation_figures(record, tmp_path)
    assert "without LPU" in "".join(ET.parse(svg).getroot().itertext())
    assert png.read_bytes().startswith(b"\x89PNG")


def test_figure_says_what_it_shows_with_one_seed_and_with_a_failure():
    one = {"mean": 0.8, "low": None, "high": None}
    row = {"part": "ladder", "gmacs": 4.0, "difference": None, "num_images": 10, "correct": {"0": 8}, "top1": one}
    rows = [{**row, "key": "cmt_ladder_0_deit"}, {**row, "key": "cmt_ladder_1_stem"},
            {**row, "key": "cmt_ladder_2_stages", "top1": None}]  # fmt: skip
    record = {"rows": rows, "size": "s", "seeds": [0], "num_train": 5, "num_val": 10, "epochs": 1}
    axes = ablation_figure(record).axes
    assert len(axes) == 1
    assert [text.get_text() for text in axes[0].get_yticklabels()] == ["DeiT\n4.00 GMACs", "+ stem\n4.00 GMACs"]
    assert in_points(one, signed=False) == "one seed"
    assert in_points({"mean": 0.0123, "low": -0.001, "high": 0.0256}) == "+1.23 (-0.10 to +2.56)"
    assert label({"key": "vit_nano"}) == "vit_nano"
