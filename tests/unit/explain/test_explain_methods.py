"""Explanations against independent code: captum, matrices written out, kernels applied by hand."""

import pytest
import timm
import torch
import torch.nn.functional as F
from captum.attr import IntegratedGradients as CaptumGradients
from captum.attr import LayerGradCam
from torch import nn

from cmtvision.errors import ConfigError
from cmtvision.explain import (
    attention_maps,
    attention_rollout,
    grad_cam,
    hires_cam,
    integrated_gradients,
    local_perception,
    position_bias,
    receptive_field,
)
from cmtvision.explain.grad_cam import default_stage
from cmtvision.explain.rollout import spread
from cmtvision.models import create_model


@pytest.fixture
def network():
    """A cmt_nano that has left its initial values, where biases are 0 and a black image gives nothing."""
    model = create_model("cmt_nano", num_classes=5).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_grad_cam_equals_captums(network, images, stage):
    classes = torch.tensor([1, 3])
    theirs = LayerGradCam(network, network.stages[stage - 1]).attribute(images, target=classes, relu_attributions=True)
    ours = grad_cam(network, images, classes, stage)
    assert ours.shape == (2, 16 >> stage, 16 >> stage)
    assert ours.max() > 0
    torch.testing.assert_close(ours, theirs[:, 0].detach(), atol=1e-4, rtol=1e-4)


def test_hires_cam_is_grad_cam_where_the_mean_is_all_that_counts(network, images):
    """After the last stage of a network that ends in pooling and a linear layer, every place has the same gradient."""
    network.final = nn.Identity()
    network.head = nn.Linear(network.stages[3].blocks[0].lpu.conv.in_channels, 5)
    large = F.interpolate(images, size=64)  # 2 x 2 places in the last stage
    torch.testing.assert_close(hires_cam(network, large, 0), grad_cam(network, large, 0))


def test_every_map_of_a_batch_is_the_image_s_own(network, images):
    both = grad_cam(network, images, stage=2)
    torch.testing.assert_close(both[1:], grad_cam(network, images[1:], stage=2))


def test_stages_of_peers_and_of_timm_are_maps_and_class_tokens_are_named(images):
    for name, places in (("cmt_ladder_0_deit_nano", 4), ("ceit_nano", 4), ("cvt_nano", 4)):
        model = create_model(name, num_classes=5)
        stage = default_stage(model, images)
        assert grad_cam(model, images, stage=stage).shape == (2, places, places)
        with pytest.raises(ConfigError, match="class token"):
            grad_cam(model, images)
    channels_last = timm.create_model("swin_tiny_patch4_window7_224", img_size=32, window_size=4, depths=(1, 1, 1, 1))
    assert grad_cam(channels_last, images, stage=1).shape == (2, 8, 8)


def test_a_network_keeps_its_mode_and_needs_no_trainable_weights(network, images):
    expected = grad_cam(network, images, 0, 2)
    network.train()
    network.stages[0].eval()
    network.requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    torch.testing.assert_close(grad_cam(network, images, 0, 2), expected)
    assert network.training
    assert not network.stages[0].training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_the_default_stage_says_where(network, images):
    assert default_stage(network, images) == 2
    assert default_stage(network, F.interpolate(images, size=128)) == 4


def test_integrated_gradients_equal_captums_and_are_complete(network, images):
    classes = torch.tensor([0, 4])
    baseline = torch.full((3, 32, 32), 0.3)
    theirs = CaptumGradients(network).attribute(images, baseline.expand_as(images), target=classes, n_steps=96)
    ours = integrated_gradients(network, images, classes, baseline, steps=96)
    torch.testing.assert_close(ours.attributions, theirs.float(), atol=1e-4, rtol=1e-3)
    assert ours.error.max() < 0.01
    with torch.no_grad():
        difference = network(images) - network(baseline[None])
    torch.testing.assert_close(ours.difference, difference[[0, 1], classes])


def test_a_coarse_sum_admits_its_error(network, images):
    found = integrated_gradients(network, images, steps=2)
    assert found.error.min() > 0.01


def test_attention_is_what_the_explicit_path_computes(network, images):
    """The matrices, applied to the values, give what the module gives."""
    block = network.stages[0].blocks[0]
    seen = {}
    block.lmhsa.v.register_forward_hook(lambda _m, _i, output: seen.update(v=output))
    block.lmhsa.proj.register_forward_hook(lambda _m, inputs, _o: seen.update(mixed=inputs[0]))
    layer = attention_maps(network, images)[0]
    heads = layer.weights.shape[1]
    assert layer.weights.shape == (2, heads, 64, 16)
    values = seen["v"].unflatten(2, (heads, -1)).transpose(1, 2)
    mixed = (layer.weights @ values).transpose(1, 2).flatten(2)
    torch.testing.assert_close(mixed, seen["mixed"], atol=1e-5, rtol=1e-4)


