"""Exact counts, checked against a loop over the predictor's own answers."""

import json

import pytest
from engine_photos import CLASSES, TINY, write_photos

import cmtvision
from cmtvision.engine import evaluate, fit
from cmtvision.errors import CheckpointError, DataError
from cmtvision.recipe import load_recipe


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


def test_a_class_the_model_does_not_know_is_an_error(run, tmp_path):
    folder, _ = run
    other = write_photos(tmp_path / "other", per_class=2)
    (other / CLASSES[0]).rename(other / "zebra")
    with pytest.raises(DataError, match="zebra"):
        evaluate(folder, other)


def test_what_is_no_run_is_an_error(run, tmp_path):
    with pytest.raises(CheckpointError, match=r"model\.json"):
        evaluate(tmp_path, run[1])
