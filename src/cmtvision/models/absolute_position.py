"""A learned absolute position embedding, as ViT and DeiT add it to their patches: x + E, one vector a position.

CMT has none: its LPU and its position bias do without. It is here for the rungs of the ladder below the LPU, and for
those who want to see what each way of telling positions is worth.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.models import register_notrace_module
from torch import nn

Grid = tuple[int, int]


def resample_embedding(table: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resample an embedding (1, dim, H, W) bicubically to (1, dim, height, width), in float32."""
    x = F.interpolate(table.float(), size=[height, width], mode="bicubic", align_corners=False)
    return x.to(table.dtype)


@register_notrace_module
class PositionEmbedding(nn.Module):
    """Adds a learned map to a map (B, dim, H, W); at another size than its own the learned map is resampled."""

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
        if torch.jit.is_scripting():
            resample = table.shape[2] != height or table.shape[3] != width
        else:
            # an exporter with a dynamic size sees symbols here: deciding on them would freeze the size
            symbolic = not (type(height) is int and type(width) is int)
            resample = symbolic or table.shape[2] != height or table.shape[3] != width
        if resample:
            table = resample_embedding(table, height, width)
        return x + table
