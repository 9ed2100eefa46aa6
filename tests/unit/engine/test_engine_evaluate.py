"""Exact counts, checked against a loop over the predictor's own answers."""

import csv
import json
import shutil

import pytest
from engine_photos import CLASSES, TINY, write_photos

import cmtvision
from cmtvision.deploy.quantizing.calibration import read_photos as calibration_photos
from cmtvision.deploy.sample_images import of_the_run
from cmtvision.engine import evaluate, fit
from cmtvision.engine.held_out import read_photos
from cmtvision.errors import CheckpointError, DataError
from cmtvision.recipe import load_recipe
from cmtvision.report import write_report


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    photos = write_photos(folder / "shapes")
    fit(load_recipe("demo", [*TINY]), photos, folder / "run")
    return folder / "run", photos


@pytest.mark.parametrize("batch_size", [1, 5, 128])
def test_counts_equal_one_prediction_after_another(run, batch_size):
    folder, photos = run
    result = evaluate(folder, photos, split="all", batch_size=batch_size, workers=0)
    predictor = cmtvision.load(folder)
    files = sorted(photos.rglob("*.png"))
    answers = [predictor.predict([file])[0] for file in files]
    right = sum(answer.label == file.parent.name for answer, file in zip(answers, files, strict=True))
    assert (result.num_images, result.top1_correct) == (48, right)
    assert result.top5_correct == 48  # three classes
    assert result.confusion.sum() == 48
    assert [score.images for score in result.per_class()] == [16, 16, 16]
    assert result.top1 == right / 48
    assert json.loads(json.dumps(result.to_dict()))["top1_correct"] == right


def test_a_runs_own_data_is_evaluated_on_the_split_of_that_run(run):
    folder, photos = run
    assert evaluate(folder, photos).num_images == 12
    assert evaluate(folder, photos, split="train").num_images == 36
    stored = json.loads((folder / "evaluation.json").read_text())
    assert evaluate(folder, photos).confusion.tolist() == stored["confusion"]


def test_other_data_without_a_held_out_part_is_evaluated_whole_and_says_so(run, tmp_path):
    folder, _ = run
    other = write_photos(tmp_path / "other", per_class=4, seed=9)
    result = evaluate(folder, other)
    assert (result.split, result.num_images) == ("all", 12)


def test_photos_that_were_trained_on_are_never_counted_as_held_out(run, tmp_path):
    folder, photos = run
    stored = json.loads((folder / "evaluation.json").read_text())
    copy = shutil.copytree(photos, tmp_path / "a:copy")
    found = evaluate(folder, copy)
    assert (found.split, found.num_images, found.notes) == ("val", 12, [])
    assert found.confusion.tolist() == stored["confusion"]
    for part, wanted in (("train", 36), ("all", 48)):
        labelled = evaluate(folder, copy, split=part)
        assert labelled.num_images == wanted
        assert labelled.to_dict()["notes"] == [
            "the run trained on 36 of these photos: no measure of how it does on new ones"
        ]
    rows = [row for row in csv.DictReader((folder / "split.csv").read_text().splitlines()) if row["split"] == "val"]
    for row in rows:
        (copy / row["path"]).unlink()
    with pytest.raises(DataError, match=r"a:copy: the run trained on all 36 of these photos.*--split train"):
        evaluate(folder, copy)
    assert evaluate(folder, copy, split="train").num_images == 36


def test_a_model_without_its_run_files_refuses_the_data_that_it_was_trained_on(run, tmp_path):
    folder, photos = run
    for name in ("model.json", "model.safetensors"):
        shutil.copy(folder / name, tmp_path)
    with pytest.raises(DataError, match=r"not on record in .*no split\.csv"):
        evaluate(tmp_path, photos)
    assert evaluate(tmp_path, photos, split="all").num_images == 48


def test_a_class_the_model_does_not_know_is_an_error(run, tmp_path):
    folder, _ = run
    other = write_photos(tmp_path / "other", per_class=2)
    (other / CLASSES[0]).rename(other / "zebra")
    with pytest.raises(DataError, match="zebra"):
        evaluate(folder, other)


