"""The position bias of the Keras family's own CMT-Ti: one table over relative offsets in every block.

    B[head, query, key] = table[head, index(query, key)]

The table covers all offsets between two queries of the grid, (2H-1)(2W-1) of them. Where keys live on a smaller grid
that family takes the columns of the LAST M queries as if they were the keys; we do the same, since its weights were
trained so (docs/deviations.md).
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.models import register_notrace_module
from torch import nn

Grid = tuple[int, int]


def relative_index(height: int, width: int, num_keys: int, device: torch.device) -> torch.Tensor:
    """Where each query finds its bias for each key, (N, M), in a table of (2*width-1) rows of 2*height-1 offsets.

    The offsets of the first axis vary over columns of the image: on square grids that family's row-major reading of
    its meshgrid makes the horizontal offset the fast one.
    """
    position = torch.arange(height * width, device=device)
    row, column = position // width, position % width
    d_column = column[:, None] - column[None, -num_keys:] + width - 1  # (N, M)
    d_row = row[:, None] - row[None, -num_keys:] + height - 1
    return d_row * (2 * width - 1) + d_column


class RelativePositionBias(nn.Module):
    """Bias table over relative offsets, (h, 2H-1, 2W-1); zero at initialisation."""

    def __init__(self, num_heads: int, grid: Grid, kv_stride: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.kv_stride = kv_stride
        shape = (num_heads, 2 * grid[0] - 1, 2 * grid[1] - 1)
        self.table = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the table to zero."""
        nn.init.zeros_(self.table)

    @torch.jit.ignore
    def set_grid(self, grid: Grid) -> None:
        """Resample the table in place for another grid of queries; dtype, device and requires_grad are kept."""
        resampled = resample_offsets(self.table.detach(), 2 * grid[0] - 1, 2 * grid[1] - 1)
        self.table = nn.Parameter(resampled, requires_grad=self.table.requires_grad)

    def forward(self, height: int, width: int) -> torch.Tensor:
        """The bias (1, h, N, M) for a grid of height x width queries."""
        table = resample_offsets(self.table, 2 * height - 1, 2 * width - 1)
        num_keys = (-(-height // self.kv_stride)) * (-(-width // self.kv_stride))
        index = relative_index(height, width, num_keys, table.device)  # (N, M)
        return table.flatten(1)[:, index].unsqueeze(0)  # (1, h, N, M)


def resample_offsets(table: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Resample offset tables (h, rows, columns) bicubically to another size; equal sizes give equal values."""
    x = F.interpolate(table.float().unsqueeze(0), size=[rows, columns], mode="bicubic", align_corners=False)
    return x.squeeze(0).to(table.dtype)


register_notrace_module(RelativePositionBias)
