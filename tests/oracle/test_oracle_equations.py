"""Every equation of the paper against the slow restatement in equations.py, with shared random weights."""

import equations
import numpy as np
import pytest
import torch
from torch import nn

from cmtvision.models.cmt.cmt import CMT, FinalConv
from cmtvision.models.cmt.irffn import InvertedResidualFFN
from cmtvision.models.cmt.lmhsa import LightweightAttention
from cmtvision.models.cmt.lpu import LocalPerceptionUnit
from cmtvision.models.cmt.position import PositionBias, resample_bias_grid
from cmtvision.models.cmt.stage import Block, Downsample, Stage
from cmtvision.models.cmt.stem import Stem
from random_weights import randomise

TOLERANCE = 1e-5
DOUBLE = {"dtype": torch.float64}


def ready(module: nn.Module, seed: int = 0) -> nn.Module:
    return randomise(module.double().eval(), seed)


def arrays(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in module.state_dict().items()}


def image(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def agree(ours: torch.Tensor, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape
    spread = float(np.ptp(theirs))
    assert spread > 0.1, "an oracle that says nothing"
    assert np.abs(ours.detach().numpy() - theirs).max() < TOLERANCE * max(1.0, spread)


@pytest.mark.parametrize("size", [(12, 16), (9, 13)])
def test_stem(size: tuple[int, int]) -> None:
    stem = ready(Stem(4, 6))
    x = image(2, 4, *size)
    agree(stem(x), equations.stem(x.numpy(), arrays(stem)))


def test_lpu() -> None:
    lpu = ready(LocalPerceptionUnit(5))
    x = image(2, 5, 6, 7)
    agree(lpu(x), equations.lpu(x.numpy(), arrays(lpu)))


def test_irffn() -> None:
    irffn = ready(InvertedResidualFFN(5, 18))
    x = image(2, 5, 4, 5)
    agree(irffn(x), equations.irffn(x.numpy(), arrays(irffn)))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(
    ("dim", "heads", "k", "grid"),
    [(6, 1, 1, (3, 4)), (8, 2, 2, (4, 6)), (12, 4, 4, (8, 4)), (8, 2, 2, (5, 3)), (6, 3, 4, (6, 9)), (4, 1, 8, (8, 8))],
)
def test_lmhsa(dim: int, heads: int, k: int, grid: tuple[int, int], with_bias: bool, fused: bool) -> None:
    attention = ready(LightweightAttention(dim, heads, kv_stride=k))
    attention.fused_attn = fused
    x = image(2, dim, *grid)
    num_keys = -(-grid[0] // k) * -(-grid[1] // k)
    bias = image(1, heads, grid[0] * grid[1], num_keys, seed=2) if with_bias else None
    expected = equations.lmhsa(x.numpy(), arrays(attention), heads, k, None if bias is None else bias[0].numpy())
    agree(attention(x, bias), expected)


@pytest.mark.parametrize(("k", "grid"), [(2, (4, 6)), (1, (3, 3)), (4, (5, 7))])
def test_fused_and_explicit_attention_agree_in_single_precision(k: int, grid: tuple[int, int]) -> None:
    attention = randomise(LightweightAttention(16, 4, kv_stride=k, position_bias=PositionBias(4, grid, k))).eval()
    x = image(2, 16, *grid).float()
    attention.fused_attn = True
    fused = attention(x)
    attention.fused_attn = False
    torch.testing.assert_close(attention(x), fused, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("k", "grid"), [(2, (4, 4)), (2, (3, 5)), (1, (4, 3))])
def test_block(k: int, grid: tuple[int, int]) -> None:
    block = ready(Block(8, LightweightAttention(8, 2, kv_stride=k), InvertedResidualFFN(8, 20)))
    x = image(2, 8, *grid)
    bias = image(1, 2, grid[0] * grid[1], -(-grid[0] // k) * -(-grid[1] // k), seed=2)
    agree(block(x, bias), equations.block(x.numpy(), arrays(block), 2, k, bias[0].numpy()))


@pytest.mark.parametrize("size", [(8, 12), (7, 9)])
def test_stage(size: tuple[int, int]) -> None:
    blocks = [Block(8, LightweightAttention(8, 2, kv_stride=2), InvertedResidualFFN(8, 16)) for _ in range(2)]
    stage = ready(Stage(Downsample(6, 8), PositionBias(2, (4, 6), 2), blocks))
    x = image(2, 6, *size)
    agree(stage(x), equations.stage(x.numpy(), arrays(stage), 2, 2, 2))


def test_final_convolution_is_conv_then_norm_then_silu() -> None:
    final = ready(FinalConv(6, 10))
    x = image(2, 6, 3, 4)
    w = arrays(final)
    normal = equations.batch_norm(equations.conv(x.numpy(), equations.under(w, "conv")), equations.under(w, "norm"))
    agree(final(x), equations.silu(normal))


@pytest.mark.parametrize(
    ("grid", "keys", "new", "new_keys"),
    [((4, 4), (2, 2), (6, 6), (3, 3)), ((4, 6), (2, 3), (5, 3), (3, 2)), ((5, 5), (5, 5), (3, 7), (3, 7))],
)
def test_bias_resampling(
    grid: tuple[int, int], keys: tuple[int, int], new: tuple[int, int], new_keys: tuple[int, int]
) -> None:
    table = image(1, 3, *grid, *keys)
    k = grid[0] // keys[0]
    expected = equations.resampled_bias(table[0].numpy(), new, k)
    ours = resample_bias_grid(table, *new, *new_keys)
    agree(ours.reshape(1, *expected.shape)[0], expected)


@pytest.mark.parametrize("rel_pos", ["stage", "block", "none"])
@pytest.mark.parametrize("size", [(32, 32), (40, 27)])
def test_whole_network(size: tuple[int, int], rel_pos: str) -> None:
    model = ready(
        CMT(
            img_size=32,
            in_chans=2,
            num_classes=5,
            stem_width=3,
            dims=(4, 6, 8, 12),
            depths=(1, 2, 1, 1),
            mlp_ratio=3.6,
            num_heads=(1, 2, 4, 4),
            kv_strides=(8, 4, 2, 1),
            head_width=7,
            rel_pos=rel_pos,
        )
    )
    x = image(2, 2, *size)
    w = arrays(model)
    y = equations.stem(x.numpy(), equations.under(w, "stem"))
    for i, (depth, heads, k) in enumerate(zip((1, 2, 1, 1), (1, 2, 4, 4), (8, 4, 2, 1), strict=True)):
        y = equations.stage(y, equations.under(w, f"stages.{i}"), depth, heads, k)
    agree(model(x), equations.head(y, w))


def test_eps_of_the_norms() -> None:
    """1e-5 after a stage's convolution, 1e-6 in the blocks; at a variance of about 1e-6 the difference is large."""
    x = image(1, 8, 4, 4) * 1e-3
    downsample = ready(Downsample(8, 8))
    block = ready(Block(8, LightweightAttention(8, 2), InvertedResidualFFN(8, 16)))
    with torch.no_grad():
        downsample.conv.bias.zero_()
        block.lpu.conv.bias.zero_()
        block.lmhsa.proj.weight.zero_()  # what reaches norm2 stays small
        block.lmhsa.proj.bias.zero_()
    w = arrays(downsample)
    small = equations.conv(x.numpy(), equations.under(w, "conv"), stride=2)
    agree(downsample(x), equations.layer_norm(small, equations.under(w, "norm"), 1e-5))
    w = arrays(block)
    agree(block.norm1(x), equations.layer_norm(x.numpy(), equations.under(w, "norm1"), 1e-6))
    agree(block(x), equations.block(x.numpy(), w, 2, 1, None, eps=1e-6))
