"""What timm and its users ask of a model, on every variant of ours."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from networks import CMTS
from timm.optim import create_optimizer_v2, param_groups_weight_decay

from cmtvision.models import VARIANTS
from cmtvision.models.cmt import CMT
from cmtvision.models.cmt.position import PositionBias
from cmtvision.models.ladder.parts import build
from random_weights import randomise

VARIANT_NAMES = CMTS
FAST = ("cmt_nano", "cmt_ti")
EACH = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in VARIANT_NAMES]
STRIDES = [4, 8, 16, 32]


def tiny(**kwargs: Any) -> CMT:
    """A network of the same blocks, small enough for every question."""
    sizes = {"dims": (8, 16, 24, 32), "depths": (1, 1, 2, 1), "stem_width": 8, "head_width": 48, "mlp_ratio": 2.0}
    model = build(**{"img_size": 64, "num_classes": 5, **sizes, **kwargs})
    randomise(model)
    return model


def images(size: int | tuple[int, int] = 64, batch: int = 2, channels: int = 3) -> torch.Tensor:
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(1))


def test_family_is_complete() -> None:
    assert {"cmt_nano", "cmt_ti", "cmt_xs", "cmt_s", "cmt_b", "cmt_ti_kecam"} <= set(VARIANT_NAMES)


@pytest.mark.parametrize("name", EACH)
def test_gradient_reaches_every_parameter(name: str) -> None:
    model = timm.create_model(name, img_size=32, num_classes=5, drop_rate=0.0).train()
    model(images(32)).square().sum().backward()
    # attention over one key is constant whatever its score: at 32 px no gradient flows to those scores' parameters
    nothing = [n for n, p in model.named_parameters() if p.grad is None]
    assert not nothing
    model = timm.create_model(name, img_size=64, num_classes=5, drop_rate=0.0).train()
    model(images(64)).square().sum().backward()
    dead = [n for n, p in model.named_parameters() if not torch.isfinite(p.grad).all() or p.grad.abs().max() == 0]
    assert not [n for n in dead if not n.endswith("lmhsa.k.bias")]  # softmax is blind to one shift of all scores


@pytest.mark.parametrize("name", EACH)
def test_description_matches_what_comes_out(name: str) -> None:
    model = timm.create_model(name, device="meta").eval()
    side = model.img_size[0]
    assert side == model.pretrained_cfg["input_size"][1] == VARIANTS.get(name, VARIANTS["cmt_ti"]).input_size
    x = torch.empty(2, 3, side, side, device="meta")
    features = model.forward_features(x)
    assert features.shape == (2, model.num_features, side // 32, side // 32)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    assert model.forward_head(features).shape == model(x).shape == (2, 1000)
    maps = model.forward_intermediates(x, intermediates_only=True)
    described = [(info["num_chs"], info["reduction"]) for info in model.feature_info]
    assert [(y.shape[1], side // y.shape[2]) for y in maps] == described
    assert [info["reduction"] for info in model.feature_info] == STRIDES
    modules = dict(model.named_modules())
    assert all(info["module"] in modules for info in model.feature_info)


@pytest.mark.parametrize("name", EACH)
def test_features_only(name: str) -> None:
    model = timm.create_model(name, features_only=True, out_indices=(0, 2, 3), device="meta").eval()
    assert model.feature_info.reduction() == [4, 16, 32]
    maps = model(torch.empty(1, 3, 64, 96, device="meta"))
    assert [tuple(y.shape[1:]) for y in maps] == [
        (c, 64 // s, 96 // s) for c, s in zip(model.feature_info.channels(), (4, 16, 32), strict=True)
    ]
    assert not any(n.startswith(("final", "head")) for n, _ in model.named_parameters())


def test_intermediates_equal_the_plain_pass() -> None:
    model = tiny().eval()
    x = images()
    final, maps = model.forward_intermediates(x)
    torch.testing.assert_close(final, model.forward_features(x), rtol=0, atol=0)
    y = model.stem(x)
    for stage, seen in zip(model.stages, maps, strict=True):
        y = stage(y)
        torch.testing.assert_close(seen, y, rtol=0, atol=0)
    early, (second,) = model.forward_intermediates(x, indices=[1], stop_early=True)
    torch.testing.assert_close(second, maps[1], rtol=0, atol=0)
    torch.testing.assert_close(early, second, rtol=0, atol=0)
    (last,) = model.forward_intermediates(x, indices=1, intermediates_only=True)
    torch.testing.assert_close(last, maps[3], rtol=0, atol=0)
    with pytest.raises(AssertionError):
        model.forward_intermediates(x, output_fmt="NLC")


@pytest.mark.parametrize("pool", ["avg", "max", "avgmax", "catavgmax"])
def test_reset_classifier_keeps_pooling_mode_and_type(pool: str) -> None:
    model = tiny(global_pool=pool, dtype=torch.bfloat16).eval()
    pooled = model.forward_head(model.forward_features(images().bfloat16()), pre_logits=True)
    model.reset_classifier(11)
    assert not model.head.training
    assert model.head.weight.dtype == torch.bfloat16
    assert model.num_classes == model.get_classifier().out_features == 11
    again = model.forward_head(model.forward_features(images().bfloat16()), pre_logits=True)
    torch.testing.assert_close(again, pooled, rtol=0, atol=0)
    assert model(images().bfloat16()).shape == (2, 11)
    model.reset_classifier(0)
    torch.testing.assert_close(model(images().bfloat16()), pooled, rtol=0, atol=0)
    model.reset_classifier(3, "avg")
    assert model.head_hidden_size == model.num_features == 48
    assert model(images().bfloat16()).shape == (2, 3)


def test_prune_keeps_only_what_the_stage_needs() -> None:
    model = tiny().eval()
    expected = model.forward_intermediates(images(), indices=[1], intermediates_only=True)
    assert model.prune_intermediate_layers([1]) == [1]
    assert {n.split(".")[0] for n, _ in model.named_parameters()} == {"stem", "stages"}
    assert len(model.stages) == 2
    torch.testing.assert_close(model.forward_intermediates(images(), indices=[1], intermediates_only=True), expected)
    torch.testing.assert_close(model.forward_features(images()), expected[0], rtol=0, atol=0)


@pytest.mark.parametrize("rel_pos", ["stage", "block", "none", "relative"])
def test_kinds_of_position_bias(rel_pos: str) -> None:
    model = tiny(rel_pos=rel_pos).eval()
    tables = [n for n, _ in model.named_parameters() if n.endswith("position_bias.table")]
    assert len(tables) == {"stage": 4, "block": 5, "none": 0, "relative": 5}[rel_pos]
    assert all(("blocks" in n) == (rel_pos != "stage") for n in tables)
    before = model(images())
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name in tables:
                p.normal_(generator=torch.Generator().manual_seed(4))
    assert torch.equal(model(images()), before) == (rel_pos == "none")
    for size in (64, (96, 64), (50, 75)):
        assert torch.isfinite(model(images(size))).all()


def test_unknown_kind_of_position_bias() -> None:
    with pytest.raises(ValueError, match="'stage', 'block', 'none' or 'relative'"):
        tiny(rel_pos="rope")


@pytest.mark.parametrize("name", VARIANT_NAMES)
@pytest.mark.parametrize("argument", ["qk_norm", "patch_size"])
def test_unknown_argument(name: str, argument: str) -> None:
    with pytest.raises(TypeError, match=argument):
        timm.create_model(name, **{argument: 1})


@pytest.mark.parametrize("rel_pos", ["stage", "block", "relative"])
@pytest.mark.parametrize("size", [96, (64, 96), (50, 75)])
def test_set_input_size_is_what_the_dynamic_pass_does(size: int | tuple[int, int], rel_pos: str) -> None:
    model = tiny(rel_pos=rel_pos).eval()
    x = images(size)
    dynamic = model(x)
    table = next(p for n, p in model.named_parameters() if n.endswith("position_bias.table"))
    table.requires_grad_(False)
    model.set_input_size(size)
    torch.testing.assert_close(model(x), dynamic, rtol=1e-5, atol=1e-5)
    assert model.img_size == ((size, size) if isinstance(size, int) else size)
    after = [p for n, p in model.named_parameters() if n.endswith("position_bias.table")]
    assert [p.requires_grad for p in after] == [False] + [True] * (len(after) - 1)


def test_set_input_size_after_pruning_and_in_half_precision() -> None:
    model = tiny().to(torch.bfloat16)
    model.prune_intermediate_layers([2])
    model.set_input_size((96, 64))
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())
    grids = [m.table.shape[2:4] for m in model.modules() if isinstance(m, PositionBias)]
    assert grids == [(24, 16), (12, 8), (6, 4)]


def test_fixed_size_refuses_another() -> None:
    model = tiny(dynamic_img_size=False).eval()
    model(images(64))
    with pytest.raises(AssertionError, match="dynamic_img_size"):
        model(images((64, 96)))
    with pytest.raises(AssertionError, match="dynamic_img_size"):
        model.forward_intermediates(images((96, 64)))


@pytest.mark.parametrize("size", [0, -32, (64, 0)])
def test_impossible_size(size: int | tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="positive"):
        tiny(img_size=size)


def test_checkpointing_changes_memory_and_nothing_else() -> None:
    plain, checkpointed = tiny().train(), tiny().train()
    checkpointed.set_grad_checkpointing()
    assert all(stage.grad_checkpointing for stage in checkpointed.stages)
    x = images()
    for model in (plain, checkpointed):
        model(x).square().sum().backward()
    for (name, p), (_, q) in zip(plain.named_parameters(), checkpointed.named_parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-4 * float(p.grad.abs().max()), msg=name)
    checkpointed.set_grad_checkpointing(False)
    assert not any(stage.grad_checkpointing for stage in checkpointed.stages)


def test_checkpointing_updates_running_statistics_once() -> None:
    plain, checkpointed = tiny().train(), tiny().train()
    checkpointed.set_grad_checkpointing()
    for model in (plain, checkpointed):
        model(images()).square().sum().backward()
    for (name, a), (_, b) in zip(plain.named_buffers(), checkpointed.named_buffers(), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("name", ["cmt_nano", "cmt_ti", "cmt_ti_kecam"])
def test_layer_wise_learning_rates(name: str) -> None:
    model = timm.create_model(name, num_classes=5)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1.0, weight_decay=0.05, layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    assert len(scale) == len(list(model.parameters()))
    scales = {n: scale[id(p)] for n, p in model.named_parameters()}
    blocks = [f"stages.{i}.blocks.{j}" for i, stage in enumerate(model.stages) for j in range(len(stage.blocks))]
    order = [scales["stem.conv1.weight"]] + [scales[f"{b}.lmhsa.q.weight"] for b in blocks] + [scales["head.weight"]]
    assert order == sorted(order)
    assert len(set(order)) == len(order)
    # timm's rule for what stands between the last block and the classifier: it moves with the last block
    assert scales[f"{blocks[-1]}.lmhsa.q.weight"] == scales["final.conv.weight"] < scales["head.weight"] == 1.0
    # nothing of a stage learns more slowly than what comes before it
    for i in range(1, 4):
        assert scales[f"stages.{i}.downsample.conv.weight"] > scales[f"{_last_block(blocks, i - 1)}.lmhsa.q.weight"]


def _last_block(blocks: list[str], stage: int) -> str:
    return [b for b in blocks if b.startswith(f"stages.{stage}.")][-1]


def test_weight_decay_falls_on_matrices_and_bias_tables() -> None:
    model = tiny()
    assert set(model.no_weight_decay()) <= {n for n, _ in model.named_parameters()}
    without, decayed = param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay())
    assert all(p.ndim <= 1 for p in without["params"])
    ids = {id(p) for p in decayed["params"]}
    assert all(id(p) in ids for n, p in model.named_parameters() if n.endswith("position_bias.table"))


def test_drop_rates_act_in_training_only() -> None:
    model = tiny(drop_path_rate=0.5, proj_drop_rate=0.2, attn_drop_rate=0.2, drop_rate=0.2)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    x = images()
    model.eval()
    assert torch.equal(model(x), model(x))
    model.train()
    for norm in norms:
        norm.eval()
    assert not torch.equal(model(x), model(x))


def test_save_load_copy_and_pickle(tmp_path: Path) -> None:
    model = tiny().eval()
    x = images()
    expected = model(x)
    torch.save(model.state_dict(), tmp_path / "w.pt")
    other = CMT(**{"img_size": 64, "num_classes": 5, "dims": (8, 16, 24, 32), "depths": (1, 1, 2, 1)}, stem_width=8,
                head_width=48, mlp_ratio=2.0).eval()  # fmt: skip
    assert not torch.equal(other(x), expected)
    other.load_state_dict(torch.load(tmp_path / "w.pt", weights_only=True))
    for same in (other, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(same(x), expected)
    duplicate = copy.deepcopy(model)
    duplicate.head.weight.data.zero_()
    assert torch.equal(model(x), expected)


def test_no_buffer_is_left_out_of_the_state() -> None:
    model = tiny()
    assert {n for n, _ in model.named_buffers()} <= model.state_dict().keys()


@pytest.mark.parametrize("rel_pos", ["stage", "block", "relative"])
def test_channels_last(rel_pos: str) -> None:
    model = tiny(rel_pos=rel_pos).eval()
    x = images()
    expected = model(x)
    model = model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(x.to(memory_format=torch.channels_last)), expected, rtol=1e-4, atol=1e-4)
    features = model.forward_features(x.to(memory_format=torch.channels_last))
    assert features.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("fused", [True, False])
def test_autocast_and_half_precision(fused: bool) -> None:
    model = tiny().eval()
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused
    x = images((64, 96))
    expected = model(x).detach()
    scale = float(expected.abs().max())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = model(x)
    assert (under_autocast.float() - expected).abs().max() < 0.1 * scale
    for dtype in (torch.bfloat16, torch.float64):
        y = copy.deepcopy(model).to(dtype)(x.to(dtype))
        assert y.dtype == dtype
        assert (y.float() - expected).abs().max() < (0.15 if dtype == torch.bfloat16 else 1e-4) * scale


@pytest.mark.parametrize("name", VARIANT_NAMES)
def test_meta_construction_and_initialisation_after_it(name: str) -> None:
    model = timm.create_model(name, device="meta", dtype=torch.float64, num_classes=3)
    tensors = [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]
    assert all(t.device.type == "meta" and t.dtype == torch.float64 for t in tensors)


def test_initialisation_writes_every_tensor() -> None:
    model = tiny(device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(7)
    model.init_weights()
    fresh = CMT(img_size=64)
    assert not [n for n, t in model.state_dict().items() if t.is_floating_point() and t.numel() > 1 and (t == 7).all()]
    assert model.stem.norm1.num_batches_tracked == fresh.stem.norm1.num_batches_tracked == 0
    assert torch.equal(model.stem.norm1.running_var, torch.ones(8))


@pytest.mark.parametrize("in_chans", [1, 4])
def test_channels_of_the_image(in_chans: int) -> None:
    model = timm.create_model("cmt_nano", in_chans=in_chans).eval()
    assert model.in_chans == in_chans
    assert model(images(32, channels=in_chans)).shape == (2, 1000)


def test_nothing_global_changes() -> None:
    torch.manual_seed(5)
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    model = tiny().eval()
    state = torch.get_rng_state()
    model(images())
    assert torch.equal(torch.get_rng_state(), state)
    assert (torch.get_num_threads(), torch.get_default_dtype()) == (threads, dtype)
