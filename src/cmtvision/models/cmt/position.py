"""Positional information: the paper's B, and the alternatives of the Keras family and DeiT (section 3.2).

    B           one value per head, query and key; the paper writes one B per attention module, the released code has
                one per stage, shared by its blocks
    relative    B[head, query, key] = table[head, row(query) - row(key) + H - 1, column(query) - column(key) + W - 1]
    embedding   x + E, one vector per position, as ViT and DeiT add it to their patches

The released code accepts one image size; here all are resampled bicubically, B over its query grid and its key grid,
as the paper describes for fine-tuning. Bicubic resampling is linear, so a resampled B is a product of two factors,

    B = P K^T   P (h, N, R): the table resampled over the query grid;  K (M, R): the resampling over its R keys

and images of more than 512 x 512 px get the factors instead: at 800 x 1333 px they are 23 times smaller than B in the
first stage, and attention needs nothing else (lmhsa.py).

The relative table covers all offsets between two queries of the grid, (2H-1)(2W-1) of them. Where keys have a smaller
grid of M cells, the Keras family uses the LAST M queries' positions as the keys' own; we do the same, since its weights
were trained this way (docs/deviations.md).

Shapes: B batch, h heads, H W grid of queries, N = H*W queries, M keys.
"""

from typing import Any, Final

import torch
import torch.nn.functional as F
from timm.models import register_notrace_function, register_notrace_module
from torch import nn

Grid = tuple[int, int]
MOST_ENTRIES = 2**22
"""Entries h * N * M up to which a resampled B is computed whole, those of CMT-S at 512 x 512 px: 16 MB in float32."""


def is_of_size(rows: int, columns: int, height: int, width: int) -> bool:
    """Whether a table of rows x columns has the wanted size; False if an exporter has symbols for the wanted size.

    A decision on symbols would freeze the size of the exported graph.
    """
    if not torch.jit.is_scripting():  # noqa: SIM102  # the scripting compiler leaves out what stands below this alone
        if not (type(height) is int and type(width) is int):
            return False
    return rows == height and columns == width