def test_rollout_is_the_product_of_matrices_written_out(network, images):
    shares = torch.full((2, 1, 1), 1.0)
    for layer in reversed(attention_maps(network, images)):
        rows, columns = layer.grid
        if shares.shape[2] < rows * columns:
            pooled = torch.zeros(rows * columns // 4, rows * columns)
            for place in range(rows * columns):
                pooled[place // columns // 2 * (columns // 2) + place % columns // 2, place] = 1 / 4
            shares = shares @ pooled
        keys = torch.zeros(layer.weights.shape[3], rows * columns)
        k = layer.kv_stride
        for place in range(rows * columns):
            keys[place // columns // k * layer.key_grid[1] + place % columns // k, place] = 1 / k**2
        full = layer.weights.mean(1) @ keys
        shares = shares @ (0.5 * torch.eye(rows * columns) + 0.5 * full)
    found = attention_rollout(network, images)
    torch.testing.assert_close(found.flatten(1), shares[:, 0], atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(found.sum((1, 2)), torch.ones(2))


def test_a_cell_cut_off_at_the_edge_shares_among_the_positions_that_are_left():
    found = spread(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), 2, (3, 3))
    expected = torch.tensor([[[0.25, 0.25, 1.0], [0.25, 0.25, 1.0], [1.5, 1.5, 4.0]]])
    torch.testing.assert_close(found, expected)


def test_rollout_of_one_place_and_of_an_odd_size(network):
    images = torch.randn(1, 3, 40, 52)
    found = attention_rollout(network, images, stage=1, position=(2, 3))
    assert found.shape == (1, 10, 13)
    assert found[0].flatten().argmax() == 2 * 13 + 3
    torch.testing.assert_close(found.sum(), torch.tensor(1.0))
    torch.testing.assert_close(attention_rollout(network, images).sum(), torch.tensor(1.0))
    with pytest.raises(ConfigError, match="10 rows"):
        attention_rollout(network, images, stage=1, position=(10, 0))


def test_position_bias_is_the_table_without_its_mean(network):
    table = network.stages[0].position_bias.table.detach()[0]
    found = position_bias(network, 1)
    torch.testing.assert_close(found.maps, table - table.mean((3, 4), keepdim=True))
    assert 0.5 < found.spread < 1.5  # drawn with standard deviation 1
    assert position_bias(network, 1, img_size=(64, 48)).maps.shape == (1, 16, 12, 8, 6)
    relative = create_model("cmt_nano", rel_pos="relative")
    assert position_bias(relative, 2, block=2).maps.shape == (2, 4, 4, 4, 4)
    with pytest.raises(ConfigError, match="block 3"):
        position_bias(relative, 2, block=3)
    with pytest.raises(ConfigError, match="without a position bias"):
        position_bias(create_model("cmt_nano", rel_pos="none"))


def test_kernels_with_their_identity_make_the_map_after_of_the_map_before(network, images):
    found = local_perception(network, images, stage=2, block=2)
    unit = network.stages[1].blocks[1].lpu.conv
    by_hand = F.conv2d(found.before, found.kernels[:, None], unit.bias, padding=1, groups=len(found.kernels))
    torch.testing.assert_close(found.after, by_hand, atol=1e-5, rtol=1e-4)
    assert found.change.shape == (64,)


def test_the_receptive_field_of_a_convolution_is_its_kernel():
    class Convolution(nn.Module):
        feature_info = ({"num_chs": 1, "reduction": 1, "module": "conv"},)

        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, x):
            return self.conv(x).mean((2, 3))

    model = Convolution()
    field = receptive_field(model, torch.randn(1, 1, 9, 9))
    kernel = model.conv.weight[0, 0].detach().abs()
    torch.testing.assert_close(field.shares[3:6, 3:6], kernel / kernel.sum())
    assert field.shares.count_nonzero() == 9
    assert field.centre == (4.5, 4.5)
    assert (field.side(0.999), field.side(0.001)) == (3, 1)


def test_later_stages_see_more(network, images):
    sides = [receptive_field(network, images, stage).side() for stage in (1, 2, 3)]
    assert sides == sorted(sides)
    assert sides[0] < sides[2] <= 32


@pytest.mark.parametrize("stage", [0, 5, -5])
def test_stages_that_are_not_there_are_refused(network, images, stage):
    for method in (grad_cam, receptive_field, local_perception, attention_rollout):
        with pytest.raises(ConfigError, match="stages 1 to 4"):
            method(network, images, stage=stage)
    with pytest.raises(ConfigError, match="stages 1 to 4"):
        position_bias(network, stage)


def test_a_class_that_is_not_there_is_refused(network, images):
    with pytest.raises(ConfigError, match="5 classes"):
        grad_cam(network, images, 5)
