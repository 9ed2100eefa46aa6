"""What the Local Perception Unit of a block does: its depthwise kernels, and the maps before and after them.

    LPU(x) = DWConv3x3(x) + x

The identity is part of what a channel does, so a kernel is shown with 1 added in its centre.

Shapes: B batch, C channels, h w grid of the stage.
"""

from dataclasses import dataclass

import torch
from torch import nn

from cmtvision.errors import ConfigError
from cmtvision.explain.stage_maps import evaluating, with_gradient
from cmtvision.models.cmt import CMT
from cmtvision.models.cmt.lpu import LocalPerceptionUnit


@dataclass(frozen=True)
class LocalPerception:
    """One LPU at work.

    Attributes:
        kernels: (C, 3, 3), the identity included.
        before, after: (B, C, h, w), the maps that go in and come out.
    """

    kernels: torch.Tensor
    before: torch.Tensor
    after: torch.Tensor

    @property
    def change(self) -> torch.Tensor:
        """(C,) |after - before| of each channel, averaged over images and places, as a share of |before|."""
        size = self.before.abs().mean(dim=(0, 2, 3)).clamp_min(1e-12)
        return (self.after - self.before).abs().mean(dim=(0, 2, 3)) / size


def local_perception(network: nn.Module, images: torch.Tensor, stage: int = 1, block: int = 1) -> LocalPerception:
    """The LPU of a block.

    Args:
        network: a CMT whose blocks have LPUs.
        images: (B, channels, H, W), as the network takes them.
        stage: from 1; -1 is the last.
        block: from 1.

    Raises:
        ConfigError: no CMT, no such stage or block, or a block without an LPU.
    """
    unit = _unit(network, stage, block)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    handle = unit.register_forward_hook(lambda _unit, inputs, output: seen.append((inputs[0], output)))
    try:
        with evaluating(network), torch.no_grad():
            network(with_gradient(network, images))
    finally:
        handle.remove()
    kernels = unit.conv.weight.detach()[:, 0].clone()  # (C, 3, 3)
    kernels[:, 1, 1] += 1
    before, after = seen[-1]
    return LocalPerception(kernels, before.detach(), after.detach())


def has_lpu(network: nn.Module) -> bool:
    """Whether a network has Local Perception Units."""
    return isinstance(network, CMT) and any(isinstance(module, LocalPerceptionUnit) for module in network.modules())


def _unit(network: nn.Module, stage: int, block: int) -> LocalPerceptionUnit:
    if not has_lpu(network) or not isinstance(network, CMT):
        raise ConfigError(f"{type(network).__name__}: has no Local Perception Unit")
    count = len(network.stages)
    if stage == 0 or not -count <= stage <= count:
        raise ConfigError(f"stage {stage}: a CMT has stages 1 to {count}; -1 is the last")
    blocks: nn.ModuleList = network.stages[stage - 1 if stage > 0 else stage].blocks  # type: ignore[assignment]
    if not 1 <= block <= len(blocks):
        raise ConfigError(f"block {block}: stage {stage} has blocks 1 to {len(blocks)}")
    unit = blocks[block - 1].lpu
    assert isinstance(unit, LocalPerceptionUnit)
    return unit
