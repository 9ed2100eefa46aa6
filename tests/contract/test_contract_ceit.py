"""What timm and its users ask of CeiT, beyond timm's own tests."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2

from cmtvision.models.peers.ceit import NETWORKS, Block, CeiT
from cmtvision.models.peers.leff import LocallyEnhancedFFN
from random_weights import randomise

NAMES = [*NETWORKS, "ceit_tiny_patch16_384", "ceit_small_patch16_384"]
TINY = {"img_size": 32, "num_classes": 5, "embed_dim": 16, "depth": 4, "num_heads": 2, "patch_size": 8}
STEM = {"stem_width": 6, "stem_kernel": 3, "stem_stride": 1}


def tiny(**kwargs: Any) -> Any:
    """A network of the same blocks, small enough for every question, with 4 x 4 tokens."""
    model = CeiT(**{**TINY, **STEM, **kwargs})
    return randomise(model) if kwargs.get("device") != "meta" else model


def images(height: int = 32, width: int = 32, channels: int = 3) -> torch.Tensor:
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(1))


def gradients(model: Any, x: torch.Tensor) -> dict[str, torch.Tensor]:
    model(x).square().sum().backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", NAMES)
def test_description_matches_what_comes_out(name: str) -> None:
    model = timm.create_model(name, device="meta", dtype=torch.float64).eval()
    side = model.img_size[0]
    assert side == model.pretrained_cfg["input_size"][1]
    assert all(p.dtype == torch.float64 for p in model.parameters())
    x = torch.empty(2, 3, side, side, device="meta", dtype=torch.float64)
    tokens = 1 + (side // model.patch_size) ** 2
    assert tokens == {32: 17, 64: 65, 224: 197, 384: 577}[side]
    assert model.forward_features(x).shape == (2, tokens, model.num_features)
    assert model(x).shape == (2, 1000)
    modules = dict(model.named_modules())
    assert [info["module"] for info in model.feature_info] == [f"blocks.{i}" for i in range(len(model.blocks))]
    assert all(info["module"] in modules for info in model.feature_info)
    assert {info["reduction"] for info in model.feature_info} == {side // model.grid_size[0]}
    assert {info["num_chs"] for info in model.feature_info} == {model.embed_dim}


def test_gradient_reaches_every_parameter() -> None:
    """All get one; the LeFF after the last class token that is looked at gets zero, as in the paper's network."""
    found = gradients(tiny().train(), images())
    assert not [name for name, grad in found.items() if grad is None or not torch.isfinite(grad).all()]
    dead = {name for name, grad in found.items() if grad.abs().max() == 0}
    assert dead == {name for name in found if name.startswith("blocks.3.leff.")}


def test_average_pooling_looks_at_the_patch_tokens_of_the_last_block() -> None:
    found = gradients(tiny(global_pool="avg").train(), images())
    dead = {name for name, grad in found.items() if grad.abs().max() == 0}
    assert dead == {name for name in found if name.startswith(("lca.", "pos_layer_embed"))}
    model = tiny(global_pool="avg").eval()
    features = model.forward_features(images())
    torch.testing.assert_close(model.forward_head(features, pre_logits=True), features[:, 1:].mean(1))


def test_class_token_passes_leff_unchanged_and_patches_see_their_neighbours() -> None:
    leff = randomise(LocallyEnhancedFFN(8, 16)).eval()
    x = torch.randn(2, 1 + 4 * 5, 8)
    before = leff(x, (4, 5))
    assert torch.equal(before[:, 0], x[:, 0])
    changed = x.clone()
    changed[:, 1 + 1 * 5 + 2] += 1  # row 1, column 2
    moved = (leff(changed, (4, 5)) - before).abs().amax((0, 2))
    assert moved[0] == 0
    rows, columns = torch.nonzero(moved[1:].unflatten(0, (4, 5)) > 0, as_tuple=True)
    assert set(zip(rows.tolist(), columns.tolist(), strict=True)) == {(i, j) for i in (0, 1, 2) for j in (1, 2, 3)}
    changed = x.clone()
    changed[:, 0] += 1
    assert torch.equal(leff(changed, (4, 5))[:, 1:], before[:, 1:])
    dropped = LocallyEnhancedFFN(8, 16, proj_drop_rate=0.5)(x, (4, 5))
    assert torch.equal(dropped[:, 0], x[:, 0])
    assert 0.3 < (dropped[:, 1:] == 0).float().mean() < 0.7


def test_logits_depend_on_the_class_tokens_of_all_blocks() -> None:
    model = tiny().eval()
    expected = model(images())
    for layer in range(4):
        other = copy.deepcopy(model)
        other.pos_layer_embed.data[:, layer] += 1 + torch.arange(16.0)
        assert (other(images()) - expected).abs().max() > 1e-4


