"""What is chosen for annotated images where nobody named a recipe, and what is refused of one."""

import sys
from types import SimpleNamespace

import pytest

from cmtvision.detection.task import DETECTION
from cmtvision.engine.dense.choose import settings_for
from cmtvision.errors import ConfigError
from cmtvision.recipe import load_recipe
from cmtvision.segmentation.task import SEGMENTATION


@pytest.mark.parametrize(
    ("size", "side", "longest"),
    [((128, 128), 128, 213), ((180, 240), 192, 320), ((480, 640), 480, 800), ((9, 9), 64, 107)],
)
def test_small_images_are_not_enlarged(size, side, longest):
    index = SimpleNamespace(train=[SimpleNamespace(size=size)] * 3)
    chosen = settings_for(index, load_recipe("segment"))
    assert chosen == {"scene.size": [side, side], "scene.eval_short_side": side, "scene.eval_longest": longest}
    anchors = settings_for(index, load_recipe("detect")).get("model.options")
    assert anchors == ({"anchor_scale": 0.5} if side <= 256 else None)
    assert "model.options" not in settings_for(index, load_recipe("detect", ["model.name=cmt_ti_fcos"]))


def test_photos_keep_the_size_of_the_recipe():
    index = SimpleNamespace(train=[SimpleNamespace(size=(1200, 800)), SimpleNamespace(size=(600, 800))])
    assert settings_for(index, load_recipe("detect")) == {}


def test_a_missing_library_of_figures_is_named_before_anything_is_read(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(ConfigError, match=r"cmtvision\[detection\]"):
        DETECTION.check(load_recipe("detect"))
    with pytest.raises(ConfigError, match=r"cmtvision\[detection\]"):
        DETECTION.evaluate(tmp_path / "run", tmp_path / "images")
    SEGMENTATION.check(load_recipe("segment"))


@pytest.mark.parametrize("task", [DETECTION, SEGMENTATION])
def test_a_recipe_is_checked_before_the_data_is_read(task, tmp_path):
    name = {"detection": "detect", "segmentation": "segment"}[task.kind]
    with pytest.raises(ConfigError, match=r"set scene\.hflip"):
        task.read(load_recipe(name, ["augment.hflip=0"]), tmp_path / "gone")
    with pytest.raises(ConfigError, match="give a number"):
        task.read(load_recipe(name, ["train.batch_size=auto"]), tmp_path / "gone")
