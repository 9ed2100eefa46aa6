"""An artefact written and opened: the same network, the same answers, and one clear line where something is off."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import cmtvision
from cmtvision.artefact import Artefact, Predictor, read_artefact, write_artefact
from cmtvision.artefact.predictor import pick_device
from cmtvision.data import Preprocess
from cmtvision.errors import CheckpointError, ConfigError, DataError
from cmtvision.weights import read_state_dict, write_safetensors

CONTRACT = Preprocess((32, 32), 1.0, "bicubic", (0.5,) * 3, (0.25,) * 3)


@pytest.fixture
def artefact():
    model = timm.create_model("cmt_nano", num_classes=3, rel_pos="block").eval()
    return Artefact(model, "cmt_nano", {"in_chans": 3, "rel_pos": "block"}, ["a", "b", "<c>"], CONTRACT)


@pytest.fixture
def folder(artefact, tmp_path):
    return write_artefact(tmp_path / "model", artefact)


def photo(seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8))


def test_what_is_opened_answers_as_what_was_written(artefact, folder):
    predictor, original = cmtvision.load(folder), Predictor(artefact)
    images = [photo(i) for i in range(5)]
    assert torch.equal(predictor.logits(images), original.logits(images))
    assert predictor.classes == ["a", "b", "<c>"]
    assert predictor.preprocess == CONTRACT


def test_predictions_are_sorted_and_do_not_depend_on_the_batch(folder):
    predictor = cmtvision.load(folder / "model.json")
    images = [photo(i) for i in range(7)]
    one, many = predictor.predict(images, batch_size=1), predictor.predict(images, batch_size=7)
    for a, b in zip(one, many, strict=True):
        assert a.label == b.label
        assert a.probability == pytest.approx(b.probability, abs=1e-5)
        assert [p for _, p in a.top] == sorted((p for _, p in a.top), reverse=True)
        assert sum(p for _, p in a.top) == pytest.approx(1, abs=1e-5)
    assert len(predictor.predict(images[:1], top_k=2)[0].top) == 2


def test_an_image_that_is_none_is_named(folder, tmp_path):
    (tmp_path / "x.png").write_text("no")
    with pytest.raises(DataError, match=r"x\.png"):
        cmtvision.load(folder).predict([tmp_path / "x.png"])


def damage(folder, **changes):
    card = json.loads((folder / "model.json").read_text())
    card |= changes
    (folder / "model.json").write_text(json.dumps({k: v for k, v in card.items() if v is not ...}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format_version": 99}, "format 99"),
        ({"classes": ...}, "classes"),
        ({"preprocess": {"format_version": 1}}, "preprocess"),
        ({"architecture": "cmt_nanoo"}, "did you mean cmt_nano"),
        ({"architecture": "cmt_ti"}, "does not fit"),
        ({"classes": ["a"]}, "does not fit"),
        ({"arguments": {"wings": 2}}, "wings"),
        ({"task": "detection"}, "task 'detection' in format 1"),
        ({"task": "multi-label"}, "task 'multi-label' in format 1"),
        ({"format_version": 2, "task": ...}, "task 'single-label' in format 2"),
    ],
)
def test_a_card_that_is_off_is_one_clear_line(folder, changes, words):
    damage(folder, **changes)
    with pytest.raises(CheckpointError, match=words) as error:
        read_artefact(folder)
    assert "\n" not in str(error.value)


def test_a_card_without_a_task_has_one_label_a_photo(folder):
    damage(folder, task=...)
    assert json.loads((folder / "model.json").read_text())["format_version"] == 1  # a reader of 0.2 opens it
    assert cmtvision.load(folder).task == "single-label"


def test_a_multi_label_model_says_yes_or_no_to_each_class(artefact, tmp_path):
    several = write_artefact(tmp_path / "several", replace(artefact, task="multi-label"))
    # a reader that knows no task must refuse the file: softmax over these logits would be wrong
    assert json.loads((several / "model.json").read_text())["format_version"] == 2
    predictor = cmtvision.load(several)
    assert predictor.task == read_artefact(several).task == "multi-label"
    logits = torch.tensor([[2.0, -1.0, 0.0], [-3.0, -2.0, -4.0], [1.0, 2.0, 3.0]])
    found = predictor.decide(logits, top_k=2)
    assert [one.labels for one in found] == [["a", "<c>"], [], ["<c>", "b", "a"]]
    assert [one.label for one in found] == ["a", "b", "<c>"]
    assert [name for name, _ in found[0].top] == ["a", "<c>"]
    assert [p for _, p in found[1].top] == pytest.approx([1 / (1 + math.exp(2)), 1 / (1 + math.exp(3))])
    images = [photo(i) for i in range(3)]
    expected = predictor.logits(images).sigmoid().max(dim=1).values.tolist()
    assert [one.probability for one in predictor.predict(images)] == pytest.approx(expected, abs=1e-6)


def test_one_label_is_decided_however_unsure(artefact):
    (found,) = Predictor(artefact).decide(torch.tensor([[0.1, 0.0, 0.0]]), top_k=1)
    assert (found.label, found.labels, len(found.top)) == ("a", ["a"], 1)
    assert found.probability < 0.5


def test_torn_and_missing_files_are_named(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        read_artefact(folder)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        read_artefact(folder)
    (folder / "model.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"model\.json"):
        read_artefact(folder)


def test_weights_survive_a_failed_rewrite(folder, monkeypatch):
    before = read_state_dict(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_safetensors({"a": torch.zeros(1)}, folder / "model.json" / "x.safetensors", {})
    assert read_state_dict(folder / "model.safetensors").keys() == before.keys()


def test_devices_that_are_not_there_are_refused():
    assert pick_device("cpu") == "cpu"
    with pytest.raises(ConfigError, match="tpu"):
        pick_device("tpu")
