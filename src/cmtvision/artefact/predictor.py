"""Images in, labels out: a trained model behind one small interface, whatever runs it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cmtvision.artefact.card import CARD_FILE, Card, Task, model_folder
from cmtvision.artefact.devices import pick_device
from cmtvision.artefact.files import MODEL_FILE, Artefact, read_artefact, read_card
from cmtvision.artefact.pixels import PixelInput
from cmtvision.artefact.runtime_torch import NetworkRuntime, set_threads
from cmtvision.artefact.runtimes import Runtime, check_options, open_runtime
from cmtvision.data import ImageSource, Preprocess
from cmtvision.errors import CheckpointError

__all__ = ["THRESHOLD", "Prediction", "Predictor", "load", "pick_device"]

THRESHOLD = 0.5  # of a multi-label model's probabilities: from here on it says yes


@dataclass(frozen=True)
class Prediction:
    """What the model says of one image.

    Attributes:
        label: the most probable class.
        probability: its probability, 0 to 1: softmax, or of a multi-label model the sigmoid.
        top: the most probable classes with their probabilities, best first.
        labels: the classes it decides for, most probable first: the one label, or of a multi-label model all of
            probability 0.5 and more, which may be none.
    """

    label: str
    probability: float
    top: list[tuple[str, float]]
    labels: list[str]


class Predictor:
    """A model ready to predict.

    Args:
        model: what was trained, or the card of what ``runtime`` computes.
        device: 'auto' (a GPU where there is one), 'cpu', 'cuda' or 'mps'; of an artefact.
        runtime: what computes the logits; None for the artefact's own network in PyTorch.

    Attributes:
        card: all that is known of the model but its weights.
        preprocess: how an image becomes the network's input (C, H, W).
        inputs: how an image becomes what ``forward`` takes a batch of: ``preprocess``, or for a graph with scale and
            normalisation in it the pixels in front of them, (H, W, C) uint8.
        runtime: what computes the logits.
    """

    def __init__(self, model: Artefact | Card, device: str = "auto", runtime: Runtime | None = None) -> None:
        self.card = model.card if isinstance(model, Artefact) else model
        self._artefact = model if isinstance(model, Artefact) else None
        if runtime is None and isinstance(model, Artefact):
            runtime = NetworkRuntime(model.model, device)
        if runtime is None:
            raise TypeError("Predictor: a card needs a runtime")
        self.runtime = runtime
        self.classes = self.card.classes
        self.task: Task = self.card.task
        self.preprocess = self.card.preprocess
        inside = self.card.export is not None and self.card.export.preprocess_inside
        self.inputs: Preprocess = PixelInput.of(self.preprocess) if inside else self.preprocess
        self.device = torch.device(runtime.device if runtime.name == "torch" else "cpu")

    @property
    def artefact(self) -> Artefact:
        """The network with its card. Raises CheckpointError for an export, which has none in it."""
        if self._artefact is None:
            raise CheckpointError(
                f"a model in {self.runtime.name}: no PyTorch network in it; open the run it comes from"
            )
        return self._artefact

    def logits(self, images: Sequence[ImageSource]) -> torch.Tensor:
        """Logits (len(images), classes), float32, on the CPU, of one batch.

        Raises:
            DataError: an image that cannot be read, by name.
        """
        return self.forward(torch.from_numpy(np.stack([self.inputs(image) for image in images])))

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Logits (B, classes), float32, on the CPU, of a batch of ``inputs``: (B, C, H, W), or pixels (B, H, W, C)."""
        return torch.from_numpy(self.runtime(batch.detach().cpu().numpy()))

    def predict(self, images: Iterable[ImageSource], top_k: int = 5, batch_size: int = 32) -> list[Prediction]:
        """Predict any number of images: paths, bytes, PIL images or arrays.

        Raises:
            DataError: an image that cannot be read, by name.
        """
        return list(self.stream(images, top_k, batch_size))

    def stream(self, images: Iterable[ImageSource], top_k: int = 5, batch_size: int = 32) -> Iterator[Prediction]:
        """Like predict, one prediction after another, holding one batch in memory."""
        for batch in _batched(images, batch_size):
            yield from self.decide(self.logits(batch), top_k)

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits (B, classes) as probabilities: softmax, or of a multi-label model each class's sigmoid."""
        return logits.sigmoid() if self.task == "multi-label" else logits.softmax(dim=1)

    def decide(self, logits: torch.Tensor, top_k: int = 5) -> list[Prediction]:
        """What logits (B, classes) say, image by image."""
        found = []
        for probabilities in self.probabilities(logits):
            wanted = max(top_k, int((probabilities >= THRESHOLD).sum()))  # all that a multi-label model decides for
            values, indices = probabilities.topk(min(wanted, len(self.classes)))
            ranked = [(self.classes[i], p) for i, p in zip(indices.tolist(), values.tolist(), strict=True)]
            label, probability = ranked[0]
            several = self.task == "multi-label"
            labels = [name for name, p in ranked if p >= THRESHOLD] if several else [label]
            found.append(Prediction(label, probability, ranked[:top_k], labels))
        return found


def load(path: str | Path, device: str = "auto", threads: int | None = None, streams: int | None = None) -> Predictor:
    """Open a model for prediction: a run folder, an artefact, an export, a bundle, or the model's file in one of them.

    A .pt2 export is a program; open only those that you trust.

    Args:
        path: the folder or file.
        device, threads, streams: see ``cmtvision.artefact.runtimes.open_runtime``.

    Raises:
        CheckpointError: nothing there that this version can open.
        ConfigError: a runtime that is not installed, a device that is not there, or an option that it does not have.
    """
    folder = model_folder(path)
    raw = read_card(folder)
    card = Card.from_dict(raw, folder / CARD_FILE)
    files = [MODEL_FILE] if card.export is None else list(card.export.sha256)
    if Path(path).is_file() and Path(path).name not in (CARD_FILE, *files):
        raise CheckpointError(f"{path}: not of the model that {CARD_FILE} beside it describes; that is {files[0]}")
    if card.export is None:
        check_options(card, threads, streams)
        set_threads(threads)
        return Predictor(read_artefact(folder), device)
    return Predictor(card, runtime=open_runtime(folder, raw, device, threads, streams))


def _batched(images: Iterable[ImageSource], size: int) -> Iterator[list[ImageSource]]:
    batch: list[ImageSource] = []
    for image in images:
        batch.append(image)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
