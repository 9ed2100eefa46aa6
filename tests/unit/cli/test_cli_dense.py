"""What is settled for annotated images where no recipe is named, and found again when the run is resumed."""

import pytest

from cmtvision.cli.dense import _sized
from cmtvision.cli.resuming import recipe_there
from cmtvision.data import write_sample_scenes
from cmtvision.detection.task import DETECTION
from cmtvision.errors import ConfigError
from cmtvision.recipe import dump_recipe, load_recipe


@pytest.mark.parametrize(
    ("settings", "options", "size"),
    [
        ([], {"anchor_scale": 0.5}, 128),
        (["model.options.fpn_width=128"], {"anchor_scale": 0.5, "fpn_width": 128}, 128),
        (["model.options.anchor_scale=0.25"], {"anchor_scale": 0.25}, 128),
        (["model.options={fpn_width: 64}"], {"fpn_width": 64}, 128),
        (["scene.size=[256,256]"], {"anchor_scale": 0.5}, 256),
    ],
)
def test_what_is_set_leaves_the_rest_chosen(tmp_path, settings, options, size):
    write_sample_scenes(tmp_path / "scenes", "detection", scenes=6, size=128)
    recipe, index = _sized(DETECTION, load_recipe("detect", settings), str(tmp_path / "scenes"), "detect", settings)
    assert recipe.model.options == options
    assert recipe.scene.size == (size, size)
    assert len(index.samples) == 6


def test_resume_auto_keeps_the_options_that_were_chosen_beside_the_given_ones(tmp_path):
    stored = load_recipe("detect", ["model.options.anchor_scale=0.5", "model.options.fpn_width=32"])
    (tmp_path / "recipe.yaml").write_text(dump_recipe(stored))
    assert recipe_there(tmp_path, None, ["model.options.fpn_width=32"], None, "detect") == stored
    for other in ("model.options.fpn_width=64", "model.options={fpn_width: 32}"):
        with pytest.raises(ConfigError, match=r"model\.options is"):
            recipe_there(tmp_path, None, [other], None, "detect")
    with pytest.raises(ConfigError, match=r"model\.options is"):
        recipe_there(tmp_path, "detect", ["model.options.fpn_width=32"], None)
