"""What is chosen for annotated images where nobody named a recipe."""

from types import SimpleNamespace

import pytest

from cmtvision.engine.dense.choose import settings_for
from cmtvision.recipe import load_recipe


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
