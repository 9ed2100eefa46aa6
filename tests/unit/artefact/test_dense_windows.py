"""Windows over a large image: they are of its own pixels, and their probabilities are averaged where they overlap."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from cmtvision.artefact.card import Card
from cmtvision.artefact.dense import SegmentationPredictor, class_map
from cmtvision.artefact.run.names import RECIPE_FILE
from cmtvision.data import Preprocess
from cmtvision.errors import ConfigError
from cmtvision.recipe import dump_recipe, load_recipe
from cmtvision.segmentation.task import SEGMENTATION

CLASSES = ["background", "a", "b"]


class Uneven:
    """Answers that depend on where a pixel stands in its window, so that averages count."""

    num_classes = 3

    def __init__(self):
        self.seen = []

    def __call__(self, images):
        self.seen.append(tuple(images.shape[2:]))
        height, width = images.shape[2:]
        y, x = torch.meshgrid(torch.linspace(0, 3, height), torch.linspace(0, 3, width), indexing="ij")
        return torch.stack([images[0, 0] + y, images[0, 1] + x, images[0, 2] + 1.5])[None]


def predictor(network):
    preprocess = Preprocess((32, 32), 1.0, "bilinear", (0.5,) * 3, (0.3,) * 3)
    return SegmentationPredictor(
        Card("cmt_nano_fpn", {}, CLASSES, preprocess, task="segmentation", sides=(32, None)), network
    )


def averaged(network, image, window, step):
    """The same written plainly: all scores in memory, and how often each pixel was seen."""
    height, width = image.shape[1:]
    total, times = torch.zeros(3, height, width), torch.zeros(height, width)
    for top in range(0, height - window + 1, step):
        for left in range(0, width - window + 1, step):
            part = image[:, top : top + window, left : left + window]
            total[:, top : top + window, left : left + window] += network(part[None])[0].softmax(dim=0)
            times[top : top + window, left : left + window] += 1
    return (total / times).argmax(dim=0).numpy()


def photo(height, width):
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


def test_the_scores_of_windows_are_averaged():
    image = torch.randn(3, 128, 96, generator=torch.Generator().manual_seed(0))
    found = class_map(Uneven(), image, (128, 96), window=32)
    assert np.array_equal(found, averaged(Uneven(), image, 32, 16))
    assert len(np.unique(found)) == 3


@pytest.mark.parametrize("size", [(20, 100), (100, 20), (20, 20), (33, 65)])
def test_images_smaller_than_a_window_and_odd_ones_are_seen_whole(size):
    network = Uneven()
    found = class_map(network, torch.zeros(3, *size), size, window=32)
    assert found.shape == size
    assert max(seen[0] for seen in network.seen) == min(size[0], 32)


def test_a_large_image_is_not_resized_before_it_is_looked_at_in_windows():
    network = Uneven()
    opened = predictor(network)
    assert opened.predict(photo(300, 400), window=64)[0].shape == (300, 400)
    assert set(network.seen) == {(64, 64)}
    assert len(network.seen) == 9 * 12
    network.seen.clear()
    opened.predict(photo(300, 400))
    assert network.seen == [(32, 43)]


def test_an_evaluation_in_windows_sees_what_a_prediction_sees(tmp_path):
    opened = predictor(Uneven())
    for number in range(2):
        for kind in ("images", "masks"):
            (tmp_path / "data" / "val" / kind).mkdir(parents=True, exist_ok=True)
            (tmp_path / "data" / "train" / kind).mkdir(parents=True, exist_ok=True)
        for part in ("train", "val"):
            photo(90, 120).save(tmp_path / "data" / part / "images" / f"{number}.png")
            mask = opened.predict(photo(90, 120), window=48)[0].astype(np.uint8)
            Image.fromarray(mask).save(tmp_path / "data" / part / "masks" / f"{number}.png")
    (tmp_path / "data" / "classes.txt").write_text("\n".join(CLASSES))
    (tmp_path / RECIPE_FILE).write_text(dump_recipe(load_recipe("segment")))
    found = SEGMENTATION.measure(opened, tmp_path, tmp_path / "data", workers=0, window=48)
    assert found.figures.pixel_accuracy == 1
    assert SEGMENTATION.measure(opened, tmp_path, tmp_path / "data", workers=0).figures.pixel_accuracy < 1


def test_windows_that_do_not_fit_are_refused():
    opened = predictor(Uneven())
    with pytest.raises(ConfigError, match="window: got 16, expected at least 32 pixels"):
        opened.predict(photo(64, 64), window=16)
    opened.card = SimpleNamespace(export=SimpleNamespace(img_size=(64, 96)))
    with pytest.raises(ConfigError, match="window: got 96, expected 32 to 64 pixels, which this export takes"):
        opened.inputs_for(96)
