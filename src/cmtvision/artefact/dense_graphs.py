"""Exports of detectors and segmenters: graphs of ONNX Runtime that behave like the networks they were traced from.

A graph has one size: an image is padded to it with zeros at the bottom and right, as the network pads to a multiple of
32. What is found beyond the image is cut away.

B batch, C channels, H W the image's height and width, K classes, N findings; S T the graph's height and width.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from torchvision.models.detection.roi_heads import paste_masks_in_image

from cmtvision.artefact.card import Card
from cmtvision.artefact.runtimes.onnx import open_session
from cmtvision.errors import CheckpointError, ConfigError

INPUT = "images"
BOXES, SCORES, LABELS, MASKS = OF_DETECTOR = ("boxes", "scores", "labels", "masks")
LOGITS = "logits"


class _Graph:
    """A graph of one size.

    Attributes:
        num_classes: K.
        size: (S, T).
    """

    training = False

    def __init__(self, path: Path, card: Card, device: str, threads: int | None) -> None:
        assert card.export is not None
        self.session, self.device = open_session(path, device, threads)
        self.num_classes, self.size = len(card.classes), card.export.img_size
        self.outputs = tuple(one.name for one in self.session.get_outputs())
        inputs = [one.name for one in self.session.get_inputs()]
        shape = list(self.session.get_inputs()[0].shape)[1:] if inputs == [INPUT] else []
        if shape != [card.preprocess.channels, *self.size]:
            raise CheckpointError(f"{path}: takes {inputs} {shape}, expected one image of {self.size}; export it again")

    def run(self, image: torch.Tensor) -> list[torch.Tensor]:
        """The outputs for an image (C, H, W) of at most S x T."""
        height, width = image.shape[1:]
        if height > self.size[0] or width > self.size[1]:
            raise ConfigError(
                f"an image of {height} x {width} px for a model exported at {self.size[0]} x {self.size[1]}; make it "
                "smaller, look at it in windows, or export the model at a larger size"
            )
        padded = F.pad(image, (0, self.size[1] - width, 0, self.size[0] - height))[None]
        return [torch.from_numpy(one) for one in self.session.run(self.outputs, {INPUT: padded.cpu().numpy()})]


class DetectorGraph(_Graph):
    """Behaves like a ``Detector`` in eval mode.

    Attributes:
        has_masks: whether it finds a mask for each box.
    """

    def __init__(self, path: Path, card: Card, device: str, threads: int | None) -> None:
        super().__init__(path, card, device, threads)
        self.has_masks = MASKS in self.outputs
        if self.outputs not in (OF_DETECTOR[:3], OF_DETECTOR):
            raise CheckpointError(f"{path}: gives {', '.join(self.outputs)}; it is no detector")

    def __call__(self, images: Sequence[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        """Images, each (C, H, W) -> what was found in each: boxes (N, 4), scores, labels [, masks (N, 1, H, W)]."""
        return [self._found(image) for image in images]

    def _found(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        found = dict(zip(self.outputs, self.run(image), strict=True))
        height, width = image.shape[1:]
        if MASKS in found:
            found[MASKS] = paste_masks_in_image(found[MASKS], found[BOXES], self.size)[:, :, :height, :width]
        edges = torch.tensor([width, height, width, height])
        found[BOXES] = found[BOXES].minimum(edges)
        inside = (found[BOXES][:, 2:] > found[BOXES][:, :2]).all(dim=1)  # not wholly in the padding
        return {name: value[inside] for name, value in found.items()}


class SegmenterGraph(_Graph):
    """Behaves like a ``Segmenter`` in eval mode."""

    def __init__(self, path: Path, card: Card, device: str, threads: int | None) -> None:
        super().__init__(path, card, device, threads)
        if self.outputs != (LOGITS,):
            raise CheckpointError(f"{path}: gives {', '.join(self.outputs)}; it is no segmenter")

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) -> logits (B, K, H, W)."""
        height, width = images.shape[2:]
        return torch.cat([self.run(image)[0][:, :, :height, :width] for image in images])


def open_graph(folder: Path, card: Card, device: str = "auto", threads: int | None = None) -> Any:
    """The graph of an export, compared with its SHA-256; arguments as for ``open_runtime``.

    Raises:
        CheckpointError: files that are missing, torn, or of another model than the card's.
        ConfigError: a runtime that is not installed, or a device that is not there.
    """
    assert card.export is not None
    if card.export.runtime != "onnx":
        raise CheckpointError(f"{folder}: a {card.task} model for {card.export.runtime}; this version opens ONNX only")
    card.export.check_files(folder)
    kind = DetectorGraph if card.task == "detection" else SegmenterGraph
    return kind(folder / card.export.file, card, device, threads)
