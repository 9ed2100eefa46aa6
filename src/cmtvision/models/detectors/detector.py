"""The contract of a detector: prepared images and boxes in, losses or boxes out.

    training      losses = detector(images, targets)         a dict of scalars, whose sum is minimised
    evaluation    found = detector(images)                   for each image a dict: boxes, scores, labels [, masks]

Images are what ``Preprocess`` makes: (C, H, W), normalised, each of any size. The network pads them with zeros at the
bottom and right to one size that 32 divides, and does nothing else to them: torchvision's own transform would normalise
and resize once more, unseen. Boxes are (N, 4), x1 y1 x2 y2 in pixels of the image as it was given; labels are 0 to
num_classes - 1 for every kind (torchvision counts the background as class 0 in some of them); masks are (N, H, W) in
targets, 0 or 1, and (N, 1, H, W) in results, the probability of each pixel.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from cmtvision.models.feature_maps import layers_of
from cmtvision.models.frozen_norms import hold_norms

Target = dict[str, torch.Tensor]
STRIDE = 32  # of the coarsest map of a backbone


class Padding(GeneralizedRCNNTransform):  # type: ignore[misc]
    """Batches images of several sizes by padding: torchvision's transform without normalising and resizing."""

    def __init__(self, size_divisible: int = STRIDE) -> None:
        super().__init__(0, 0, [], [], size_divisible)  # the sizes, mean and deviation that it does not use

    def normalize(self, image: torch.Tensor) -> torch.Tensor:
        """Image (C, H, W), unchanged."""
        return image

    def resize(self, image: torch.Tensor, target: Target | None = None) -> tuple[torch.Tensor, Target | None]:
        """Image (C, H, W) and its target, unchanged."""
        return image, target

    def __repr__(self) -> str:
        return f"Padding(size_divisible={self.size_divisible})"


class Detector(nn.Module):
    """A detector of torchvision's on a backbone of timm's.

    Attributes:
        network: torchvision's module; its ``backbone.body`` is timm's.
        kind: 'retinanet', 'fcos', 'fasterrcnn' or 'maskrcnn'.
        num_classes: classes of objects, the background not counted.
        arguments: what ``create_detector`` makes this network of, without values, as JSON can hold it.
    """

    def __init__(
        self, network: nn.Module, kind: str, num_classes: int, arguments: dict[str, Any], first_label: int
    ) -> None:
        super().__init__()
        self.network = network
        self.kind = kind
        self.num_classes = num_classes
        self.arguments = arguments
        self.first_label = first_label
        self.train()

    @property
    def has_masks(self) -> bool:
        """Whether it finds a mask for each box, and needs them in targets."""
        return self.kind == "maskrcnn"

    def train(self, mode: bool = True) -> "Detector":
        """Training or evaluation mode; the backbone's held norms stay as they are."""
        super().train(mode)
        if self.arguments["frozen_norms"]:
            hold_norms(self.network.backbone.body)  # type: ignore[union-attr, arg-type]
        return self

    def get_classifier(self) -> list[nn.Module]:
        """All that is not the backbone: what learns alone where the backbone is frozen."""
        pyramid: Any = self.network.backbone
        above = [part for name, part in pyramid.named_children() if name != "body"]
        return above + [part for name, part in self.network.named_children() if name != "backbone"]

    def group_matcher(self, coarse: bool = False) -> Callable[[str], float]:
        """The layer of each parameter, for layer-wise learning rates: the backbone's own, and one above them."""
        arguments = self.arguments
        return layers_of(arguments["backbone"], arguments["backbone_arguments"], "network.backbone.body.")

    def forward(self, images: Sequence[torch.Tensor], targets: Sequence[Target] | None = None) -> Any:
        """Images, each (C, H, W), and in training what is in them -> losses, or what was found in each.

        Raises:
            ValueError: training without targets.
        """
        if self.training and targets is None:
            raise ValueError("a detector in training mode needs targets; call .eval() to find objects")
        given = None if targets is None else [self._shifted(target, self.first_label) for target in targets]
        answers = self.network(list(images), given)
        return answers if self.training else [self._shifted(answer, -self.first_label) for answer in answers]

    @staticmethod
    def _shifted(objects: Target, by: int) -> Target:
        return {**objects, "labels": objects["labels"] + by} if by else dict(objects)
