"""What is accelerated computes what the plain network computes, values and gradients, in any layout and precision."""

from copy import deepcopy

import pytest
import timm
import torch
from timm.layers import LayerNorm2d
from torch import nn
from torch.nn.utils import prune

import cmtvision  # noqa: F401  # registers the models
from cmtvision.models.accelerate import accelerate
from cmtvision.models.accelerate.modules import FastLPU, MapGELU, MapLayerNorm, ReducingConv
from cmtvision.models.cmt.lpu import LocalPerceptionUnit
from random_weights import randomise

LAYOUTS = [torch.contiguous_format, torch.channels_last]
NETWORKS = ["cmt_nano", "cmt_ladder_4_lmhsa_nano", "ceit_nano"]


def training_step(name: str, fast: bool, memory_format: torch.memory_format) -> tuple[torch.Tensor, dict]:
    """Logits and gradients of a small network in training, in float64."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, drop_rate=0.0).train().double()
    model = accelerate(model) if fast else model
    model.to(memory_format=memory_format)
    side = model.default_cfg["input_size"][-1]
    images = torch.randn(3, 3, side, side, dtype=torch.float64).contiguous(memory_format=memory_format)
    logits = model(images)
    logits.square().sum().backward()
    return logits.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("memory_format", LAYOUTS)
@pytest.mark.parametrize("name", NETWORKS)
def test_it_trains_as_the_plain_one(name: str, memory_format: torch.memory_format) -> None:
    logits, gradients = training_step(name, True, memory_format)
    plain_logits, plain_gradients = training_step(name, False, memory_format)
    torch.testing.assert_close(logits, plain_logits, rtol=1e-9, atol=1e-9)
    assert list(gradients) == list(plain_gradients)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, plain_gradients[name], rtol=1e-6, atol=1e-8, msg=name)


@pytest.mark.parametrize("options", [{}, {"rel_pos": "block", "ffn": "no_shortcut"}, {"norm": "layer", "lpu": False}])
def test_parameters_buffers_and_what_it_evaluates_to_stay_bit_for_bit(options: dict) -> None:
    plain = randomise(timm.create_model("cmt_nano", num_classes=5, **options))
    fast = accelerate(deepcopy(plain))
    assert type(fast) is type(plain)
    assert list(fast.state_dict()) == list(plain.state_dict())
    assert [n for n, _ in fast.named_parameters()] == [n for n, _ in plain.named_parameters()]
    assert any(type(module) is MapLayerNorm for module in fast.modules())
    images = torch.randn(2, 3, 48, 32).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        assert torch.equal(fast.eval()(images), plain.eval()(images))


def test_it_takes_the_very_parameters() -> None:
    model = timm.create_model("cmt_nano")
    before = dict(model.named_parameters())
    assert accelerate(model) is model
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    swapped = [type(module) for module in accelerate(model).modules()]
    assert swapped.count(FastLPU) == 8
    assert LocalPerceptionUnit not in swapped


def test_what_is_hooked_or_not_ours_stays() -> None:
    model = timm.create_model("cmt_nano")
    lpu = model.stages[0].blocks[0].lpu
    lpu.register_forward_hook(lambda *_: None)
    assert accelerate(model).stages[0].blocks[0].lpu is lpu
    other = timm.create_model("convnext_atto")  # it has LayerNorm2d
    before = [type(module) for module in other.modules()]
    assert [type(module) for module in accelerate(other).modules()] == before


def replaced_act(block):
    block.irffn.act = nn.SiLU()


def replaced_gelu(block):
    block.irffn.act = nn.GELU("tanh")


def replaced_lpu_conv(block):
    block.lpu.conv = nn.Conv2d(
        *[block.lpu.conv.in_channels] * 2, 3, padding=2, dilation=2, groups=block.lpu.conv.groups
    )


def replaced_kv_conv(block):
    C, k = block.lmhsa.kv_conv.in_channels, block.lmhsa.kv_conv.kernel_size[0]
    block.lmhsa.kv_conv = nn.Conv2d(C, C, k + 1, stride=k, padding=1, groups=C)


@pytest.mark.parametrize("replace", [replaced_act, replaced_gelu, replaced_lpu_conv, replaced_kv_conv])
@pytest.mark.parametrize("training", [True, False])
def test_parts_that_were_replaced_stay_what_they_are(replace, training) -> None:
    torch.manual_seed(0)
    plain = timm.create_model("cmt_nano", num_classes=5, drop_rate=0.0, drop_path_rate=0.0, rel_pos="none")
    replace(plain.stages[0].blocks[0])
    randomise(plain).train(training)
    fast = accelerate(deepcopy(plain))
    images = torch.randn(4, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(fast(images), plain(images), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("first", ["hooks", "accelerate"])
def test_hooks_on_a_part_are_called_whenever_they_come(first: str) -> None:
    def calls(model: nn.Module) -> list[str]:
        seen: list[str] = []
        block = model.stages[0].blocks[0]
        block.lpu.conv.register_forward_hook(lambda *_: seen.append("lpu.conv"))
        block.irffn.act.register_forward_hook(lambda *_: seen.append("act"))
        block.lmhsa.kv_conv.register_forward_hook(lambda *_: seen.append("kv_conv"))
        block.lpu.register_full_backward_pre_hook(lambda *_: seen.append("backward"))
        model = accelerate(model)
        model.train()(torch.randn(4, 3, 32, 32).contiguous(memory_format=torch.channels_last)).sum().backward()
        return sorted(seen)

    model = timm.create_model("cmt_nano", num_classes=5)
    model = accelerate(model) if first == "accelerate" else model
    assert calls(model) == ["act", "act", "backward", "kv_conv", "lpu.conv"]  # it acts twice


def test_a_pruned_convolution_trains() -> None:
    model = timm.create_model("cmt_nano", num_classes=5)
    prune.random_unstructured(model.stages[0].blocks[0].lpu.conv, "weight", amount=0.5)
    model = accelerate(model).train()
    images = torch.randn(4, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    for _ in range(2):
        model(images).sum().backward()


@pytest.mark.parametrize("options", [{}, {"norm": "layer"}])
def test_what_is_frozen_stays_frozen_and_what_is_nested_is_found(options: dict) -> None:
    model = timm.create_model("cmt_nano", num_classes=5, **options).train()
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d) or "norm1" in name:
            module.eval()
    states = {name: module.training for name, module in model.named_modules()}
    fast = accelerate(model)
    assert {name: module.training for name, module in fast.named_modules() if name in states} == states
    assert LayerNorm2d not in [type(module) for module in fast.modules()]


@pytest.mark.parametrize("memory_format", LAYOUTS)
def test_identity_in_the_kernel(memory_format: torch.memory_format) -> None:
    plain = LocalPerceptionUnit(6).double()
    fast = FastLPU(plain)
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64).contiguous(memory_format=memory_format)
    torch.testing.assert_close(fast(x), plain(x))
    assert torch.autograd.gradcheck(fast, (x.requires_grad_(),))


def test_a_small_middle_weight_is_not_lost_beside_the_identity() -> None:
    """1 + 0.003 rounds to 1 in bfloat16; apart from the identity, the weight is seen in the mean over many places."""
    fast = FastLPU(LocalPerceptionUnit(6))
    with torch.no_grad():
        fast.conv.weight.zero_()
        fast.conv.bias.zero_()
        fast.conv.weight[:, :, 1, 1] = 0.003
    torch.manual_seed(0)
    x = (1 + torch.rand(4, 6, 64, 64)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        grown = fast(x).detach().double().mean() / x.double().mean() - 1
    assert 0.002 < float(grown) < 0.004


@pytest.mark.parametrize(
    ("fast", "plain"),
    [
        (lambda plain: MapGELU(), nn.GELU),
        (MapLayerNorm, lambda: timm.layers.LayerNorm2d(6)),
        (ReducingConv, lambda: nn.Conv2d(6, 6, 2, stride=2, groups=6)),
    ],
    ids=["gelu", "layer norm", "reducing convolution"],
)
def test_under_autocast_each_layer_is_no_less_exact(fast, plain) -> None:
    torch.manual_seed(0)
    reference = plain()
    layer = fast(reference)
    x = torch.randn(2, 6, 4, 8).contiguous(memory_format=torch.channels_last)
    exact = reference(x)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = layer(x.bfloat16()), reference(x.bfloat16())
    assert ours.shape == exact.shape
    assert (ours.float() - exact).abs().max() <= 1.01 * (theirs.float() - exact).abs().max()
