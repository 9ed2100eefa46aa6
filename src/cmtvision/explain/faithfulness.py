"""Whether a map names the places that the network decides by: deletion and insertion, cell by cell.

    deletion    the mean probability of the class while cells are taken away, the highest of the map first; low is good
    insertion   the same while cells are put back into an image that has lost them all; high is good

Petsiuk et al. (BMVC 2018, arXiv 1806.07421), with two differences that small images need. Cells of the map's own grid
are taken away, never single pixels: scattered single pixels destroy a small image fast whatever they show, so that a
random order of pixels beats any map. And a random order of the same cells is what a map must beat: it sees what the
holes do by themselves.

Shapes: B batch, C channels, H W image in pixels, h w grid of the map, n = h*w cells.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from cmtvision.errors import ConfigError
from cmtvision.explain.stage_maps import evaluating

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Faithfulness:
    """The probability of each image's class while cells go and come.

    Attributes:
        deletion: (B, points + 1), from the whole image to none of it.
        insertion: (B, points + 1), from none of the image to the whole.
    """

    deletion: torch.Tensor
    insertion: torch.Tensor

    @property
    def deletion_score(self) -> torch.Tensor:
        """(B,) area under the deletion curve, 0 to 1; low is good."""
        return _area(self.deletion)

    @property
    def insertion_score(self) -> torch.Tensor:
        """(B,) area under the insertion curve, 0 to 1; high is good."""
        return _area(self.insertion)


def faithfulness(
    network: nn.Module,
    images: torch.Tensor,
    classes: torch.Tensor,
    maps: torch.Tensor,
    replacement: torch.Tensor,
    seed: int = 0,
    points: int = 16,
    batch_size: int = 256,
) -> Faithfulness:
    """Deletion and insertion in the order of a map.

    Args:
        network: any classifier.
        images: (B, C, H, W), as the network takes them.
        classes: (B,) the class of each whose probability is followed.
        maps: (B, h, w), higher where a cell is said to matter more; equal cells come in a random order.
        replacement: what stands where a cell is taken away, (B, C, H, W) or what can be expanded to it.
        seed: of the order of equal cells.
        points: steps in which all cells go; fewer where there are fewer cells.
        batch_size: images computed at a time.

    Raises:
        ConfigError: a grid that does not divide the image into equal cells.
    """
    height, width = images.shape[2:]
    rows, columns = maps.shape[1:]
    if height % rows or width % columns:
        raise ConfigError(f"maps of {rows} x {columns} cells do not divide images of {height} x {width} px")
    removal = _places(maps, seed).reshape(maps.shape)  # (B, h, w): as which each cell is taken away, 0 the first
    removal = removal.repeat_interleave(height // rows, 1).repeat_interleave(width // columns, 2)[:, None]
    background = replacement.to(images).expand_as(images)
    deletion, insertion = [], []
    points = min(points, rows * columns)
    for point in range(points + 1):
        gone = removal < round(point * rows * columns / points)  # (B, 1, H, W)
        deletion.append(_probability(network, torch.where(gone, background, images), classes, batch_size))
        insertion.append(_probability(network, torch.where(gone, images, background), classes, batch_size))
    return Faithfulness(torch.stack(deletion, 1), torch.stack(insertion, 1))


def random_maps(images: torch.Tensor, grid: tuple[int, int], seed: int) -> torch.Tensor:
    """(B, *grid) maps that know nothing: what an explanation must beat."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(len(images), *grid, generator=generator).to(images.device)


def blurred(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """Images without detail, a replacement that adds no edges: a Gaussian blur of so many pixels."""
    reach = round(3 * sigma)
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=images.dtype, device=images.device) / sigma) ** 2)
    taps = (taps / taps.sum()).expand(images.shape[1], 1, -1)
    padded = F.pad(images, (reach, reach, reach, reach), mode="replicate")
    rows = F.conv2d(padded, taps[..., None, :], groups=images.shape[1])
    return F.conv2d(rows, taps[..., :, None], groups=images.shape[1])


def _places(maps: torch.Tensor, seed: int) -> torch.Tensor:
    """(B, n): the place of each cell in the order from the highest; equal cells by chance, not by where they are."""
    flat = maps.flatten(1)
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.stack([torch.randperm(flat.shape[1], generator=generator) for _ in flat]).to(flat.device)
    order = shuffled.gather(1, flat.gather(1, shuffled).argsort(dim=1, descending=True, stable=True))
    return order.argsort(dim=1)


def _probability(network: nn.Module, images: torch.Tensor, classes: torch.Tensor, batch_size: int) -> torch.Tensor:
    with evaluating(network), torch.no_grad():
        logits = torch.cat([network(batch) for batch in images.split(batch_size)])
    return logits.softmax(dim=1).gather(1, classes[:, None])[:, 0]


def _area(curve: torch.Tensor) -> torch.Tensor:
    return torch.trapezoid(curve, dim=1) / (curve.shape[1] - 1)
