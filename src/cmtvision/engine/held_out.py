"""The images that a choice between recipes may use: training images, a part of them held out."""

from dataclasses import replace
from pathlib import Path

from cmtvision.data import DatasetIndex, read_dataset
from cmtvision.data.listing.splits import held_out
from cmtvision.errors import ConfigError
from cmtvision.recipe import Recipe
from cmtvision.recipe.other_tasks import check_no_scene


def read_photos(recipe: Recipe, data: str | Path, verify: bool = True) -> DatasetIndex:
    """The list of a data set's photos, read and split as the recipe's data section says; see ``read_dataset``.

    Raises:
        ConfigError: the recipe is that of a detector or segmenter.
        DataError: data that cannot be used.
    """
    check_no_scene(recipe)
    section = recipe.data
    return read_dataset(
        data,
        val_fraction=section.val_fraction,
        split_seed=section.split_seed,
        verify=verify,
        max_pixels=section.max_pixels,
        max_bytes=section.max_bytes,
        multi_label=section.multi_label,
        image_column=section.image_column,
        label_column=section.label_column,
    )


def held_out_of_training(index: DatasetIndex, recipe: Recipe) -> DatasetIndex:
    """The same index, with a share (``data.val_fraction``) of its training photos held out by seed in place of ``val``.

    Data that the reader split by seed has been split so already. Where the data has a validation part itself, that is
    left out altogether: whoever chooses by it can no longer measure with it. The test part stays what it is.

    Raises:
        ConfigError: nothing may be held out, or the photos are too few for it.
    """
    if index.split_source == "seeded" and index.val:
        return index
    fraction = recipe.data.val_fraction
    if not fraction:
        raise ConfigError("data.val_fraction: got 0, expected a share of the training photos to compare trials on")
    samples = index.train
    names, labels = [index.relative(one.path) for one in samples], [one.labels or (one.label,) for one in samples]
    chosen = held_out(names, labels, fraction, recipe.data.split_seed)
    val = [sample for sample, out in zip(samples, chosen, strict=True) if out]
    train = [sample for sample, out in zip(samples, chosen, strict=True) if not out]
    if not val:
        raise ConfigError(f"{index.root}: too few training photos to hold some out; give two a class at least")
    return replace(index, train=sorted(train), val=sorted(val), split_source="seeded")
