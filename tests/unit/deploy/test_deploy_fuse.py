"""The fused network gives the network's logits, whatever its options, sizes and types."""

import copy
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch

import cmtvision  # noqa: F401  registers the models
from cmtvision.errors import ConfigError
from cmtvision.models.accelerate.fusing.fuse import fuse
from cmtvision.models.accelerate.fusing.fused_layers import FusedConv
from cmtvision.models.accelerate.native.library import VARIABLE
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


def own_lpu(block):
    block.lpu = torch.nn.Sequential(torch.nn.Conv2d(block.lpu.conv.in_channels, block.lpu.conv.in_channels, 1))


def own_act(block):
    block.irffn.act = torch.nn.SiLU()


def own_attention(block):
    block.lmhsa.__class__ = type("Mine", (type(block.lmhsa),), {})


def own_norm(block):
    block.irffn.conv_norm = torch.nn.GroupNorm(1, block.irffn.conv.out_channels)


def dilated(block):
    block.lpu.conv.dilation, block.lpu.conv.padding = (2, 2), (2, 2)


@pytest.mark.parametrize(
    ("replace", "named"),
    [
        (own_lpu, "stages.0.blocks.0.lpu is Sequential"), (own_act, "irffn.act is SiLU"),
        (own_attention, "lmhsa is Mine"), (own_norm, "conv_norm is GroupNorm"), (dilated, "lpu.conv is Conv2d"),
    ],
)  # fmt: skip
def test_a_part_of_the_users_own_is_refused_by_name(replace, named):
    model = network()
    replace(model.stages[0].blocks[0])
    with pytest.raises(ConfigError, match=named):
        fuse(model, 32)


@pytest.mark.parametrize("packed", [True, False])
def test_new_weights_take_effect(packed):
    model, other = network(), randomise(network(), seed=1)
    fused, images = fuse(model, 32, packed=packed), torch.randn(2, 3, 48, 48)
    fused(images)
    fused.load_state_dict(fuse(other, 32, packed=packed).state_dict())
    assert difference(fused, other, images) < TOLERANCE
    assert (fused.stem[0]._packed is not None) == packed


@pytest.mark.parametrize("packed", [True, False])
def test_a_gradient_reaches_the_image_also_after_inference(packed):
    model = network()
    fused = fuse(model, 32, packed=packed)
    images = torch.randn(2, 3, 64, 48)
    with torch.inference_mode():
        fused(images)
    asked, expected = images.clone().requires_grad_(), images.clone().requires_grad_()
    fused(asked).square().sum().backward()
    model(expected).square().sum().backward()
    torch.testing.assert_close(asked.grad, expected.grad, rtol=1e-3, atol=1e-3 * expected.grad.abs().max().item())


def test_threads_may_ask_for_more_sizes_than_are_kept():
    fused = fuse(network(), 32)
    conv = next(m for m in fused.modules() if isinstance(m, FusedConv) and m.taps is not None and m.padding)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda n: conv._border(conv.taps, 4 + n % 6, 5), range(3000)))
    finally:
        sys.setswitchinterval(before)


def test_a_saved_network_needs_no_compiler(tmp_path):
    torch.save(fuse(network(), 32), tmp_path / "fused.pt")
    code = (
        "import sys, torch, cmtvision\n"
        "fused = torch.load(sys.argv[1], weights_only=False)\n"
        "print(tuple(fused(torch.randn(1, 3, 32, 32)).shape))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "fused.pt")],
        env={**os.environ, VARIABLE: "off"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == "(1, 1000)", done.stderr


def test_another_network_is_refused():
    with pytest.raises(ConfigError, match="VisionTransformer is no CMT"):
        fuse(timm.create_model("vit_nano"))
