"""Settings that only another task reads. Nothing would come of them, so a recipe that has one is refused by name."""

from functools import cache
from typing import Any

from cmtvision.errors import ConfigError
from cmtvision.recipe.load import load_recipe
from cmtvision.recipe.schema import AugmentSection, DistillSection, LossSection, Recipe

_OF_CLASSIFIERS = {
    "distill": tuple(DistillSection.model_fields),
    "augment": tuple(AugmentSection.model_fields),
    "data": ("multi_label", "class_balance", "cache", "shrink", "image_column", "label_column", "shard_window"),
    "loss": tuple(LossSection.model_fields),
    "preprocess": ("crop_pct",),
    "model": ("use_ema",),
    "train": ("eval_batch_size",),
}
_INSTEAD = {
    "augment.hflip": "scene.hflip",
    "augment.scale": "scene.scale",
    "augment.color_jitter": "scene.photometric",
    "augment.auto_augment": "scene.photometric",
    "data.shrink": "scene.size",
    "preprocess.crop_pct": "scene.eval_short_side",
}
_INSTEAD_OF_SCENE = {
    "size": "model.img_size",
    "scale": "augment.scale",
    "hflip": "augment.hflip",
    "photometric": "augment.color_jitter",
    "eval_short_side": "model.img_size",
}


def check_no_classifier_settings(recipe: Recipe) -> None:
    """Refuse the recipe of a detector or segmenter that sets what is for classifiers.

    The sections are there in every recipe, so what counts is a value unlike that of the recipe 'default', the base of
    the others, or unlike the schema's in a recipe without a base.

    Raises:
        ConfigError: with the setting that is meant, where there is one.
    """
    values = _values(recipe)
    unlike = min(([key for key in values if values[key] != base[key]] for base in _bases()), key=len)
    if unlike:
        instead = f"set {_INSTEAD[unlike[0]]}" if unlike[0] in _INSTEAD else "leave it out"
        raise ConfigError(f"{unlike[0]}: is for classifiers, no detector or segmenter reads it; {instead}")


def check_no_scene(recipe: Recipe) -> None:
    """Refuse the recipe of a classifier that has the section ``scene``.

    Raises:
        ConfigError: with the setting that is meant, where there is one.
    """
    if recipe.scene is None:
        return
    given = [key for key in type(recipe.scene).model_fields if key in recipe.scene.model_fields_set]
    key = given[0] if given else "size"
    instead = f"set {_INSTEAD_OF_SCENE[key]}, or train" if key in _INSTEAD_OF_SCENE else "train"
    raise ConfigError(
        f"scene.{key}: is for detectors and segmenters; {instead} with `cmtvision detect train` or "
        "`cmtvision segment train`"
    )


def _values(recipe: Recipe) -> dict[str, Any]:
    return {
        f"{section}.{name}": getattr(getattr(recipe, section), name)
        for section, names in _OF_CLASSIFIERS.items()
        for name in names
    }


@cache
def _bases() -> tuple[dict[str, Any], ...]:
    return _values(load_recipe("default")), _values(Recipe())
