"""What all runtimes have in common: a batch in, logits out; what they compute in, and the shapes that they take.

The runtimes are torch.py, onnx.py and openvino.py; open.py opens whichever a card names.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from cmtvision.artefact.card import CARD_FILE, Card
from cmtvision.errors import CheckpointError

Batch: TypeAlias = npt.NDArray[np.float32] | npt.NDArray[np.uint8]
Logits: TypeAlias = npt.NDArray[np.float32]


class Runtime(Protocol):
    """Something that computes logits.

    Attributes:
        name: 'torch', 'onnx' or 'openvino'.
        precision: that the model's file was made for: 'fp32', 'bf16', 'int8' ...
        arithmetic: what it computes in here. A processor without fp16 or bf16 computes such a model in 'fp32'.
        device: where it computes: 'cpu', 'cuda:0' ...
    """

    name: str
    precision: str
    arithmetic: str
    device: str

    def __call__(self, batch: Batch) -> Logits:
        """Logits (B, classes) float32 of a batch of any size.

        Args:
            batch: preprocessed images (B, C, H, W) float32; pixels (B, H, W, C) uint8 where scale and normalisation
                are in the graph.
        """


def arithmetic_of(precision: str, available: Collection[str]) -> str:
    """What a model of a precision is computed in.

    Args:
        precision: an export's: 'bf16', or 'int8-bf16', which is 8 bits with a rest in bf16. 'int8-weights' has floating
            point arithmetic throughout.
        available: of 'fp16', 'bf16' and 'int8', what the device computes in; else it is fp32.
    """
    parts = precision.split("-")
    rest = next((part for part in parts if part in ("fp16", "bf16") and part in available), "fp32")
    if "int8" not in parts or "weights" in parts or "int8" not in available:
        return rest
    return "int8" if rest == "fp32" else f"int8-{rest}"


def in_words(runtime: Runtime) -> str | None:
    """A line for who asked for less precise arithmetic than there is here; None where all is as asked for."""
    if runtime.arithmetic == arithmetic_of(runtime.precision, ("fp16", "bf16", "int8")):
        return None
    return f"{runtime.precision} model computed in {runtime.arithmetic}: {runtime.name} has nothing else on this device"


def input_of(card: Card) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape without the batch, and type, of what the model takes: (C, H, W) float32 or (H, W, C) uint8."""
    channels, (height, width) = card.preprocess.channels, card.preprocess.size
    if card.export is not None and card.export.preprocess_inside:
        return (height, width, channels), np.dtype(np.uint8)
    return (channels, height, width), np.dtype(np.float32)


def check_shapes(path: Path, card: Card, inputs: tuple[int, ...], logits: tuple[int, ...]) -> None:
    """Compare a graph's own shapes, without the batch, with the card's. Raises CheckpointError where they differ."""
    expected, _ = input_of(card)
    if inputs != expected or logits != (len(card.classes),):
        raise CheckpointError(
            f"{path}: takes images of {inputs} and gives logits of {logits}, {CARD_FILE} beside it says {expected} and "
            f"{len(card.classes)} classes; take both files from one export"
        )
