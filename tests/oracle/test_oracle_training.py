"""The rules around the equations: drop path rates, initialisation, and the paper's complexity formulas."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cmtvision.models.cmt import CMT
from cmtvision.models.cmt.irffn import InvertedResidualFFN
from cmtvision.models.cmt.lmhsa import LightweightAttention
from cmtvision.models.cmt.lpu import LocalPerceptionUnit
from cmtvision.models.cmt.position import PositionBias

TINY = {"img_size": 64, "dims": (16, 24, 32, 48), "depths": (1, 2, 3, 2), "stem_width": 8, "head_width": 40}


def test_drop_path_rises_linearly_over_all_blocks() -> None:
    model = CMT(drop_path_rate=0.35, **TINY)
    rates = [
        [getattr(block.drop_path1, "drop_prob", 0.0), getattr(block.drop_path2, "drop_prob", 0.0)]
        for stage in model.stages
        for block in stage.blocks
    ]
    np.testing.assert_allclose(rates, np.linspace(0, 0.35, 8)[:, None].repeat(2, axis=1), atol=1e-7)


def test_drop_path_skips_both_branches_and_never_the_lpu() -> None:
    model = CMT(drop_path_rate=0.1, **TINY)
    block = model.stages[3].blocks[1].train()
    block.drop_path1.drop_prob = block.drop_path2.drop_prob = 1.0 - 1e-12
    x = torch.randn(4, 48, 2, 2)
    torch.testing.assert_close(block(x), block.lpu(x), rtol=0, atol=1e-6)


def test_initialisation() -> None:
    torch.manual_seed(3)
    model = CMT(img_size=64, num_classes=100)  # CMT-S's widths: enough numbers for statistics
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            assert module.bias.abs().max() == 0, name
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.05), name
            assert abs(module.weight.mean().item()) < 0.002, name
        elif isinstance(module, nn.Conv2d):
            assert module.bias.abs().max() == 0, name
            fan_out = module.weight.shape[0] * module.weight[0, 0].numel()  # groups ignored, as PyTorch's own rule does
            count = module.weight.numel()
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=4 / count**0.5), name
        elif isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            assert torch.equal(module.weight, torch.ones_like(module.weight)), name
            assert torch.equal(module.bias, torch.zeros_like(module.bias)), name
        elif isinstance(module, PositionBias):
            assert module.table.std().item() == pytest.approx(1.0, rel=4 / module.table.numel() ** 0.5), name


def macs(module: nn.Module, x: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(x)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(("d", "heads", "k", "side"), [(16, 1, 8, 16), (24, 2, 4, 8), (32, 4, 2, 8), (32, 8, 1, 4)])
def test_complexity_formulas_of_the_paper(d: int, heads: int, k: int, side: int) -> None:
    """O(LPU) = 9nd; O(LMHSA) = 2nd^2(1 + 1/k^2) + 2n^2 d/k^2; O(IRFFN) = 8nd^2 + 36nd.

    The paper leaves the convolution that reduces keys and values out: nd multiplications where k > 1.
    """
    n = side * side
    x = torch.randn(1, d, side, side)
    attention = LightweightAttention(d, heads, kv_stride=k)
    attention.fused_attn = False
    reduction = n * d if k > 1 else 0
    assert macs(LocalPerceptionUnit(d), x) == 9 * n * d
    assert macs(attention, x) == 2 * n * d * d + 2 * n * d * d // k**2 + 2 * n * n * d // k**2 + reduction
    assert macs(InvertedResidualFFN(d, 4 * d), x) == 8 * n * d * d + 36 * n * d