def test_what_is_no_run_is_an_error(run, tmp_path):
    with pytest.raises(CheckpointError, match=r"model\.json"):
        evaluate(tmp_path, run[1])


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A run on data with train/ and test/, whose test photos cannot be read any more once they are listed."""
    root = tmp_path_factory.mktemp("parts")
    for part, per_class in (("train", 32), ("test", 8)):
        write_photos(root / "data" / part, per_class, seed=per_class)
    recipe = load_recipe("demo", [*TINY, "schedule.epochs=1", "schedule.warmup_epochs=0"])
    index = read_photos(recipe, root / "data")
    kept = {sample.path: sample.path.read_bytes() for sample in index.test}
    for file in kept:
        file.write_bytes(b"not to be looked at")
    result = fit(recipe, root / "data", root / "run", index=index)
    write_report(root / "run")
    for file, content in kept.items():
        file.write_bytes(content)
    assert result.num_test == 24
    return root / "run", root / "data"


def test_test_photos_are_looked_at_only_when_asked_for(parts):
    folder, data = parts
    run = json.loads((folder / "run.json").read_text())
    assert (run["num_train"] + run["num_val"], run["num_test"], run["split_source"]) == (96, 24, "seeded")
    found = {split: evaluate(folder, data, split=split, workers=0) for split in ("val", "train", "test", "all")}
    assert {split: one.split for split, one in found.items()} == {split: split for split in found}
    counts = [found[split].num_images for split in ("val", "train", "test", "all")]
    assert counts == [run["num_val"], run["num_train"], 24, 120]
    assert all("/test/" in str(photo.path) for photo in found["test"].predictions)
    assert not any("/test/" in str(photo.path) for photo in found["val"].predictions)


def test_test_photos_alone_are_those_that_are_meant(parts, tmp_path):
    folder, data = parts
    shutil.copytree(data / "test", tmp_path / "copy" / "test")
    alone = evaluate(folder, tmp_path / "copy")
    assert (alone.split, alone.num_images) == ("test", 24)
    assert evaluate(folder, tmp_path / "copy", split="test").to_dict() == alone.to_dict()
    assert evaluate(folder, data / "test").split == "all"
    with pytest.raises(DataError, match=r"no photos for train, but 24 for test; choose one of these with --split"):
        evaluate(folder, tmp_path / "copy", split="train")


def test_other_data_with_train_and_test_is_not_guessed_at(parts, tmp_path):
    folder, _ = parts
    for part in ("train", "test"):
        write_photos(tmp_path / "other" / part, per_class=3, seed=9)
    for file in list((tmp_path / "other").rglob("*.png")):
        file.rename(file.with_name(f"other-{file.name}"))
    with pytest.raises(DataError, match=r"no photos for val, but 9 for train and 9 for test; .* with --split"):
        evaluate(folder, tmp_path / "other")
    assert evaluate(folder, tmp_path / "other", split="test").num_images == 9


def test_a_class_without_photos_does_not_stop_an_evaluation(parts, tmp_path):
    folder, data = parts
    shutil.copytree(data / "test", tmp_path / "photos")
    for file in (tmp_path / "photos" / CLASSES[1]).iterdir():
        file.unlink()
    result = evaluate(folder, tmp_path / "photos")
    assert [score.images for score in result.per_class()] == [8, 0, 8]
    assert [(item.path.name, item.reason) for item in result.skipped] == [(CLASSES[1], "no usable image in this class")]


def test_neither_exports_nor_quantisation_look_at_test_photos(parts, tmp_path):
    folder, data = parts
    shown = of_the_run(folder, 100)
    assert shown is not None
    assert not any("/test/" in str(path) for path in shown)
    predictor = cmtvision.load(folder)
    for run, photos in ((folder, None), (None, data)):
        both = calibration_photos(run, photos, predictor.classes, predictor.inputs, calibration=32, seed=243)
        assert all(part.sources and not any("/test/" in str(path) for path in part.sources) for part in both)
    shutil.copytree(data / "test", tmp_path / "only" / "test")
    shutil.copytree(data / "train", tmp_path / "only" / "val")
    with pytest.raises(DataError, match="no photos to calibrate with, only ones held out"):
        calibration_photos(None, tmp_path / "only", predictor.classes, predictor.inputs, calibration=32)
