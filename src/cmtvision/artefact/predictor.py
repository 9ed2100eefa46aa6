"""Images in, labels out: a trained model behind one small interface, whatever runs it."""

import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import SupportsIndex, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from cmtvision.artefact.card import CARD_FILE, Card, Task, model_folder
from cmtvision.artefact.features import read_features
from cmtvision.artefact.files import MODEL_FILE, Artefact, artefact_of
from cmtvision.artefact.pixels import PixelInput
from cmtvision.artefact.prediction import Prediction
from cmtvision.artefact.runtimes.base import Runtime
from cmtvision.artefact.runtimes.fast import FastRuntime
from cmtvision.artefact.runtimes.open import check_options, open_runtime
from cmtvision.artefact.runtimes.torch import NetworkRuntime, pick_device
from cmtvision.data import ImageSource, Preprocess, each_image
from cmtvision.data.ahead import ahead
from cmtvision.errors import CheckpointError, ConfigError
from cmtvision.trust.answers import NOTHING_MORE, Ask, answers
from cmtvision.trust.block import TrustBlock
from cmtvision.trust.conformal import SetKind
from cmtvision.trust.familiarity import neighbour_distance, of_unit_length

Item = TypeVar("Item")

__all__ = ["CALIBRATE", "THRESHOLD", "Ask", "Prediction", "Predictor", "load", "pick_device"]

CALIBRATE = "cmtvision calibrate MODEL DATA"
THRESHOLD = 0.5  # of a multi-label model's probabilities: from here on it says yes


