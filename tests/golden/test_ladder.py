"""The ladder from DeiT to CMT: its ends are the networks they claim to be, its steps cost the same, its options act."""

from itertools import pairwise

import pytest
import timm
import torch

from cmtvision.errors import ConfigError
from cmtvision.models import build_shapes_only, create_model
from cmtvision.models.analysis.count import count, total
from cmtvision.models.cmt import CMT
from cmtvision.models.cmt.irffn import InvertedResidualFFN
from cmtvision.models.cmt.lpu import LocalPerceptionUnit
from cmtvision.models.ladder import LACKING, RUNGS, SIZES, ladder
from cmtvision.models.ladder.parts import FFNWithoutShortcut, build
from random_weights import randomise

SMALL = {"dims": (8, 16, 24, 32), "depths": (1, 1, 2, 1), "stem_width": 8, "head_width": 48, "mlp_ratio": 2.0}


def gmacs(name: str, **options: object) -> float:
    model, size = build_shapes_only(name, arguments=options)
    return total(count(model, size)).macs / 1e9


@pytest.mark.parametrize("size", SIZES)
def test_neighbours_cost_the_same_within_ten_percent(size: str) -> None:
    costs = [gmacs(name) for name in ladder(size)]
    assert [max(a, b) / min(a, b) for a, b in pairwise(costs)] == pytest.approx([1.0] * 5, abs=0.1)


@pytest.mark.parametrize(("size", "cmt"), [(size, f"cmt_{size}") for size in SIZES])
def test_top_rung_is_cmt(size: str, cmt: str) -> None:
    with torch.device("meta"):
        top, whole = timm.create_model(ladder(size)[-1]), timm.create_model(cmt)
    ours = {name: tuple(value.shape) for name, value in top.state_dict().items()}
    assert ours == {name: tuple(value.shape) for name, value in whole.state_dict().items()}
    assert top.pretrained_cfg["url"] == whole.pretrained_cfg["url"]
    assert top.pretrained_cfg["crop_pct"] == whole.pretrained_cfg["crop_pct"]


def test_top_rung_computes_what_cmt_computes() -> None:
    top, whole = timm.create_model("cmt_ladder_5_irffn_nano").eval(), timm.create_model("cmt_nano").eval()
    randomise(whole)
    top.load_state_dict(whole.state_dict())
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(top(x), whole(x))


@pytest.mark.slow
def test_bottom_rung_is_timms_deit_small() -> None:
    """22,050,664 parameters, and the same logits from the same weights."""
    rung, deit = timm.create_model("cmt_ladder_0_deit").eval(), timm.create_model("deit_small_patch16_224").eval()
    rung.load_state_dict(deit.state_dict())
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(rung(x), deit(x))
    assert sum(p.numel() for p in rung.parameters()) == 22_050_664


def test_each_rung_brings_its_idea_and_keeps_those_below() -> None:
    with torch.device("meta"):
        rungs = {rung: timm.create_model(name) for rung, name in zip(RUNGS, ladder("s"), strict=True)}

    def has(rung: str, kind: type) -> bool:
        return any(isinstance(module, kind) for module in rungs[rung].modules())

    from cmtvision.models.cmt.position import PositionBias, PositionEmbedding
    from cmtvision.models.cmt.stem import Stem

    assert [has(rung, Stem) for rung in RUNGS] == [False, True, True, True, True, True]
    assert [has(rung, CMT) for rung in RUNGS] == [False, False, True, True, True, True]
    assert [has(rung, LocalPerceptionUnit) for rung in RUNGS] == [False, False, False, True, True, True]
    assert [has(rung, PositionBias) for rung in RUNGS] == [False, False, False, False, True, True]
    assert [has(rung, InvertedResidualFFN) for rung in RUNGS] == [False, False, False, False, False, True]
    assert [has(rung, PositionEmbedding) for rung in RUNGS] == [False, False, True, False, False, False]
    absolute = [getattr(rungs[rung], "pos_embed", None) is not None for rung in RUNGS]
    assert absolute == [True, True, False, False, False, False]
    reduced = [any(getattr(module, "kv_stride", 1) > 1 for module in rungs[rung].modules()) for rung in RUNGS]
    assert reduced == [False, False, False, False, True, True]