def test_intermediates() -> None:
    model, x = tiny().eval(), images(32, 32)
    final, maps = model.forward_intermediates(x)
    torch.testing.assert_close(final, model.forward_features(x), rtol=0, atol=0)
    assert [tuple(y.shape) for y in maps] == [(2, 16, 4, 4)] * 4
    tokens = model.forward_intermediates(x, indices=[1, 3], output_fmt="NLC", intermediates_only=True)
    torch.testing.assert_close(tokens[1].transpose(1, 2).unflatten(2, (4, 4)), maps[3], rtol=0, atol=0)
    torch.testing.assert_close(tokens[0].transpose(1, 2).unflatten(2, (4, 4)), maps[1], rtol=0, atol=0)
    ((last, class_token),) = model.forward_intermediates(
        x, indices=1, return_prefix_tokens=True, norm=True, output_fmt="NLC", intermediates_only=True
    )
    torch.testing.assert_close(last, final[:, 1:], rtol=0, atol=0)
    assert class_token.shape == (2, 1, 16)
    assert not torch.allclose(class_token, final[:, :1])  # the block's own, not the LCA's answer
    early, _ = model.forward_intermediates(x, indices=[1], stop_early=True)
    torch.testing.assert_close(early[:, 1:], tokens[0], rtol=0, atol=0)
    with pytest.raises(AssertionError, match="output_fmt"):
        model.forward_intermediates(x, output_fmt="NHWC")


def test_prune_keeps_only_what_the_blocks_need() -> None:
    model, x = tiny().eval(), images()
    expected = model.forward_intermediates(x, indices=[1], intermediates_only=True)
    whole = model(x)
    pruned = copy.deepcopy(model)
    assert pruned.prune_intermediate_layers([1], prune_norm=True) == [1]
    assert {n.split(".")[0] for n, _ in pruned.named_parameters()} == {"cls_token", "pos_embed", "i2t", "blocks"}
    assert pruned.no_weight_decay() == {"cls_token", "pos_embed"}
    torch.testing.assert_close(pruned.forward_intermediates(x, indices=[1], intermediates_only=True), expected)
    torch.testing.assert_close(pruned(x)[:, 1:].transpose(1, 2).unflatten(2, (4, 4)), expected[0])
    pruned.set_input_size(48)
    assert pruned(images(48, 48)).shape == (2, 37, 16)
    pruned.init_weights()
    kept = copy.deepcopy(model)
    kept.prune_intermediate_layers([3], prune_head=False)
    torch.testing.assert_close(kept(x), whole, rtol=0, atol=0)
    kept.prune_intermediate_layers([1], prune_head=False)
    assert kept.pos_layer_embed.shape == (1, 2, 16)
    assert kept(x).shape == (2, 5)


def test_features_only() -> None:
    kwargs = {"features_only": True, "dynamic_img_size": True}
    model = timm.create_model("ceit_nano", out_indices=(1, -1), **kwargs).eval()
    assert (model.feature_info.channels(), model.feature_info.reduction()) == ([64, 64], [8, 8])
    assert [y.shape for y in model(torch.randn(2, 3, 64, 40))] == [(2, 64, 8, 5)] * 2
    assert len(timm.create_model("ceit_nano", **kwargs)(images())) == 3
    assert not any(n.startswith(("model.lca", "model.norm", "model.head")) for n, _ in model.named_parameters())


@pytest.mark.parametrize(
    ("start", "size"), [(32, (48, 48)), (32, (32, 64)), (32, (64, 16)), ((64, 16), (32, 32)), ((16, 40), (24, 32))]
)
def test_set_input_size_is_what_the_dynamic_pass_does(start: int | tuple[int, int], size: tuple[int, int]) -> None:
    model = tiny(img_size=start, dynamic_img_size=True).eval()
    expected = model(images(*size))
    model.pos_embed.requires_grad_(False)
    model.set_input_size(size)
    assert (model.img_size, model.pos_embed.requires_grad) == (size, False)
    assert model.pos_embed.shape[1] == 1 + size[0] * size[1] // 64
    torch.testing.assert_close(model(images(*size)), expected, rtol=1e-5, atol=1e-5)


def test_sizes_that_do_not_fit_are_refused() -> None:
    fixed, dynamic = tiny().eval(), tiny(dynamic_img_size=True).eval()
    with pytest.raises(AssertionError, match="height is not img_size; set dynamic_img_size=True"):
        fixed(images(40, 32))
    with pytest.raises(AssertionError, match="width is not img_size"):
        fixed.forward_intermediates(images(32, 40))
    with pytest.raises(AssertionError, match="height is not a multiple of patch_size"):
        dynamic(images(36, 32))
    with pytest.raises(AssertionError, match="width is not a multiple of patch_size"):
        dynamic(images(32, 31))
    for size in (36, (32, 0), -8):
        with pytest.raises(ValueError, match="positive multiples of 8"):
            fixed.set_input_size(size)


