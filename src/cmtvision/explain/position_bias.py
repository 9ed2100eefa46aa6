"""The position bias of a stage as maps: what it adds to the attention of a place, before any image is seen.

    B[head, query, key]     learned, shared by the blocks of a stage (CMT paper, section 3.2)

For one query, its row of B is a map over the key grid: high where this head prefers to look from there. Softmax ignores
a constant, so maps are shown with their mean over the keys taken away.

Shapes: h heads, H W grid of queries, m n grid of keys.
"""

from dataclasses import dataclass

import torch
from torch import nn

from cmtvision.errors import ConfigError
from cmtvision.models.cmt import CMT
from cmtvision.models.cmt.lmhsa import LightweightAttention
from cmtvision.models.cmt.position import Grid, key_grid, whole_bias


@dataclass(frozen=True)
class BiasMaps:
    """The bias of a stage.

    Attributes:
        maps: (h, H, W, m, n): for each head and query, a map over the keys with mean 0.
        kv_stride: k, positions that a key covers in each direction.
    """

    maps: torch.Tensor
    kv_stride: int

    @property
    def spread(self) -> float:
        """Standard deviation over the keys, averaged over heads and queries, in units of the attention's logits."""
        return float(self.maps.flatten(3).std(dim=3, correction=0).mean())


def position_bias(network: nn.Module, stage: int = 1, block: int = 1, img_size: Grid | None = None) -> BiasMaps:
    """The learned position bias of a stage.

    Args:
        network: a CMT with a position bias.
        stage: from 1; -1 is the last.
        block: whose bias, from 1, where each block has its own; else the stage's.
        img_size: height and width of the image in pixels; None for the network's own.

    Raises:
        ConfigError: no CMT, no such stage or block, or no bias.
    """
    if not isinstance(network, CMT):
        raise ConfigError(f"{type(network).__name__} is no CMT and has no position bias over reduced keys")
    count = len(network.stages)
    if stage == 0 or not -count <= stage <= count:
        raise ConfigError(f"stage {stage}: a CMT has stages 1 to {count}; -1 is the last")
    found = network.stages[stage - 1 if stage > 0 else stage]
    blocks: nn.ModuleList = found.blocks  # type: ignore[assignment]
    if not 1 <= block <= len(blocks):
        raise ConfigError(f"block {block}: stage {stage} has blocks 1 to {len(blocks)}")
    attention = blocks[block - 1].lmhsa
    assert isinstance(attention, LightweightAttention)
    bias = found.position_bias if attention.position_bias is None else attention.position_bias
    if bias is None:
        raise ConfigError(f"{type(network).__name__}: made without a position bias (rel_pos 'none'); there is no map")
    height, width = img_size or network.img_size
    reduction = int(network.feature_info[stage - 1 if stage > 0 else stage]["reduction"])
    grid = (-(-height // reduction), -(-width // reduction))
    keys = key_grid(grid, attention.kv_stride)
    with torch.no_grad():
        matrix = whole_bias(bias(*grid), grid[0] * grid[1])  # type: ignore[operator]
    table = matrix[0].detach()  # (h, N, M)
    maps = (table - table.mean(dim=2, keepdim=True)).unflatten(2, keys).unflatten(1, grid)  # (h, H, W, m, n)
    return BiasMaps(maps.float(), attention.kv_stride)


def has_position_bias(network: nn.Module) -> bool:
    """Whether ``position_bias`` applies to a network."""
    return isinstance(network, CMT) and network.rel_pos != "none"