class Predictor:
    """A model ready to predict.

    Args:
        model: what was trained, or the card of what ``runtime`` computes.
        device: 'auto' (a GPU where there is one), 'cpu', 'cuda' or 'mps'; of an artefact.
        runtime: what computes the logits; None for the artefact's own network in PyTorch.
        familiar: (M, D) features of held-out images, as the card's calibration has them; None for none.

    Attributes:
        card: all that is known of the model but its weights.
        trust: its calibration, None for none.
        preprocess: how an image becomes the network's input (C, H, W).
        inputs: how an image becomes what ``forward`` takes a batch of: ``preprocess``, or for a graph with scale and
            normalisation in it the pixels in front of them, (H, W, C) uint8.
        runtime: what computes the logits.
    """

    def __init__(
        self,
        model: Artefact | Card,
        device: str = "auto",
        runtime: Runtime | None = None,
        familiar: npt.NDArray[np.float32] | None = None,
    ) -> None:
        self.card = model.card if isinstance(model, Artefact) else model
        self._artefact = model if isinstance(model, Artefact) else None
        if runtime is None and isinstance(model, Artefact):
            runtime = NetworkRuntime(model.model, device)
        if runtime is None:
            raise TypeError("Predictor: a card needs a runtime")
        self.runtime = runtime
        self.classes = self.card.classes
        self.task: Task = self.card.task
        self.trust: TrustBlock | None = self.card.trust
        self._familiar = familiar
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

    def logits(self, images: ImageSource | Iterable[ImageSource]) -> torch.Tensor:
        """Logits (images, classes), float32, on the CPU, of one batch; images as ``predict`` takes them.

        Raises:
            DataError: an image that cannot be read, by name.
        """
        inputs = [self.inputs(image) for image in each_image(images)]
        return torch.from_numpy(self.runtime(np.stack(inputs))) if inputs else torch.zeros(0, len(self.classes))

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Logits (B, classes), float32, on the CPU, of a batch of ``inputs``: (B, C, H, W), or pixels (B, H, W, C)."""
        return torch.from_numpy(self.runtime(batch.detach().cpu().numpy()))

    def examine(self, batch: torch.Tensor) -> tuple[torch.Tensor, npt.NDArray[np.float32] | None]:
        """Logits as of ``forward``, and features as of ``with_features`` where there are any to compare them with."""
        return (self.forward(batch), None) if not self.measures_distance else self.with_features(batch)

    @property
    def measures_distance(self) -> bool:
        """Whether predictions have a feature distance."""
        return self._familiar is not None and isinstance(self.runtime, NetworkRuntime)

    def with_features(self, batch: torch.Tensor) -> tuple[torch.Tensor, npt.NDArray[np.float32] | None]:
        """Logits, and features (B, D) of the same pass: what the classifier is given.

        The features are None of an export, and of a network that hides them.
        """
        if not isinstance(self.runtime, NetworkRuntime):
            return self.forward(batch), None
        logits, features = self.runtime.with_features(batch.detach().cpu().numpy())
        return torch.from_numpy(logits), features

    def predict(
        self,
        images: ImageSource | Iterable[ImageSource],
        top_k: int = 5,
        batch_size: int = 32,
        *,
        conformal: float | None = None,
        sets: SetKind = "lac",
        abstain: float | None = None,
    ) -> list[Prediction]:
        """Predict any number of images.

        Args:
            images: a list, or anything else that gives one image after another: paths, bytes, open files, PIL images,
                arrays or tensors, as ``cmtvision.data.open_image`` reads them. One image alone is a list of one; an
                array (N, H, W, C) or a tensor (N, C, H, W) is N images, any of two or three dimensions is one.
            top_k: how many classes to name for each image, at least 1; all where there are fewer.
            batch_size: images computed at a time, at least 1.
            conformal, sets, abstain: see ``Ask``.

        Raises:
            DataError: an image that cannot be read, by name, or no images at all but something else.
            ConfigError: top_k or batch_size below 1, or what only a calibrated model can be asked.
        """
        return list(self.stream(images, top_k, batch_size, Ask(conformal, sets, abstain)))

    def stream(
        self,
        images: ImageSource | Iterable[ImageSource],
        top_k: int = 5,
        batch_size: int = 32,
        ask: Ask = NOTHING_MORE,
    ) -> Iterator[Prediction]:
        """Like predict, one prediction after another, holding a few batches in memory.

        Images of a list are prepared while the network computes those before them; anything else that gives images is
        asked for the next batch only when the one before has been answered.
        """
        batch_size = _at_least_one("batch_size", batch_size)
        top_k = _at_least_one("top_k", top_k)
        self.check_ask(ask)
        pixels = ahead(self.inputs.prepare, each_image(images), self.preprocess, batch_size)
        batches = _batched(pixels, batch_size)
        examined = (self.examine(self.batch_of(batch)) for batch in batches)
        return (found for logits, features in examined for found in self.decide(logits, top_k, features, ask))

    def batch_of(self, pixels: Sequence[npt.NDArray[np.uint8]]) -> torch.Tensor:
        """What ``forward`` takes, of the pixels of some images that ``inputs.prepare`` has prepared."""
        return torch.from_numpy(np.stack([self.inputs.finish(one) for one in pixels]))

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits (B, classes) as probabilities: softmax with the temperature, or of a multi-label model the sigmoid."""
        if self.task == "multi-label":
            return logits.sigmoid()
        return (logits / self.card.temperature).softmax(dim=1)

    def check_ask(self, ask: Ask) -> None:
        """Raises ConfigError for what the model cannot be asked."""
        if not ask.anything:
            return
        if self.task == "multi-label":
            raise ConfigError("prediction sets and abstaining: for models with one label per image, this has several")
        if self.trust is None:
            raise ConfigError(f"prediction sets and abstaining: this model is not calibrated; run {CALIBRATE}")
        try:
            ask.check()
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def decide(
        self,
        logits: torch.Tensor,
        top_k: int = 5,
        features: npt.NDArray[np.float32] | None = None,
        ask: Ask = NOTHING_MORE,
    ) -> list[Prediction]:
        """What logits (B, classes) say, image by image.

        Args:
            logits, features: as ``examine`` gives them.
            top_k: how many classes to name.
            ask: what else is asked of a calibrated model.

        Raises:
            ConfigError: a top_k below 1, or what the model cannot be asked.
            CheckpointError: logits that are no numbers.
        """
        top_k = _at_least_one("top_k", top_k)
        self.check_ask(ask)
        if not bool(torch.isfinite(logits).all()):
            raise CheckpointError("the model gives logits that are no numbers; its weights or its card are damaged")
        found = []
        for probabilities in self.probabilities(logits):
            wanted = max(top_k, int((probabilities >= THRESHOLD).sum()))  # all that a multi-label model decides for
            values, indices = probabilities.topk(min(wanted, len(self.classes)))
            ranked = [(self.classes[i], p) for i, p in zip(indices.tolist(), values.tolist(), strict=True)]
            label, probability = ranked[0]
            several = self.task == "multi-label"
            labels = [name for name, p in ranked if p >= THRESHOLD] if several else [label]
            found.append(Prediction(label, probability, ranked[:top_k], labels))
        if self.trust is None or not found:
            return found
        highest = [one.probability for one in found]
        more = answers(self.trust, logits.numpy(), highest, ask, self._distances(self.trust, features))
        return [
            replace(
                one,
                labels=[] if added.unsure else one.labels,
                **{**added._asdict(), "set": None if added.set is None else [self.classes[i] for i in added.set]},
            )
            for one, added in zip(found, more, strict=True)
        ]

    def _distances(self, trust: TrustBlock, features: npt.NDArray[np.float32] | None) -> npt.NDArray[np.float64] | None:
        """(B,) of features (B, D); None where they, or the held-out images' own, are not at hand."""
        if features is None or self._familiar is None or trust.distance is None:
            return None
        if features.shape[1] != self._familiar.shape[1] or trust.distance.neighbours > len(self._familiar):
            raise CheckpointError(
                f"features of {features.shape[1]} numbers, of the held-out images {self._familiar.shape[1]}; "
                f"calibrate the model again: {CALIBRATE}"
            )
        return neighbour_distance(of_unit_length(features), self._familiar, trust.distance.neighbours)