@pytest.mark.parametrize(
    ("argument", "message"),
    [({"num_heads": 3}, "num_heads 3"), ({"patch_size": 7}, "patch_size 7: expected a multiple of 2")],
)
def test_arguments_that_do_not_fit(argument: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CeiT(**{**TINY, **STEM, "img_size": 56, **argument})
    with pytest.raises(TypeError, match="qk_norm"):
        timm.create_model("ceit_nano", qk_norm=True)
    with pytest.raises(AssertionError, match="global_pool 'map'"):
        tiny(global_pool="map")


def test_classifier_and_channels() -> None:
    model = tiny(in_chans=1, num_classes=0, dtype=torch.bfloat16).eval()
    x = images(channels=1).bfloat16()
    pooled = model(x)
    torch.testing.assert_close(pooled, model.forward_features(x)[:, 0], rtol=0, atol=0)
    model.reset_classifier(11)
    assert (model.global_pool, model.head.training, model.head.weight.dtype) == ("token", False, torch.bfloat16)
    assert model.num_classes == model.get_classifier().out_features == model(x).shape[1] == 11
    torch.testing.assert_close(model.forward_head(model.forward_features(x), pre_logits=True), pooled, rtol=0, atol=0)
    model.reset_classifier(3, "")
    assert model(x).shape == (2, 17, 3)


def test_save_load_copy_and_pickle(tmp_path: Path) -> None:
    model, x = tiny().eval(), images()
    expected = model(x)
    torch.save(model.state_dict(), tmp_path / "w.pt")
    other = CeiT(**TINY, **STEM).eval()
    assert not torch.equal(other(x), expected)
    other.load_state_dict(torch.load(tmp_path / "w.pt", weights_only=True))
    for same in (other, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(same(x), expected)
    assert {n for n, _ in model.named_buffers()} <= model.state_dict().keys()


def test_checkpointing_changes_memory_and_nothing_else() -> None:
    plain, checkpointed = tiny().train(), tiny().train()
    checkpointed.set_grad_checkpointing()
    runs: list[int] = []
    checkpointed.blocks[2].leff.register_forward_pre_hook(lambda *_: runs.append(1))
    expected, found = gradients(plain, images()), gradients(checkpointed, images())
    assert len(runs) == 2  # once forward, once more in the backward pass
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-4, atol=1e-4 * float(grad.abs().max()) + 1e-12, msg=name)
    for (name, a), (_, b) in zip(plain.named_buffers(), checkpointed.named_buffers(), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6, msg=name)


def test_layer_wise_learning_rates() -> None:
    model = tiny()
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1.0, weight_decay=0.05, layer_decay=0.5)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert len(groups) == len(list(model.parameters()))
    scale = {n: groups[id(p)]["lr_scale"] for n, p in model.named_parameters()}
    blocks = [scale[f"blocks.{i}.attn.qkv.weight"] for i in range(4)]
    assert scale["pos_embed"] == scale["i2t.proj.weight"] == scale["cls_token"] < blocks[0]
    assert blocks == sorted(set(blocks))
    assert blocks[-1] <= scale["lca.attn.qkv.weight"] == scale["pos_layer_embed"] < scale["head.weight"] == 1.0
    undecayed = {n for n, p in model.named_parameters() if groups[id(p)]["weight_decay"] == 0 and p.ndim > 1}
    assert undecayed == model.no_weight_decay() == {"cls_token", "pos_embed", "pos_layer_embed"}


@pytest.mark.parametrize("rate", ["drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"])
def test_each_drop_rate_acts_in_training_only(rate: str) -> None:
    model, x = tiny(**{rate: 0.5}), images()
    assert torch.equal(model.eval()(x), model(x))
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    assert not torch.equal(model(x), model(x))


def test_drop_path_sits_on_both_branches_of_a_block() -> None:
    block = randomise(Block(8, 2, 16, drop_path_rate=0.9999)).train()
    x = torch.randn(2, 17, 8)
    assert torch.equal(block(x, (4, 4)), x)
    assert not torch.isclose(block.eval()(x, (4, 4)), x).any()


def test_initialisation_writes_every_tensor() -> None:
    model = tiny(device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(7)
    model.init_weights()
    assert not [name for name, tensor in model.state_dict().items() if (tensor == 7).any()]
    assert torch.equal(model.pos_layer_embed, torch.zeros(1, 4, 16))
    assert 0.01 < model.blocks[0].attn.qkv.weight.std() < 0.03
    assert torch.equal(model.blocks[0].leff.bn1.running_var, torch.ones(64))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:.*deprecated.*:UserWarning")
@pytest.mark.parametrize("dynamic", [True, False])
def test_torchscript(dynamic: bool) -> None:
    model = tiny(dynamic_img_size=dynamic).eval()
    scripted = torch.jit.script(model)
    for x in [images(), *([images(48, 32)] if dynamic else [])]:
        torch.testing.assert_close(scripted(x), model(x))
    pruned = tiny().eval()
    pruned.prune_intermediate_layers([2])
    torch.testing.assert_close(torch.jit.script(pruned)(images()), pruned(images()))


@pytest.mark.parametrize("fused", [True, False])
def test_autocast_and_half_precision(fused: bool) -> None:
    model, x = tiny(dynamic_img_size=True).eval(), images(48, 32)
    expected = model(x).detach()
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (model(x).float() - expected).abs().max() < 0.1 * expected.abs().max()
    half = copy.deepcopy(model).bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert (half.float() - expected).abs().max() < 0.15 * expected.abs().max()
