"""One image explained by one method: what ``cmtvision explain`` does."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import timm
import torch
from matplotlib.figure import Figure
from torch import nn

from cmtvision.artefact import read_artefact
from cmtvision.artefact.card import CARD_FILE, model_folder
from cmtvision.artefact.runtimes.torch import pick_device, set_threads
from cmtvision.data import ImageSource, Preprocess
from cmtvision.errors import ConfigError
from cmtvision.explain.drawing import check_png, save_png
from cmtvision.explain.methods import METHODS, Answer, Method, Question, applicable
from cmtvision.explain.stage_maps import num_stages
from cmtvision.models import create_model

RANDOM_WEIGHTS = "random weights: this shows how the network is built, and nothing that was learned"
_SEED = 0


@dataclass(frozen=True)
class Explanation:
    """What a method says of one image.

    Attributes:
        model: as it was named.
        trained: whether its weights were; a model given by its name has random ones.
        method: one of ``METHODS``.
        stage, num_stages: which stage, from 1, and of how many; None and 0 where the method looks at no stage.
        label: the class that is explained, None where the method looks at no class.
        predicted: the most probable class.
        probabilities: by class name.
        picture: (H, W, 3) the image as the network saw it.
        values: the numbers behind the picture; their shape is the method's.
        facts: figures worth telling, such as the completeness error.
        remarks: reasons to distrust the map.
    """

    model: str
    trained: bool
    method: str
    stage: int | None
    num_stages: int
    label: str | None
    predicted: str
    probabilities: dict[str, float]
    picture: npt.NDArray[np.uint8]
    values: npt.NDArray[np.float32]
    facts: dict[str, Any]
    remarks: tuple[str, ...] = ()
    _draw: Callable[[npt.NDArray[np.uint8], str, str], Figure] = field(repr=False, kw_only=True)

    @property
    def title(self) -> str:
        """What the picture shows, in one line."""
        parts = [METHODS[self.method].title]
        if self.stage is not None:
            parts.append(f"stage {self.stage} of {self.num_stages}")
        if self.label is not None:
            parts.append(f"class {self.label} ({self.probabilities[self.label]:.1%})")
        return ", ".join(parts)

    def figure(self) -> Figure:
        """The picture as a matplotlib figure: image, map, legend."""
        return self._draw(self.picture, self.title, "; ".join(self.remarks))

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> Path:
        """Write the picture as a PNG file, whole or not at all.

        Raises:
            ConfigError: a name that does not end in .png, or a file that is there already.
            CheckpointError: it cannot be written.
        """
        path = Path(path)
        check_png(path)
        if path.exists() and not overwrite:
            raise ConfigError(f"{path}: already exists; choose another name, or overwrite it")
        return save_png(self.figure(), path)

    def in_words(self) -> list[str]:
        """The facts, a line each."""
        say = METHODS[self.method].in_words
        return [] if say is None else [say(self.facts)]

    def to_dict(self) -> dict[str, Any]:
        """All but the arrays, ready for JSON."""
        return {
            "model": self.model,
            "weights": "trained" if self.trained else "random",
            "method": self.method,
            "stage": self.stage,
            "num_stages": self.num_stages or None,
            "class": self.label,
            "probability": None if self.label is None else self.probabilities[self.label],
            "predicted": self.predicted,
            "values": {"what": METHODS[self.method].shape, "shape": list(self.values.shape)},
            **self.facts,
            "remarks": list(self.remarks),
        }


def explain_image(
    model: str | os.PathLike[str],
    image: ImageSource,
    method: str = "grad-cam",
    stage: int | None = None,
    label: str | None = None,
    device: str = "cpu",
) -> Explanation:
    """Explain what a model makes of one image.

    Args:
        model: a run folder or an artefact, or the name of a model (ours or any of timm) for one with random weights.
        image: whatever ``cmtvision.data.open_image`` takes.
        method: one of ``METHODS``.
        stage: from 1, as the paper counts; -1 is the last; None for the method's own choice.
        label: name of the class to explain, None for the most probable one. Of a model given by name, its number.
        device: 'auto', 'cpu', 'cuda' or 'mps'.

    Raises:
        ConfigError: a method that does not exist or does not apply to the model, no such stage or class, or one where
            the method looks at none; an unknown model.
        CheckpointError: a folder without a trained network.
        DataError: an image that cannot be read.
    """
    chosen = _method(method)
    if stage is not None and not chosen.per_stage:
        raise ConfigError(f"stage {stage}: {method} looks at the whole network; leave the stage out")
    if label is not None and not chosen.per_class:
        per_class = ", ".join(name for name, one in METHODS.items() if one.per_class)
        raise ConfigError(f"class {label!r}: {method} looks at no class; leave it out, or choose {per_class}")
    subject = _open(model, device)
    if not chosen.applies(subject.network):
        others = ", ".join(applicable(subject.network))
        raise ConfigError(f"{method} does not apply to {model}: it has nothing to look at there; {others} do")
    images = torch.from_numpy(subject.preprocess(image))[None].to(subject.device)
    with torch.no_grad():
        logits = subject.network(images)[0].float().cpu()
    probabilities = logits.sigmoid() if subject.several else (logits / subject.temperature).softmax(0)
    place = int(logits.argmax()) if label is None else _place(subject.classes, label, str(model))
    answer: Answer = chosen.ask(Question(subject.network, images, place, stage))
    remarks = [] if subject.trained else [RANDOM_WEIGHTS]
    return Explanation(
        model=str(model),
        trained=subject.trained,
        method=method,
        stage=answer.stage,
        num_stages=num_stages(subject.network) if answer.stage is not None else 0,
        label=subject.classes[place] if chosen.per_class else None,
        predicted=subject.classes[int(logits.argmax())],
        probabilities=dict(zip(subject.classes, probabilities.tolist(), strict=True)),
        picture=_picture(subject.preprocess, image),
        values=answer.values,
        facts=answer.facts,
        remarks=tuple(remarks + [answer.remark] * bool(answer.remark)),
        _draw=answer.draw,
    )


@dataclass(frozen=True)
class _Subject:
    """A network ready to be asked."""

    network: nn.Module
    classes: list[str]
    preprocess: Preprocess
    device: str
    trained: bool
    several: bool = False
    temperature: float = 1.0


def _open(model: str | os.PathLike[str], device: str) -> _Subject:
    device = pick_device(device)
    set_threads(None)
    word = os.fspath(model)
    path = Path(word)
    is_recipe = path.suffix in (".yaml", ".yml")
    if not is_recipe and ((model_folder(path) / CARD_FILE).is_file() or path.is_dir() or "/" in word or "\\" in word):
        artefact = read_artefact(model_folder(path))
        artefact.card.check_classifier(path)
        network = artefact.model.eval().to(device)
        return _Subject(
            network,
            list(artefact.classes),
            artefact.preprocess,
            device,
            trained=True,
            several=artefact.task == "multi-label",
            temperature=artefact.temperature,
        )
    with torch.random.fork_rng():
        torch.manual_seed(_SEED)  # the same picture each time
        network = create_model(word).eval().to(device)
    preprocess = Preprocess.from_timm(timm.data.resolve_model_data_config(network))
    classes = [str(number) for number in range(network.num_classes)]
    return _Subject(network, classes, preprocess, device, trained=False)


def _method(name: str) -> Method:
    if name not in METHODS:
        close = get_close_matches(name, METHODS, 1)
        hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(METHODS)}"
        raise ConfigError(f"unknown method {name!r}; {hint}")
    return METHODS[name]


def _place(classes: list[str], label: str, model: str) -> int:
    if label in classes:
        return classes.index(label)
    close = get_close_matches(label, classes, 2)
    known = f"did you mean {' or '.join(close)}?" if close else f"its classes are {', '.join(classes[:10])}"
    raise ConfigError(
        f"class {label!r}: {model} does not know it; {known}{', ...' * (not close and len(classes) > 10)}"
    )


def _picture(preprocess: Preprocess, image: ImageSource) -> npt.NDArray[np.uint8]:
    """The image (H, W, 3) as the network sees it: resized and cropped, before the normalisation."""
    pixels = preprocess.prepare(image)
    if pixels.shape[2] not in (1, 3):  # other channels than colours have no picture but their mean
        pixels = pixels.mean(axis=2, keepdims=True).astype(np.uint8)
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3)) if pixels.shape[2] == 1 else pixels
