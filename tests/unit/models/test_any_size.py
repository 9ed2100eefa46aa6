"""A CMT as a backbone: any size, with a position bias that is never computed where it would be large."""

from copy import deepcopy

import pytest
import timm
import torch
from torch import nn

import cmtvision  # noqa: F401  # registers the models
from cmtvision.explain import attention_maps, position_bias
from cmtvision.models.accelerate import accelerate
from cmtvision.models.accelerate.fusing.fuse import fuse
from cmtvision.models.cmt.lmhsa import fused_attention
from cmtvision.models.cmt.position import PositionBias, bias_factors, resample_bias_grid, whole_bias
from cmtvision.models.frozen_norms import hold_norms
from random_weights import randomise

SMALL = {"dims": (8, 16, 24, 32), "depths": (1, 1, 2, 1), "stem_width": 8, "head_width": 48, "mlp_ratio": 2.0,
         "num_heads": (1, 2, 3, 4), "kv_strides": (8, 4, 2, 1), "img_size": 64}  # fmt: skip


def network(most_entries: int = 0, **options: object) -> nn.Module:
    """A small network that leaves a resampled bias in factors, if it has more than twice the table's keys."""
    model = randomise(timm.create_model("cmt_s", **{**SMALL, **options})).double().eval()
    for module in model.modules():
        if isinstance(module, PositionBias):
            module.most_entries = most_entries
    return model


@pytest.mark.parametrize("heads", [1, 3])
def test_factors_are_the_resampled_bias(heads: int) -> None:
    table = torch.randn(1, heads, 5, 4, 3, 2, dtype=torch.float32)
    factors = bias_factors(table, 11, 14, 6, 7)
    assert factors.shape == (heads, 11 * 14 + 6 * 7, 3 * 2)
    expected = resample_bias_grid(table, 11, 14, 6, 7).reshape(1, heads, 11 * 14, 6 * 7)
    torch.testing.assert_close(whole_bias(factors, 11 * 14), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("d", [5, 8])
def test_attention_with_factors_is_attention_with_the_whole_bias(d: int) -> None:
    q, k, v = (torch.randn(2, 3, tokens, d, dtype=torch.float64) for tokens in (154, 42, 42))
    factors = bias_factors(torch.randn(1, 3, 5, 4, 3, 2), 11, 14, 6, 7).double()
    out = fused_attention(q, k, v, factors)
    torch.testing.assert_close(out, fused_attention(q, k, v, whole_bias(factors, 154)), rtol=1e-9, atol=1e-9)
    assert out.shape == (2, 3, 154, d)


def test_small_biases_are_whole_and_large_ones_are_not() -> None:
    bias = PositionBias(1, (56, 56), 8, device="meta")  # of CMT-S, first stage
    assert bias(56, 56).shape == (1, 1, 56 * 56, 49)
    assert bias(128, 128).shape == (1, 1, 128 * 128, 256)  # 512 x 512 px
    assert bias(200, 334).shape == (1, 200 * 334 + 25 * 42, 49)  # 800 x 1333 px
    assert bias(16, 16384).shape == (1, 16 * 16384 + 2 * 2048, 49)
    assert PositionBias(1, (200, 334), 8, device="meta")(200, 334).dim() == 4  # the table's own size
    assert PositionBias(1, (200, 334), 8, device="meta")(208, 342).dim() == 4  # factors would save nothing


@pytest.mark.parametrize("options", [{}, {"rel_pos": "block"}])
@pytest.mark.parametrize("size", [(160, 192), (133, 100)])
def test_networks_give_the_same_in_factors(options: dict, size: tuple[int, int]) -> None:
    model, images = network(**options), torch.randn(2, 3, *size, dtype=torch.float64)
    explicit = deepcopy(model)
    for module in explicit.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    assert model.stages[0].blocks[0].lmhsa.fused_attn
    with torch.no_grad():
        answers = [one(images) for one in (model, explicit, accelerate(deepcopy(model)), fuse(model))]
        expected = network(2**40, **options)(images)
    # the tables are resampled in float32
    for answer in answers:
        torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("fast", [False, True])
def test_gradients_are_the_same_in_factors(fast: bool) -> None:
    images = torch.randn(2, 3, 160, 128, dtype=torch.float64)
    gradients = []
    for most_entries in (0, 2**40):
        model = network(most_entries, drop_rate=0.0).train()
        model = accelerate(model) if fast else model
        model(images).square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        expected = gradients[1][name]
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()) + 1e-9)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:.*deprecated.*:UserWarning")
def test_scripted_and_compiled_in_factors() -> None:
    model, images = network(scriptable=True).float(), torch.randn(1, 3, 160, 128)
    expected = model(images)
    for other in (torch.jit.script(model), torch.compile(model, fullgraph=True, backend="eager")):
        torch.testing.assert_close(other(images), expected, rtol=1e-4, atol=1e-4 * float(expected.detach().abs().max()))


def test_explanations_see_the_whole_bias() -> None:
    model = network().float()
    maps = position_bias(model, 1, img_size=(160, 128))
    assert maps.maps.shape == (1, 40, 32, 5, 4)
    assert attention_maps(model, torch.randn(1, 3, 160, 128))[0].weights.shape == (1, 1, 40 * 32, 20)


def test_features_of_any_size() -> None:
    model = timm.create_model("cmt_nano", features_only=True).eval()
    with torch.inference_mode():
        maps = model(torch.randn(1, 3, 97, 130))
    assert [tuple(one.shape[2:]) for one in maps] == [(25, 33), (13, 17), (7, 9), (4, 5)]


def test_checkpointed_features_count_batches_once() -> None:
    model = randomise(timm.create_model("cmt_nano", features_only=True)).train()
    other = deepcopy(model)
    other.set_grad_checkpointing()
    assert other.stages_0.grad_checkpointing
    images = torch.randn(2, 3, 40, 64)
    for one in (model, other):
        sum(out.square().mean() for out in one(images)).backward()
    for (name, ours), (_, theirs) in zip(other.named_parameters(), model.named_parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)
    for (name, ours), (_, theirs) in zip(other.named_buffers(), model.named_buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)


def test_held_norms_keep_their_statistics_and_learn() -> None:
    model = randomise(timm.create_model("cmt_nano", features_only=True)).train()
    hold_norms(model)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model(torch.randn(2, 3, 32, 32))[-1].square().mean().backward()
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert model.stem.norm1.weight.grad.abs().sum() > 0
    assert model.stages_0.training