def load(
    path: str | Path,
    device: str = "auto",
    threads: int | None = None,
    streams: int | None = None,
    plain: bool = False,
) -> Predictor:
    """Open a model for prediction: a run folder, an artefact, an export, a bundle, or the model's file in one of them.

    A .pt2 export is a program; open only those that you trust.

    Args:
        path: the folder or file.
        device, threads, streams: see ``cmtvision.artefact.runtimes.open.open_runtime``.
        plain: compute a run as it was trained, layer by layer, not in the fastest form that gives the same numbers to
            1e-5 of the largest (see ``cmtvision.artefact.runtimes.fast``).

    Raises:
        CheckpointError: nothing there that this version can open.
        ConfigError: a runtime that is not installed, a device that is not there, or an option that it does not have.
    """
    folder = model_folder(path)
    card = read_named_card(path)
    return load_card(card, folder, device, threads, streams, plain)


def read_named_card(path: str | Path) -> Card:
    """The card of a model that is given by its folder, or by its file in it. Raises CheckpointError for other files."""
    card = Card.read(model_folder(path))
    files = [MODEL_FILE] if card.export is None else list(card.export.sha256)
    if Path(path).is_file() and Path(path).name not in (CARD_FILE, *files):
        raise CheckpointError(f"{path}: not of the model that {CARD_FILE} beside it describes; that is {files[0]}")
    return card


def load_card(
    card: Card,
    folder: Path,
    device: str = "auto",
    threads: int | None = None,
    streams: int | None = None,
    plain: bool = False,
) -> Predictor:
    """Open the model in a folder whose card has been read. Raises as ``load`` does."""
    card.check_classifier(folder)
    if card.export is None:
        check_options(card, threads, streams)
        artefact = artefact_of(card, folder)
        kind = NetworkRuntime if plain else FastRuntime
        runtime = kind(artefact.model, device, threads)
        return Predictor(artefact, runtime=runtime, familiar=read_features(folder, card))
    return Predictor(card, runtime=open_runtime(folder, card, device, threads, streams))


def _at_least_one(name: str, value: SupportsIndex) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise ConfigError(f"{name}: got {value!r}, expected a whole number of at least 1")
    return number


def _batched(images: Iterable[Item], size: int) -> Iterator[list[Item]]:
    batch: list[Item] = []
    for image in images:
        batch.append(image)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
