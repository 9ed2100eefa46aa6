"""Settings that only another task reads are refused by name, and what the built-in recipes say is not."""

import pytest

from cmtvision.data import write_sample_data
from cmtvision.engine.held_out import read_photos
from cmtvision.errors import ConfigError
from cmtvision.recipe import Recipe, dump_recipe, list_recipes, load_recipe
from cmtvision.recipe.other_tasks import check_no_classifier_settings, check_no_scene


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("augment.hflip=0", "set scene.hflip"),
        ("augment.scale=[0.9,1.0]", "set scene.scale"),
        ("augment.vflip=0.5", "leave it out"),
        ("augment.mixup=0.8", "leave it out"),  # what a recipe without a base has, but this one has a base
        ("augment.mixup=0.5", "leave it out"),
        ("augment.random_erasing=0.9", "leave it out"),
        ("distill.teacher=resnet18", "leave it out"),
        ("data.cache=true", "leave it out"),
        ("data.shrink=1.5", "set scene.size"),
        ("data.class_balance=loss", "leave it out"),
        ("data.multi_label=true", "leave it out"),
        ("data.image_column=photo", "leave it out"),
        ("data.shard_window=2", "leave it out"),
        ("loss.name=bce", "leave it out"),
        ("preprocess.crop_pct=0.5", "set scene.eval_short_side"),
        ("preprocess.interpolation=bilinear", None),
        ("model.use_ema=false", "leave it out"),
        ("train.eval_batch_size=4", "leave it out"),
        ("data.repeated_aug=2", None),
    ],
)
def test_a_setting_of_classifiers_is_refused_for_a_detector(setting, said):
    recipe = load_recipe("detect", [setting])
    if said is None:
        check_no_classifier_settings(recipe)
        return
    with pytest.raises(ConfigError, match=f"^{setting.partition('=')[0]}: is for classifiers.*{said}"):
        check_no_classifier_settings(recipe)


@pytest.mark.parametrize("name", [name for name in list_recipes() if load_recipe(name).scene is not None])
def test_builtin_recipes_of_detectors_and_segmenters_pass_and_so_do_those_of_their_runs(name, tmp_path):
    recipe = load_recipe(name)
    check_no_classifier_settings(recipe)
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    check_no_classifier_settings(load_recipe(tmp_path / "recipe.yaml"))
    with pytest.raises(ConfigError, match=r"^scene\.size: is for detectors"):
        check_no_scene(recipe)


def test_a_recipe_of_ones_own_without_a_base_passes():
    own = {"model": {"name": "cmt_ti_fpn"}, "scene": {}}
    check_no_classifier_settings(Recipe.model_validate(own))
    with pytest.raises(ConfigError, match=r"^augment\.mixup"):
        check_no_classifier_settings(Recipe.model_validate(own | {"augment": {"mixup": 0.1}}))


@pytest.mark.parametrize(
    ("setting", "said"),
    [("scene.hflip=0", "set augment.hflip"), ("scene.short_sides=[64]", "cmtvision detect train")],
)
def test_a_scene_is_refused_for_a_classifier(setting, said, tmp_path):
    with pytest.raises(ConfigError, match=f"^{setting.partition('=')[0]}: is for detectors.*{said}"):
        read_photos(load_recipe("demo", [setting]), write_sample_data(tmp_path / "photos").directory)
    check_no_scene(load_recipe("demo"))
