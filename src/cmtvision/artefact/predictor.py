"""Images in, labels out: a trained model behind one small interface."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cmtvision.artefact.files import Artefact, Task, read_artefact
from cmtvision.data import ImageSource
from cmtvision.errors import ConfigError

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
        artefact: what was trained.
        device: 'auto' (a GPU where there is one), 'cpu', 'cuda' or 'mps'.
    """

    def __init__(self, artefact: Artefact, device: str = "auto") -> None:
        self.artefact = artefact
        self.classes = artefact.classes
        self.task: Task = artefact.task
        self.preprocess = artefact.preprocess
        self.device = torch.device(pick_device(device))
        self._model = artefact.model.eval().to(self.device).to(memory_format=torch.channels_last)

    def logits(self, images: Sequence[ImageSource]) -> torch.Tensor:
        """Logits (len(images), classes), float32, on the CPU, of one batch.

        Raises:
            DataError: an image that cannot be read, by name.
        """
        return self.forward(torch.from_numpy(np.stack([self.preprocess(image) for image in images])))

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Logits (B, classes), float32, on the CPU, of a preprocessed batch (B, C, H, W)."""
        batch = batch.to(self.device, memory_format=torch.channels_last)
        with torch.inference_mode():
            return self._model(batch).float().cpu()

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


def load(path: str | Path, device: str = "auto") -> Predictor:
    """Open a run folder or an artefact for prediction.

    Raises:
        CheckpointError: nothing there that this version can open.
    """
    path = Path(path)
    return Predictor(read_artefact(path.parent if path.is_file() else path), device)


def pick_device(wanted: str) -> str:
    """The device to use: what is wanted, or for 'auto' a GPU where there is one.

    Raises:
        ConfigError: a device that is not there.
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if wanted == "auto":
        return "cuda" if available["cuda"] else "mps" if available["mps"] else "cpu"
    if not available.get(wanted.partition(":")[0], False):
        here = ", ".join(name for name, present in available.items() if present)
        raise ConfigError(f"device {wanted!r}: not available, this machine has {here}")
    return wanted


def _batched(images: Iterable[ImageSource], size: int) -> Iterator[list[ImageSource]]:
    batch: list[ImageSource] = []
    for image in images:
        batch.append(image)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
