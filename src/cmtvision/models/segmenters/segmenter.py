"""The contract of a segmenter: image (B, C, H, W) -> logits (B, num_classes, H, W), of any size.

The network wants sides that 32 divides: the image is padded with zeros at the bottom and right, and the logits are cut
back. Images are what ``Preprocess`` makes, normalised.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from cmtvision.models.cmt.padding import pad_to_multiple
from cmtvision.models.feature_maps import layers_of
from cmtvision.models.frozen_norms import hold_norms

STRIDE = 32  # of the coarsest map of a backbone


class Segmenter(nn.Module):
    """A decoder of segmentation_models_pytorch on a backbone of timm's.

    Attributes:
        encoder: the backbone, ``encoder.model``, with the image itself as its first map.
        decoder: maps -> one map (B, width, H/s, W/s).
        head: a convolution to the classes, and the upsampling to the image's size.
        kind: 'unet', 'fpn', 'upernet' or 'deeplabv3plus'.
        num_classes: of a pixel, the background counted if it is one of them.
        arguments: what ``create_segmenter`` makes this network of, without values, as JSON can hold it.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        head: nn.Module,
        kind: str,
        num_classes: int,
        arguments: dict[str, Any],
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.head = head
        self.kind = kind
        self.num_classes = num_classes
        self.arguments = arguments
        self.train()

    def train(self, mode: bool = True) -> "Segmenter":
        """Training or evaluation mode; the backbone's held norms stay as they are."""
        super().train(mode)
        if self.arguments["frozen_norms"]:
            hold_norms(self.encoder)
        return self

    def get_classifier(self) -> list[nn.Module]:
        """All that is not the backbone: what learns alone where the backbone is frozen."""
        return [self.decoder, self.head]

    def group_matcher(self, coarse: bool = False) -> Callable[[str], float]:
        """The layer of each parameter, for layer-wise learning rates: the backbone's own, and one above them."""
        inner = "encoder.encoder.model." if isinstance(self.encoder, LastEnlarged) else "encoder.model."
        return layers_of(self.arguments["backbone"], self.arguments["backbone_arguments"], inner)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Image (B, C, H, W) -> logits (B, num_classes, H, W)."""
        logits = self.head(self.decoder(self.encoder(pad_to_multiple(x, STRIDE))))
        return logits[:, :, : x.shape[2], : x.shape[3]]


class LastEnlarged(nn.Module):
    """An encoder whose last map is enlarged twofold: stride 16 instead of 32."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    @property
    def model(self) -> nn.Module:
        """The backbone."""
        return self.encoder.model  # type: ignore[return-value]

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Image (B, C, H, W) -> maps, the last one (B, C, H/16, W/16)."""
        maps: list[torch.Tensor] = self.encoder(x)
        last = nn.functional.interpolate(maps[-1], scale_factor=2.0, mode="bilinear", align_corners=False)
        return [*maps[:-1], last]
