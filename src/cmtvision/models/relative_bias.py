"""The position bias of the Keras family's own CMT-Ti: one table over relative offsets in every block.

    B[head, query, key] = table[head, row(query) - row(key) + H - 1, column(query) - column(key) + W - 1]

The table covers all offsets between two queries of the grid, (2H-1)(2W-1) of them. Where keys live on a smaller grid
of M cells, that family takes the LAST M queries' positions for the keys' own; we do the same, since its weights were
trained so (docs/deviations.md). Not of the paper: its bias, and the released code's, is `PositionBias` in lmhsa.py.

Shapes: h heads, H W grid of queries, N = H*W queries, M keys.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.models import register_notrace_module
from torch import nn

Grid = tuple[int, int]


def relative_index(height: int, width: int, num_keys: int, device: torch.device) -> torch.Tensor:
    """Where each query finds its bias for each key, (N, M), in a flat table of 2*height-1 rows of 2*width-1 offsets.

    int32: at 800 x 1216 px one matrix of the first stage has 58 million entries.
    """
    position = torch.arange(height * width, device=device, dtype=torch.int32)
    row, column = position // width, position % width
    # flat(query) - flat(key) + flat(zero offset) is the same as flattening the difference, in one matrix
    flat = row * (2 * width - 1) + column
    return flat[:, None] - flat[None, -num_keys:] + ((height - 1) * (2 * width - 1) + width - 1)  # (N, M)


class RelativePositionBias(nn.Module):
    """Bias table over relative offsets, (h, 2H-1, 2W-1), last axis horizontal; zero at initialisation.

    Called with another grid than the table's it resamples the table bicubically.
    """

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
        table: torch.Tensor = self.table
        rows, columns = 2 * height - 1, 2 * width - 1
        if torch.jit.is_scripting():
            resample = table.shape[1] != rows or table.shape[2] != columns
        else:
            # an exporter with a dynamic size sees symbols here: deciding on them would freeze the size
            symbolic = not (type(height) is int and type(width) is int)
            resample = symbolic or table.shape[1] != rows or table.shape[2] != columns
        if resample:
            table = resample_offsets(table, rows, columns)
        num_queries = height * width
        num_keys = (-(-height // self.kv_stride)) * (-(-width // self.kv_stride))
        index = relative_index(height, width, num_keys, table.device)  # (N, M)
        bias = table.flatten(1).index_select(1, index.flatten())  # (h, N*M)
        return bias.reshape(1, table.shape[0], num_queries, num_keys)  # (1, h, N, M)


def resample_offsets(table: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Resample offset tables (h, rows, columns) bicubically, in float32; the zero offset stays in the middle."""
    x = F.interpolate(table.float().unsqueeze(0), size=[rows, columns], mode="bicubic", align_corners=False)
    return x.squeeze(0).to(table.dtype)


register_notrace_module(RelativePositionBias)
