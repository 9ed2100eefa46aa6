"""This code beside a release: the same tensors, logits, losses and words, and what the release wrote still opens.

What is compared was written by ``record_release.py`` with the code of that release; see there.
"""

import json
import math
import shutil

import numpy as np
import pytest
import record_release as release
import torch

import cmtvision
from cmtvision.data import read_dataset
from cmtvision.recipe import load_recipe
from warm_process import WarmProcess

RECORDED = json.loads(release.FIGURES.read_text(encoding="utf-8"))
WARM = WarmProcess()
FILES = release.FILES


@pytest.mark.parametrize("name", release.NETWORKS)
def test_networks_have_the_same_tensors_and_logits(name):
    compare(release.network(name), RECORDED["networks"][name])


@pytest.mark.parametrize("name", release.OPTIONS)
def test_options_make_the_same_networks(name):
    compare(release.network("cmt_nano", **release.OPTIONS[name]), RECORDED["networks"][f"cmt_nano, {name}"])


def compare(found, recorded):
    logits, expected = found.pop("logits"), recorded["logits"]
    assert found == {key: value for key, value in recorded.items() if key != "logits"}
    assert np.allclose(logits, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize("case", RECORDED["losses"])
def test_fifty_seeded_steps_lose_the_same(case, tmp_path):
    name, _, precision = case.partition(" ")
    losses = release.train(FILES / "photos", tmp_path / "run", precision or "fp32", name)
    recorded = RECORDED["losses"][case]
    assert len(losses) == len(recorded)
    # another processor adds in another order, and 50 steps make much of it
    assert np.allclose(losses[:5], recorded[:5], rtol=1e-3 if not precision else 2e-2)
    assert np.allclose(losses, recorded, rtol=0.05 if not precision else 0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", release.COMMANDS)
def test_commands_say_the_same(name, tmp_path):
    places = {"RUN": FILES / "run", "ONNX": FILES / "onnx", "PHOTOS": FILES / "photos"}
    found = release.said(
        release.COMMANDS[name], places, tmp_path, lambda words, cwd: WARM.run(words, cwd, b"", None, 300)
    )
    recorded = RECORDED["commands"][name]
    if name == "models":  # the list may grow; what was in it stays, in its order
        found["out"] = [row for row in found["out"] if row in recorded["out"]]
    alike(found, recorded)


def alike(found, recorded):
    """The same JSON, numbers to four digits."""
    if isinstance(recorded, dict):
        assert found.keys() == recorded.keys()
        for key, value in recorded.items():
            alike(found[key], value)
    elif isinstance(recorded, list):
        assert len(found) == len(recorded)
        for one, other in zip(found, recorded, strict=True):
            alike(one, other)
    elif isinstance(recorded, float):
        assert math.isclose(found, recorded, rel_tol=1e-4, abs_tol=1e-6)
    else:
        assert found == recorded


@pytest.mark.parametrize("kind", ["run", "onnx", "openvino", "bundle"])
def test_what_the_release_wrote_opens_and_answers_alike(kind):
    photos = sorted((FILES / "photos").rglob("*.png"))[::5]
    answers = cmtvision.load(FILES / kind).logits(photos)
    expected = cmtvision.load(FILES / "run").logits(photos)
    assert torch.allclose(answers, expected, atol=1e-4)


def test_shards_of_the_release_are_read():
    index = read_dataset(FILES / "shards")
    assert (index.classes, len(index.train) + len(index.val)) == (list(release.CLASSES), 24)


@pytest.mark.slow
def test_a_run_of_the_release_goes_on(tmp_path):
    shutil.copytree(FILES / "run", tmp_path / "run")
    recipe = load_recipe(tmp_path / "run" / "recipe.yaml")
    result = cmtvision.fit(recipe, FILES / "photos", tmp_path / "run", resume=True)
    assert len(result.rows) == recipe.schedule.epochs
