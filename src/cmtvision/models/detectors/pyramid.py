"""The neck of a detector: a feature pyramid (FPN, Lin et al. 2017, arXiv 1612.03144) over a backbone's maps.

maps of strides 4, 8, 16, 32 -> 1x1 conv each, the coarser added to the finer, 3x3 conv -> maps of one width,
and one or two coarser ones besides
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7

from cmtvision.errors import ConfigError


class Pyramid(nn.Module):
    """A backbone and its feature pyramid: image (B, C, H, W) -> maps (B, out_channels, H/s, W/s) by their names.

    Args:
        body: gives its maps (``create_feature_maps``).
        name: of the backbone, for errors.
        strides: of the backbone's maps that are used, finest first.
        width: channels of the pyramid's maps.
        coarser: what makes the coarser maps: 'pool' one by leaving out every second place of the last; 'maps' two by
            convolving the backbone's last, as RetinaNet does; 'pyramid' two by convolving the pyramid's last, as FCOS.

    Raises:
        ConfigError: a backbone without maps of these strides.
    """

    def __init__(self, body: nn.Module, name: str, strides: Sequence[int], width: int, coarser: str) -> None:
        super().__init__()
        reductions: list[int] = body.feature_info.reduction()  # type: ignore[union-attr, operator]
        channels: list[int] = body.feature_info.channels()  # type: ignore[union-attr, operator]
        missing = [stride for stride in strides if reductions.count(stride) != 1]
        if missing:
            raise ConfigError(
                f"backbone {name!r}: its maps have strides {', '.join(map(str, reductions))}, and a detector needs one "
                f"of each of {', '.join(map(str, strides))}; use a network whose stages halve the map"
            )
        self.body = body
        self.places = [reductions.index(stride) for stride in strides]
        self.channels_last_axis = str(getattr(body, "output_fmt", "NCHW")).endswith("NHWC")
        widths = [channels[place] for place in self.places]
        self.fpn = FeaturePyramidNetwork(widths, width, _coarser(coarser, widths[-1], width))
        self.out_channels = width

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Image (B, C, H, W) -> maps (B, out_channels, H/s, W/s), named '0', '1', ... from the finest."""
        maps = self.body(x)
        chosen = [maps[place] for place in self.places]
        if self.channels_last_axis:
            chosen = [one.permute(0, 3, 1, 2) for one in chosen]  # (B, H, W, C) -> (B, C, H, W)
        return self.fpn(OrderedDict((str(i), one) for i, one in enumerate(chosen)))


def _coarser(kind: str, last: int, width: int) -> ExtraFPNBlock:
    if kind == "pool":
        return LastLevelMaxPool()
    return LastLevelP6P7(last if kind == "maps" else width, width)