@pytest.mark.parametrize("name", ladder("nano"))
def test_rung_learns_in_every_parameter(name: str) -> None:
    model = timm.create_model(name, num_classes=5, drop_rate=0.0).train()
    randomise(model)  # at the given initialisation some gradients are near zero
    side = 64 if isinstance(model, CMT) else 32  # at 32 px the last stage has one key, whose score no gradient reaches
    model(torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(0))).square().sum().backward()
    dead = [n for n, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert not [n for n in dead if not n.endswith("lmhsa.k.bias")]


@pytest.mark.parametrize("rung", ["2_stages", "3_lpu", "4_lmhsa"])
def test_rungs_resize_like_cmt(rung: str) -> None:
    """Weights of one size load at another; a nominal size of the network's own changes no logit."""
    old = build(img_size=64, num_classes=5, **SMALL, **LACKING[rung]).eval()
    randomise(old)
    x = torch.randn(1, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    expected = old(x)
    resized = build(img_size=64, num_classes=5, **SMALL, **LACKING[rung]).eval()
    resized.load_state_dict(old.state_dict())
    resized.set_input_size((96, 64))
    assert torch.allclose(resized(x), expected, atol=1e-5)


def test_filter_resamples_the_absolute_embedding() -> None:
    from cmtvision.models.cmt.checkpoint import checkpoint_filter_fn

    small = build(img_size=64, num_classes=5, **SMALL, abs_pos=True)
    large = build(img_size=96, num_classes=5, **SMALL, abs_pos=True)
    randomise(small)
    large.load_state_dict(checkpoint_filter_fn(small.state_dict(), large))
    x = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(large.eval()(x), small.eval()(x), atol=1e-5)


def test_absolute_embedding_tells_positions_apart_and_is_not_decayed() -> None:
    model = build(img_size=64, num_classes=5, **SMALL, lpu=False, rel_pos="none", abs_pos=True).eval()
    assert model.no_weight_decay() == {"stages.0.position_embedding.table"}
    assert build(img_size=64, **SMALL).no_weight_decay() == set()
    flat = torch.zeros(1, 8, 16, 16)
    assert model.stages[0].position_embedding(flat).std() > 0


@pytest.mark.parametrize(
    "options",
    [{"lpu": False}, {"rel_pos": "none"}, {"ffn": "no_shortcut"}, {"norm": "layer"}, {"kv_strides": (1, 1, 1, 1)}],
    ids=lambda options: next(iter(options)),
)
def test_each_option_changes_what_is_computed(options: dict[str, object]) -> None:
    """With all shared weights equal, leaving an idea out gives other logits: no option is ignored."""
    whole, without = (build(img_size=64, num_classes=5, **SMALL, **given).eval() for given in ({}, options))
    randomise(whole)
    shared = whole.state_dict()
    kept = {n: shared[n] if n in shared and shared[n].shape == v.shape else v for n, v in without.state_dict().items()}
    without.load_state_dict(kept)
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert (whole(x) - without(x)).abs().max() > 1e-3


def test_layer_norm_leaves_no_batch_norm() -> None:
    model = build(img_size=64, **SMALL, norm="layer")
    assert not [name for name, module in model.named_modules() if isinstance(module, torch.nn.BatchNorm2d)]


def test_shortcut_is_the_identity_around_the_depthwise_convolution() -> None:
    """In training and in evaluation: with the kernel zero, only the shortcut passes anything on."""
    for training in (True, False):
        for kind, shortcut in ((InvertedResidualFFN, True), (FFNWithoutShortcut, False)):
            ffn = kind(4, 8).train(training)
            torch.nn.init.zeros_(ffn.conv.weight)
            torch.nn.init.zeros_(ffn.conv.bias)
            seen = []
            ffn.conv_norm.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0]))
            ffn(torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0)))
            assert (seen[0].abs().max() > 0) == shortcut


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ffn": "irfn"}, "ffn 'irfn': expected 'irffn', 'no_shortcut' or 'mlp'"),
        ({"norm": "group"}, "norm 'group': expected 'batch' or 'layer'"),
        ({"depths": (1, 1, 1)}, "expected 4 values each"),
    ],
)
def test_options_that_make_no_sense_are_named(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        build(**{**SMALL, **options})


def test_misspelt_rung_gets_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="did you mean cmt_ladder_3_lpu"):
        create_model("cmt_ladder_3_lpuu")
