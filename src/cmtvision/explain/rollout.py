"""Attention rollout through CMT: how much of each place arrives at the end, by attention alone.

Abnar and Zuidema (ACL 2020, arXiv 2005.00928) multiply the attention matrices of all layers, each with the residual
connection as half of it. Their tokens are the same in every layer. CMT has three things that a ViT has not:

    reduced keys   a key stands for the k x k positions that it was pooled from: A (N, M) becomes A R (N, N), where R
                   shares a key equally among its positions. Padding beyond the map's edge gets no share
    a pyramid      a position of a stage stands for the 2 x 2 positions of the stage before, in equal shares
    no class token the classifier averages over the positions of the last stage: rollout begins with equal shares there

    r <- r / 2 + (r A R) / 2     for each block, from the last to the first;  A is the mean over heads

What it leaves out: the convolutions of LPU and IRFFN, which mix neighbours, are part of the residual here; values and
the output's weights are not looked at; and no class is: rollout says where a network looks, not what for.

Shapes: B batch, N = h*w positions of a stage, M reduced keys.
"""

import torch
import torch.nn.functional as F
from torch import nn

from cmtvision.errors import ConfigError
from cmtvision.explain.attention import Attention, attention_maps
from cmtvision.models.cmt.position import Grid

RESIDUAL = 0.5
_STAGE_STRIDE = 2


def attention_rollout(
    network: nn.Module, images: torch.Tensor, stage: int = -1, position: tuple[int, int] | None = None
) -> torch.Tensor:
    """Rollout from the positions of a stage back to those of the first.

    Args:
        network: a CMT.
        images: (B, channels, H, W), as the network takes them.
        stage: where it begins, from 1; -1 is the last.
        position: row and column in the grid of that stage to follow back; None for all of them in equal shares, as the
            pooling takes them.

    Returns:
        (B, h, w), shares that sum to 1, on the grid of the first stage.

    Raises:
        ConfigError: the network is no CMT, no such stage or position.
    """
    layers = attention_maps(network, images)
    last = max(layer.stage for layer in layers)
    if stage == 0 or not -last <= stage <= last:
        raise ConfigError(f"stage {stage}: {type(network).__name__} has stages 1 to {last}; -1 is the last")
    stage = stage if stage > 0 else last + 1 + stage
    layers = [layer for layer in layers if layer.stage <= stage]
    shares = _beginning(layers[-1], position)  # (B, h, w)
    for layer in reversed(layers):
        if layer.grid != tuple(shares.shape[1:]):
            shares = spread(shares, _STAGE_STRIDE, layer.grid)
        shares = RESIDUAL * shares + (1 - RESIDUAL) * _through(layer, shares)
    return shares


def spread(shares: torch.Tensor, stride: int, grid: Grid) -> torch.Tensor:
    """Hand the share of each cell to the stride x stride positions that it was pooled from, equally.

    Args:
        shares: (B, rows, columns) of the coarse grid.
        stride: side of a cell in positions of the fine grid.
        grid: rows and columns of the fine grid; cells at its edge may be cut off, and share among those that are left.

    Returns:
        (B, *grid), with the same sum.
    """
    inside = torch.ones(1, 1, *grid, dtype=shares.dtype, device=shares.device)
    padded = F.pad(inside, (0, shares.shape[2] * stride - grid[1], 0, shares.shape[1] * stride - grid[0]))
    count = F.avg_pool2d(padded, stride)[0] * stride**2  # (1, rows, columns)
    fine = (shares / count).repeat_interleave(stride, 1).repeat_interleave(stride, 2)
    return fine[:, : grid[0], : grid[1]]


def _beginning(layer: Attention, position: tuple[int, int] | None) -> torch.Tensor:
    rows, columns = layer.grid
    shares = layer.weights.new_zeros(len(layer.weights), rows, columns)
    if position is None:
        return shares + 1 / (rows * columns)
    if not (0 <= position[0] < rows and 0 <= position[1] < columns):
        raise ConfigError(f"position {position}: stage {layer.stage} has {rows} rows and {columns} columns, from 0")
    shares[:, position[0], position[1]] = 1
    return shares


def _through(layer: Attention, shares: torch.Tensor) -> torch.Tensor:
    """r A R: shares (B, h, w) of the queries as shares of the positions that their keys were made of."""
    keys = shares.flatten(1)[:, None] @ layer.weights.mean(1)  # (B, 1, M)
    return spread(keys.reshape(-1, *layer.key_grid), layer.kv_stride, layer.grid)