def key_grid(grid: Grid, kv_stride: int) -> Grid:
    """The grid of keys and values for a grid of queries: both sides divided by the stride, rounded up."""
    return -(-grid[0] // kv_stride), -(-grid[1] // kv_stride)


def resample_bias_grid(table: torch.Tensor, height: int, width: int, key_height: int, key_width: int) -> torch.Tensor:
    """Resample a position bias bicubically, first over the query grid, then over the key grid.

    Input (1, h, Hq, Wq, Hk, Wk), output (1, h, height, width, key_height, key_width), computed in float32.
    """
    num_heads, keys_h, keys_w = table.shape[1], table.shape[4], table.shape[5]
    x = table[0].float().flatten(3).permute(0, 3, 1, 2)  # (h, Hk*Wk, Hq, Wq)
    x = F.interpolate(x, size=[height, width], mode="bicubic", align_corners=False)  # (h, Hk*Wk, H, W)
    x = x.flatten(2).transpose(1, 2).reshape(num_heads, height * width, keys_h, keys_w)  # (h, N, Hk, Wk)
    x = F.interpolate(x, size=[key_height, key_width], mode="bicubic", align_corners=False)
    return x.reshape(1, num_heads, height, width, key_height, key_width).to(table.dtype)


def bias_factors(table: torch.Tensor, height: int, width: int, key_height: int, key_width: int) -> torch.Tensor:
    """The factors of what ``resample_bias_grid`` computes: B = P K^T.

    Input (1, h, Hq, Wq, Hk, Wk), output (h, N + M, R), R = Hk*Wk: the N rows of P, then the M rows of K.
    """
    num_heads, keys_h, keys_w = table.shape[1], table.shape[4], table.shape[5]
    rank = keys_h * keys_w
    x = table[0].float().flatten(3).permute(0, 3, 1, 2)  # (h, R, Hq, Wq)
    x = F.interpolate(x, size=[height, width], mode="bicubic", align_corners=False).flatten(2)  # (h, R, N)
    each_key = torch.eye(rank, device=table.device).reshape(1, rank, keys_h, keys_w)
    each_key = F.interpolate(each_key, size=[key_height, key_width], mode="bicubic", align_corners=False).flatten(2)
    factors = torch.cat([x, each_key.expand(num_heads, -1, -1)], dim=2)  # (h, R, N + M)
    return factors.transpose(1, 2).to(table.dtype)  # (h, N + M, R)


def whole_bias(bias: torch.Tensor, num_queries: int) -> torch.Tensor:
    """A bias that may be given by its factors, (h, N + M, R), as the matrix (1, h, N, M)."""
    if bias.dim() == 4:
        return bias
    return (bias[:, :num_queries] @ bias[:, num_queries:].transpose(1, 2)).unsqueeze(0)


register_notrace_function(whole_bias)


def is_large(table: torch.Tensor, height: int, width: int, num_keys: int, most_entries: int) -> bool:
    """Whether a resampled table should be left in factors; False if an exporter has symbols for the wanted size."""
    if not torch.jit.is_scripting():  # noqa: SIM102  # as in is_of_size
        if not (type(height) is int and type(width) is int):
            return False
    rank = table.shape[4] * table.shape[5]
    return table.shape[1] * height * width * num_keys > most_entries and 2 * rank <= num_keys


@register_notrace_module
class PositionBias(nn.Module):
    """The attention's B for one grid of queries and its grid of keys; resampled when called with another grid.

    The table is kept on its two grids, (1, h, Hq, Wq, Hk, Wk), so that a checkpoint says at which size it was trained.
    (With the leading 1 it has six dimensions: ``.to(memory_format=channels_last)`` fails on any tensor of five.)

    Attributes:
        most_entries: h * N * M up to which it is computed whole at other grids than the table's.
    """

    most_entries: Final[int]

    def __init__(self, num_heads: int, grid: Grid, kv_stride: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.kv_stride = kv_stride
        self.most_entries = MOST_ENTRIES
        shape = (1, num_heads, *grid, *key_grid(grid, kv_stride))
        self.table = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the table from a standard normal, as the released code does."""
        nn.init.normal_(self.table)

    @torch.jit.ignore
    def set_grid(self, grid: Grid) -> None:
        """Resample the table in place for another grid of queries; dtype, device and requires_grad are kept."""
        keys = key_grid(grid, self.kv_stride)
        resampled = resample_bias_grid(self.table.detach(), grid[0], grid[1], keys[0], keys[1])
        self.table = nn.Parameter(resampled, requires_grad=self.table.requires_grad)

    def forward(self, height: int, width: int) -> torch.Tensor:
        """The bias (1, h, N, M) for a grid of height x width queries; its factors (h, N + M, R) where it is large."""
        table: torch.Tensor = self.table
        key_height, key_width = (height - 1) // self.kv_stride + 1, (width - 1) // self.kv_stride + 1
        if not is_of_size(table.shape[2], table.shape[3], height, width):
            if is_large(table, height, width, key_height * key_width, self.most_entries):
                return bias_factors(table, height, width, key_height, key_width)
            table = resample_bias_grid(table, height, width, key_height, key_width)
        return table.reshape(1, table.shape[1], height * width, key_height * key_width)  # (1, h, N, M)


def relative_index(height: int, width: int, num_keys: int, device: torch.device) -> torch.Tensor:
    """Index of each query's bias for each key, (N, M), into a flat table of 2*height-1 rows of 2*width-1 offsets.

    int32: at 800 x 1216 px one matrix of the first stage has 58 million entries.
    """
    position = torch.arange(height * width, device=device, dtype=torch.int32)
    row, column = position // width, position % width
    # flat(query) - flat(key) + flat(zero offset) is the same as flattening the difference, in one matrix
    flat = row * (2 * width - 1) + column
    return flat[:, None] - flat[None, -num_keys:] + ((height - 1) * (2 * width - 1) + width - 1)  # (N, M)


@register_notrace_module
class RelativePositionBias(nn.Module):
    """The Keras family's bias: a table over relative offsets, (h, 2H-1, 2W-1), last axis horizontal; zero at first.

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
        if not is_of_size(table.shape[1], table.shape[2], rows, columns):
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


def resample_embedding(table: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resample an embedding (1, dim, H, W) bicubically to (1, dim, height, width), in float32."""
    x = F.interpolate(table.float(), size=[height, width], mode="bicubic", align_corners=False)
    return x.to(table.dtype)


@register_notrace_module
class PositionEmbedding(nn.Module):
    """DeiT's: adds a learned map to a map (B, dim, H, W); at any other size the learned map is resampled."""

    def __init__(self, dim: int, grid: Grid, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty((1, dim, *grid), device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the embedding from a normal of standard deviation 0.02, as DeiT does."""
        nn.init.trunc_normal_(self.table, std=0.02)

    @torch.jit.ignore
    def set_grid(self, grid: Grid) -> None:
        """Resample the embedding in place; dtype, device and requires_grad are kept."""
        resampled = resample_embedding(self.table.detach(), grid[0], grid[1])
        self.table = nn.Parameter(resampled, requires_grad=self.table.requires_grad)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, dim, H, W) -> map (B, dim, H, W)."""
        table: torch.Tensor = self.table
        height, width = x.shape[2], x.shape[3]
        if not is_of_size(table.shape[2], table.shape[3], height, width):
            table = resample_embedding(table, height, width)
        return x + table
