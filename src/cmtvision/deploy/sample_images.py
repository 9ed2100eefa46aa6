"""The images a model is compared on: given ones, or the images that its run held out; the same ones each time."""

import random
from collections.abc import Iterable, Sequence
from pathlib import Path

from cmtvision.artefact.card import CARD_FILE, DENSE, Card, model_folder
from cmtvision.artefact.run.data import check_local, data_of, read_annotated_as_the_run, read_run_data
from cmtvision.data import DatasetIndex, ImageSource, open_image
from cmtvision.data.annotations.splits import images_of
from cmtvision.data.listing.class_folders import images_below
from cmtvision.errors import ConfigError, DataError

DEFAULT_NUM_IMAGES = 64


def find_images(images: Sequence[ImageSource] | str | Path) -> list[ImageSource]:
    """Given images unchanged, and all images in given folders and below them, by name.

    Raises:
        DataError: no images found.
    """
    words: Iterable[ImageSource] = [images] if isinstance(images, str | Path) else images
    found: list[ImageSource] = []
    for word in words:
        if not isinstance(word, str | Path) or not Path(word).is_dir():
            found.append(word)
            continue
        inside = images_below(Path(word))
        if not inside:
            raise DataError(f"{word}: no image in this folder or below it")
        found.extend(inside)
    if not found:
        raise DataError("no images: give files or folders of them")
    return found


def choose(images: Sequence[ImageSource], count: int, seed: int = 0) -> list[ImageSource]:
    """``count`` of the images, chosen by a seed, in their order; all of them if there are fewer.

    Raises:
        ConfigError: a count below 1.
    """
    if count < 1:
        raise ConfigError(f"number of images {count}: expected at least 1")
    if len(images) <= count:
        return list(images)
    return [images[place] for place in sorted(random.Random(seed).sample(range(len(images)), count))]


def of_the_run(folder: str | Path, count: int, *, multi_label: bool = False, seed: int = 0) -> list[ImageSource] | None:
    """``count`` of the images that a run held out; None if its data is not on record.

    If it held out none, they are taken from its training images: images set apart for test are not read.

    Raises:
        ConfigError: the data is not there any more, or none of its images can be read; or a count below 1.
    """
    if count < 1:
        raise ConfigError(f"number of images {count}: expected at least 1")
    try:
        index = _held_out(folder, multi_label)
    except DataError as error:
        raise ConfigError(f"{folder}: the run's photos are gone ({error}); name others with --images") from error
    if index is None:
        return None
    paths = [sample.path for sample in index.val or index.train]
    chosen: list[int] = []
    for place in random.Random(seed).sample(range(len(paths)), len(paths)):
        try:
            open_image(paths[place])
        except DataError:
            continue  # damaged images were left out of the run's figures too
        chosen.append(place)
        if len(chosen) == count:
            break
    if not chosen:
        raise ConfigError(f"{index.root}: none of the run's photos can be read; name others with --images")
    return [paths[place] for place in sorted(chosen)]


def _held_out(folder: str | Path, multi_label: bool) -> DatasetIndex | None:
    """The images of a run, whatever its task; None if its data is not on record."""
    card = Card.read(model_folder(folder)) if (model_folder(folder) / CARD_FILE).is_file() else None
    if card is None or card.task not in DENSE:
        return read_run_data(folder, multi_label=multi_label, verify=False)
    data = data_of(folder)
    if data is None:
        return None
    check_local(data)
    return images_of(read_annotated_as_the_run(folder, data, card, verify=False))
