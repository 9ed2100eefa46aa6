"""Maps depend on what was learned, deletion and insertion measure what they say, and files are written as promised."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr
from torch import nn

from cmtvision.errors import ConfigError
from cmtvision.explain import attention_rollout, explain_image, faithfulness, grad_cam, integrated_gradients
from cmtvision.explain.faithfulness import blurred, random_maps
from cmtvision.models import create_model

PARTS = ("head", "final", "stages.3", "stages.2", "stages.1", "stages.0", "stem")


def maps_of(network, images):
    return {
        "grad-cam": grad_cam(network, images, 1, 2),
        "integrated-gradients": integrated_gradients(network, images, 1, steps=8).attributions.sum(1),
        "rollout": attention_rollout(network, images),
    }


def likeness(one, other):
    """Absolute rank correlation; 0 where nothing is left of a map."""
    return abs(spearmanr(one, other).statistic) if one.std() > 0 and other.std() > 0 else 0.0


def test_maps_change_as_weights_are_made_random_from_the_top():
    """Adebayo et al., "Sanity checks for saliency maps", NeurIPS 2018."""
    network = create_model("cmt_nano", num_classes=5).eval()
    fresh = create_model("cmt_nano", num_classes=5)
    images = torch.randn(4, 3, 32, 32)
    before = maps_of(network, images)
    changed = copy.deepcopy(network)
    alike = {name: [] for name in before}
    for part in PARTS:
        changed.get_submodule(part).load_state_dict(fresh.get_submodule(part).state_dict())
        for name, maps in maps_of(changed, images).items():
            pairs = zip(maps.flatten(1), before[name].flatten(1), strict=True)
            alike[name].append(np.mean([likeness(a, b) for a, b in pairs]))
    assert alike["grad-cam"][0] < 0.8  # a map that ignored the classifier would not change
    assert alike["integrated-gradients"][0] < 0.8
    assert alike["rollout"][0] == pytest.approx(1)  # it looks at no class, and says so
    assert all(found[-1] < 0.5 for found in alike.values())


class Corner(nn.Module):
    """Decides by the brightness of the upper left cell of 4 x 4 pixels alone."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(8.0))

    def forward(self, x):
        score = self.scale * x[:, :, :4, :4].mean((1, 2, 3))
        return torch.stack([score, -score], 1)


def test_deletion_and_insertion_know_a_right_map_from_a_wrong_one():
    images = torch.ones(2, 3, 8, 8)
    right = torch.tensor([[3.0, 2.0], [1.0, 0.0]]).expand(2, 2, 2)
    classes = torch.zeros(2, dtype=torch.long)
    best = faithfulness(Corner(), images, classes, right, torch.zeros(1))
    worst = faithfulness(Corner(), images, classes, -right, torch.zeros(1))
    assert best.deletion.shape == (2, 5)
    # the whole image is sure; without the corner it is even; one of four steps, or all four
    torch.testing.assert_close(best.deletion[0], torch.tensor([1, 0.5, 0.5, 0.5, 0.5]), atol=1e-4, rtol=0)
    torch.testing.assert_close(best.insertion[0], torch.tensor([0.5, 1, 1, 1, 1]), atol=1e-4, rtol=0)
    torch.testing.assert_close(worst.deletion_score[0], torch.tensor(1 - 0.5 / 8), atol=1e-4, rtol=0)
    torch.testing.assert_close(worst.insertion_score[0], torch.tensor(0.5 + 0.5 / 8), atol=1e-4, rtol=0)


def test_equal_cells_come_by_chance_and_not_by_where_they_are():
    images = torch.ones(64, 3, 8, 8)
    flat = torch.zeros(64, 2, 2)
    found = faithfulness(Corner(), images, torch.zeros(64, dtype=torch.long), flat, torch.zeros(1))
    first = (found.deletion[:, 1] < 0.9).float().mean()  # of the images that lost the corner first
    assert 0.05 < first < 0.5
    assert random_maps(images, (2, 2), 1).equal(random_maps(images, (2, 2), 1))


def test_a_grid_that_does_not_divide_the_image_is_refused():
    with pytest.raises(ConfigError, match="3 x 3 cells"):
        faithfulness(
            Corner(), torch.ones(1, 3, 8, 8), torch.zeros(1, dtype=torch.long), torch.ones(1, 3, 3), torch.ones(1)
        )


def test_a_blur_keeps_what_is_even_and_the_brightness_of_the_rest():
    torch.testing.assert_close(blurred(torch.full((1, 3, 16, 16), 0.7), 2.0), torch.full((1, 3, 16, 16), 0.7))
    dot = torch.zeros(1, 1, 33, 33)
    dot[0, 0, 16, 16] = 1
    soft = blurred(dot, 2.0)
    assert soft.sum() == pytest.approx(1, abs=1e-4)
    assert soft[0, 0, 16, 16] == pytest.approx(1 / (2 * torch.pi * 4), rel=0.02)


@pytest.fixture
def photo(tmp_path):
    file = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)
    return file


@pytest.mark.parametrize("method", ["hires-cam", "rollout", "position-bias", "lpu", "receptive-field"])
def test_each_method_draws_a_picture(photo, method, tmp_path):
    found = explain_image("cmt_nano", photo, method)
    assert not found.trained
    assert "random weights" in found.remarks[0]
    again = explain_image("cmt_nano", photo, method)
    np.testing.assert_array_equal(found.values, again.values)
    file = found.save(tmp_path / "map.png")
    with Image.open(file) as picture:
        assert min(picture.size) > 400
    with pytest.raises(ConfigError, match="already exists"):
        found.save(file)
    assert found.save(file, overwrite=True) == file


def test_making_a_network_for_its_name_leaves_random_numbers_alone(photo):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    explain_image("cmt_nano", photo)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"method": "gradcam"}, "did you mean grad-cam"),
        ({"method": "rollout", "label": "3"}, "looks at no class"),
        ({"method": "integrated-gradients", "stage": 2}, "whole network"),
        ({"label": "cat"}, "does not know it"),
        ({"model": "resnet10t", "method": "rollout"}, "grad-cam, hires-cam, integrated-gradients, receptive-field do"),
        ({"model": "cmt_nanu"}, "did you mean cmt_nano"),
    ],
)
def test_what_cannot_be_explained_is_told_in_one_line(photo, asked, message):
    with pytest.raises(ConfigError, match=message) as caught:
        explain_image(asked.pop("model", "cmt_nano"), photo, **asked)
    assert "\n" not in str(caught.value)
