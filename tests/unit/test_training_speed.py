"""What training computes faster is what the plain equations give, values and gradients, in any layout and precision."""

import pytest
import timm
import torch
from torch import nn

import cmtvision  # noqa: F401  # registers the models
from cmtvision.models.training_speed import MapGELU, MapLayerNorm, ReducingConv, depthwise_with_identity, plain_training

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def training_step(memory_format: torch.memory_format) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits and gradients of a small network in training, in float64."""
    torch.manual_seed(0)
    model = timm.create_model("cmt_nano", num_classes=5, drop_rate=0.0).train().double()
    model.to(memory_format=memory_format)
    images = torch.randn(3, 3, 48, 32, dtype=torch.float64).contiguous(memory_format=memory_format)
    logits = model(images)
    logits.square().sum().backward()
    return logits.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("memory_format", LAYOUTS)
def test_network_trains_as_the_plain_one(memory_format: torch.memory_format) -> None:
    logits, gradients = training_step(memory_format)
    with plain_training():
        plain_logits, plain_gradients = training_step(memory_format)
    torch.testing.assert_close(logits, plain_logits, rtol=1e-9, atol=1e-9)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, plain_gradients[name], rtol=1e-6, atol=1e-8, msg=name)


@pytest.mark.parametrize("memory_format", LAYOUTS)
def test_identity_in_the_kernel(memory_format: torch.memory_format) -> None:
    conv = nn.Conv2d(6, 6, 3, padding=1, groups=6).double()
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64).contiguous(memory_format=memory_format)
    torch.testing.assert_close(depthwise_with_identity(x, conv), conv(x) + x)
    assert torch.autograd.gradcheck(lambda x: depthwise_with_identity(x, conv), (x.requires_grad_(),))


def test_a_small_middle_weight_is_not_lost_beside_the_identity() -> None:
    """1 + 0.003 rounds to 1 in bfloat16; apart from the identity, the weight is seen in the mean over many places."""
    conv = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False)
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[:, :, 1, 1] = 0.003
    torch.manual_seed(0)
    x = (1 + torch.rand(4, 6, 64, 64)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        grown = depthwise_with_identity(x, conv).detach().double().mean() / x.double().mean() - 1
    assert 0.002 < float(grown) < 0.004


@pytest.mark.parametrize(
    ("layer", "reference"),
    [
        (MapGELU(), nn.GELU()),
        (MapLayerNorm(6), timm.layers.LayerNorm2d(6)),
        (ReducingConv(6, 6, 2, stride=2, groups=6), nn.Conv2d(6, 6, 2, stride=2, groups=6)),
    ],
    ids=["gelu", "layer norm", "reducing convolution"],
)
def test_under_autocast_each_layer_is_no_less_exact(layer: nn.Module, reference: nn.Module) -> None:
    if isinstance(layer, nn.Conv2d):
        layer.reset_parameters()  # from this test's seed: those of the import depend on what ran before
    reference.load_state_dict(layer.state_dict())
    x = torch.randn(2, 6, 4, 8).contiguous(memory_format=torch.channels_last)
    exact = reference(x)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = layer(x.bfloat16()), reference(x.bfloat16())
    assert ours.shape == exact.shape
    assert (ours.float() - exact).abs().max() <= 1.01 * (theirs.float() - exact).abs().max()


def test_scripting_leaves_out_what_is_for_speed() -> None:
    model = timm.create_model("cmt_nano", num_classes=5).eval()
    images = torch.randn(1, 3, 32, 32)
    with pytest.warns(FutureWarning):
        scripted = torch.jit.script(model)
    torch.testing.assert_close(scripted(images), model(images))


def test_plain_training_ends() -> None:
    from cmtvision.models import training_speed

    with pytest.raises(ZeroDivisionError), plain_training():
        raise ZeroDivisionError
    assert not training_speed._plain
