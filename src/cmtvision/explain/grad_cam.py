"""Grad-CAM: which places of a stage's map speak for a class (Selvaraju et al., ICCV 2017, arXiv 1610.02391).

    Grad-CAM    L = relu(sum_c a_c A_c),    a_c = mean over places of d logit / d A_c
    HiResCAM    L = relu(sum_c d logit / d A_c * A_c)            (Draelos and Carin 2020, arXiv 2011.08891)

A is the map of a stage. Grad-CAM gives each channel one weight for the whole image, which suits the last stage, just
in front of the pooling. In earlier stages a channel speaks for a class in one place and against it in another; HiResCAM
weights each place by itself, and is the better of the two there (docs/explain.md).

Shapes: B batch, C channels, H W image in pixels, h w grid of the stage.
"""

import torch
import torch.nn.functional as F
from torch import nn

from cmtvision.errors import ConfigError
from cmtvision.explain.stage_maps import (
    Classes,
    chosen,
    evaluating,
    forward_to_stage,
    num_stages,
    stage_index,
    with_gradient,
)

LEAST_GRID = 4
"""Rows and columns below which a map hardly says where."""


def grad_cam(network: nn.Module, images: torch.Tensor, classes: Classes = None, stage: int = -1) -> torch.Tensor:
    """Grad-CAM of a stage.

    Args:
        network: CMT, or any network whose ``feature_info`` names its stages.
        images: (B, channels, H, W), as the network takes them.
        classes: (B,) indices, one for all, or None for the predicted ones.
        stage: from 1; -1 is the last.

    Returns:
        (B, h, w), from 0 up, in units of the logit; the grid is the stage's.

    Raises:
        ConfigError: no such stage or class, or a stage that the logits do not depend on.
    """
    maps, gradients = map_and_gradient(network, images, classes, stage)
    weights = gradients.mean(dim=(2, 3), keepdim=True)  # (B, C, 1, 1)
    return F.relu((weights * maps).sum(dim=1))  # (B, h, w)


def hires_cam(network: nn.Module, images: torch.Tensor, classes: Classes = None, stage: int = -1) -> torch.Tensor:
    """HiResCAM of a stage; see ``grad_cam``."""
    maps, gradients = map_and_gradient(network, images, classes, stage)
    return F.relu((gradients * maps).sum(dim=1))  # (B, h, w)


def map_and_gradient(
    network: nn.Module, images: torch.Tensor, classes: Classes = None, stage: int = -1
) -> tuple[torch.Tensor, torch.Tensor]:
    """A stage's map and the gradient of the classes' logits for it, both (B, C, h, w). See ``grad_cam``."""
    with evaluating(network):
        seen = forward_to_stage(network, with_gradient(network, images), stage)
        score = seen.logits.gather(1, chosen(seen.logits, classes)[:, None]).sum()
        (gradient,) = torch.autograd.grad(score, seen.output, materialize_grads=True)
    gradients = seen.as_map(gradient).detach()
    if not bool(gradients.any()):
        raise ConfigError(
            f"stage {stage}: the logits of {type(network).__name__} do not depend on its map (a class token decides "
            "alone after it); choose an earlier one"
        )
    return seen.as_map(seen.output).detach(), gradients


def default_stage(network: nn.Module, images: torch.Tensor) -> int:
    """The stage that Grad-CAM says most by: the last of at least 4 x 4 places whose map the logits depend on, from 1.

    The last stage of a small image may have a single place; after the last block of a ViT a class token decides alone.
    Where every map is smaller, it is the finest.

    Raises:
        ConfigError: a network without stages, or none of them is a map that the logits depend on.
    """
    stage_index(network, -1)  # refuses a network without stages
    finest, places = 0, 0
    for stage in range(num_stages(network), 0, -1):
        try:
            maps, _ = map_and_gradient(network, images[:1], stage=stage)
        except ConfigError:
            continue
        if min(maps.shape[2:]) >= LEAST_GRID:
            return stage
        if maps[0, 0].numel() > places:
            finest, places = stage, maps[0, 0].numel()
    if not finest:
        raise ConfigError(f"no stage of {type(network).__name__} gives a map that its logits depend on")
    return finest
