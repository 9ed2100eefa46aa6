"""The effective receptive field: which pixels a place of a stage's map really depends on (Luo et al., NeurIPS 2016).

    E[y, x] = mean over images of  sum over colours of | d sum_c A_c(centre) / d image[y, x] |

A is the map of a stage and its centre the place at (h // 2, w // 2). What a place could see is in CMT the whole image
from the first attention on; this is what it does see, by first order.

Shapes: B batch, C channels, H W image in pixels, h w grid of the stage.
"""

from dataclasses import dataclass

import torch
from torch import nn

from cmtvision.explain.stage_maps import evaluating, forward_to_stage, with_gradient


@dataclass(frozen=True)
class ReceptiveField:
    """Where a place looks.

    Attributes:
        shares: (H, W), sums to 1.
        centre: row and column in pixels of the middle of the place.
    """

    shares: torch.Tensor
    centre: tuple[float, float]

    def side(self, share: float = 0.5) -> int:
        """Side in pixels of the smallest square about the centre that holds this share of it."""
        height, width = self.shares.shape
        rows = (torch.arange(height) + 0.5 - self.centre[0]).abs()
        columns = (torch.arange(width) + 0.5 - self.centre[1]).abs()
        distance = torch.maximum(rows[:, None], columns[None, :]).flatten()  # of a pixel's middle, as a square grows
        order = distance.argsort(stable=True)
        reached = self.shares.flatten().cpu()[order].cumsum(0)
        place = min(int(torch.searchsorted(reached, share * float(reached[-1]))), len(order) - 1)
        return round(2 * float(distance[order[place]]) + 1)


def receptive_field(network: nn.Module, images: torch.Tensor, stage: int = -1) -> ReceptiveField:
    """The effective receptive field of the central place of a stage, averaged over images.

    Args:
        network: CMT, or any network whose ``feature_info`` names its stages.
        images: (B, channels, H, W), as the network takes them; a field that is smooth needs a hundred of them.
        stage: from 1; -1 is the last.

    Raises:
        ConfigError: no such stage, or one that is no map.
    """
    with evaluating(network):
        inputs = with_gradient(network, images)
        seen = forward_to_stage(network, inputs, stage)
        maps = seen.as_map(seen.output)  # (B, C, h, w)
        rows, columns = maps.shape[2:]
        (gradient,) = torch.autograd.grad(maps[:, :, rows // 2, columns // 2].sum(), inputs)
    field = gradient.abs().sum(dim=(0, 1))  # (H, W)
    height, width = field.shape
    centre = ((rows // 2 + 0.5) * height / rows, (columns // 2 + 0.5) * width / columns)
    return ReceptiveField(field / field.sum().clamp_min(1e-30), centre)
