"""The fused network gives the network's logits, whatever its options, sizes and types."""

import copy
import pickle

import pytest
import timm
import torch

import cmtvision  # noqa: F401  registers the models
from cmtvision.errors import ConfigError
from cmtvision.models.accelerate.fusing.fuse import fuse
from cmtvision.models.accelerate.fusing.fused_layers import FusedConv
from random_weights import randomise

TOLERANCE = 1e-5  # of the largest logit


def network(name="cmt_nano", **options):
    return randomise(timm.create_model(name, **options)).eval()


def difference(fused, model, images):
    """Largest difference of the logits, as a share of the largest float64 logit."""
    with torch.no_grad():
        wanted = copy.deepcopy(model).double()(images.double())
        return ((fused(images) - wanted).abs().max() / wanted.abs().max()).item()


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, (32, 32)),  # the last grid is one cell, whose kernels see nothing but border
        ({}, (45, 71)),  # nothing divides these
        ({"lpu": False, "ffn": "mlp", "norm": "layer", "abs_pos": True}, (33, 64)),
        ({"ffn": "no_shortcut", "rel_pos": "block", "kv_norm": "layer"}, (64, 64)),
        ({"rel_pos": "none", "qkv_bias": False, "global_pool": "max"}, (64, 96)),
        ({"rel_pos": "relative", "head_act_first": True, "in_chans": 1}, (40, 40)),
        ({"num_classes": 0}, (96, 96)),
    ],
)
def test_logits_are_those_of_the_network(options, size, packed):
    model = network(**options)
    images = torch.randn(2, model.in_chans, *size)
    before = copy.deepcopy(model.state_dict())
    assert difference(fuse(model, size, packed=packed), model, images) < TOLERANCE
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_one_fused_network_takes_any_size_in_any_order():
    model = network()
    fused = fuse(model, 64)
    for size in ((64, 64), (32, 32), (50, 70), (64, 64), (33, 33), (96, 32), (40, 40), (64, 64)):
        assert difference(fused, model, torch.randn(2, 3, *size)) < TOLERANCE, size


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["cmt_ti", "cmt_s", pytest.param("cmt_b", marks=pytest.mark.every_size), "cmt_ti_kecam"]
)
def test_the_papers_networks(name):
    model = network(name)
    size = model.img_size
    assert difference(fuse(model), model, torch.randn(1, 3, *size)) < TOLERANCE


def test_a_norm_in_front_of_padding_is_exact_at_the_border():
    conv = torch.nn.Conv2d(4, 6, 3, stride=2, padding=1).double()
    scale, shift = torch.randn(4).double(), torch.randn(4).double()
    layer = FusedConv(conv.weight.detach(), conv.bias.detach(), (scale, shift), stride=2, padding=1)
    for size in ((1, 1), (2, 5), (7, 8), (9, 3)):
        x = torch.randn(2, 4, *size).double()
        wanted = conv(x * scale[:, None, None] + shift[:, None, None])
        found = layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)  # the border's difference is kept in float32


def test_bfloat16_stays_near_and_keeps_the_type_of_the_images():
    model = network()
    images = torch.randn(4, 3, 64, 64)
    fused = fuse(model, 64, dtype=torch.bfloat16)
    assert fused(images).dtype == torch.float32
    plain = copy.deepcopy(model).bfloat16()
    with torch.no_grad():
        lost = (plain(images.bfloat16()).float() - model(images)).abs().max() / model(images).abs().max()
    assert difference(fused, model, images) < 2 * lost.item()


def test_a_head_of_the_users_own_is_copied():
    model = network(num_classes=10)
    model.head = randomise(torch.nn.Sequential(torch.nn.Linear(model.head_hidden_size, 16), torch.nn.Linear(16, 3)))
    assert difference(fuse(model, 32), model, torch.randn(2, 3, 32, 32)) < TOLERANCE
    fuse(model, 32, dtype=torch.bfloat16)
    assert model.head[0].weight.dtype == torch.float32


def test_copies_and_conversions_forget_the_packed_weights_and_agree():
    model = network()
    fused = fuse(model, 32)
    images = torch.randn(1, 3, 32, 32)
    for other in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused)), copy.deepcopy(fused).double().float()):
        assert difference(other, model, images) < TOLERANCE


@pytest.mark.slow
def test_it_compiles_and_exports_without_packing():
    model = network()
    images = torch.randn(2, 3, 32, 32)
    program = torch.export.export(
        fuse(model, 32, packed=False), (images,), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    assert difference(program.module(), model, torch.randn(3, 3, 32, 32)) < TOLERANCE


def test_another_network_is_refused():
    with pytest.raises(ConfigError, match="VisionTransformer is no CMT"):
        fuse(timm.create_model("vit_nano"))
