"""What is measured: a model, and the way in which it is run.

``find_targets`` makes a target of each model that a user's words mean, as the engine and the Predictor run it;
``bench.runtimes`` makes of it one for each runtime, precision and number of threads.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeAlias

import timm
import torch
from torch import nn

from cmtvision.artefact import read_artefact
from cmtvision.artefact.card import CARD_FILE, DENSE, Card, model_folder
from cmtvision.artefact.files import MODEL_FILE, constructor_arguments
from cmtvision.data.preprocess import MAX_EDGE
from cmtvision.errors import CheckpointError, ConfigError
from cmtvision.models import build_shapes_only, create_model, list_models
from cmtvision.models.analysis.count import count, total
from cmtvision.models.analysis.dense_products import countable
from cmtvision.models.dense import create_dense
from cmtvision.models.registry import check_name, has_fixed_size

ImgSize: TypeAlias = int | tuple[int, int] | None  # side or (height, width) in pixels, None for the model's own
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "amp": 2, "int8": 1}
"""Of an activation in each precision; of a weight too, but that amp keeps weights in float32."""
AS_TRAINED = "as-trained"
"""The runtime of a target that was given no other: PyTorch, where the network convolves in channels-last memory."""
_PATTERN = set("*?[")


@dataclass(frozen=True)
class Work:
    """What one image costs a network on paper; None for what is not known of it.

    Attributes:
        input_size: (C, H, W) in pixels.
        parameters: learned values.
        values: parameters and buffers.
        macs: multiply-adds.
        activations: output elements of convolutions and matrix products.
    """

    input_size: tuple[int, int, int] | None = None
    parameters: int | None = None
    values: int | None = None
    macs: int | None = None
    activations: int | None = None

    def bytes_moved(self, batch: int, precision: str) -> int | None:
        """Bytes of a pass that no fusion saves; None where the network or the precision is not known."""
        if self.input_size is None or self.values is None or self.activations is None or precision not in BYTES:
            return None
        channels, height, width = self.input_size
        weight = BYTES["fp32"] if precision == "amp" else BYTES[precision]
        image = 2 * self.activations * BYTES[precision] + channels * height * width * BYTES["fp32"]
        return self.values * weight + batch * image


@dataclass(frozen=True)
class Target:
    """A model, and the way in which it is run.

    Attributes:
        name: what the user wrote.
        architecture: the registered name of the network, or its recipe.
        folder: of a run or an export; None for a network with random weights.
        card: of the folder.
        runtime: ``AS_TRAINED``, or of ``runtimes.RUNTIMES``.
        precision: of ``runtimes.PRECISIONS``, or an export's own.
        threads: on a CPU.
        img_size: of the image, in pixels: of NAME@SIZE, or set by whoever measures; an export has its own.
        file: the folder of the export to open, once it is made; None where PyTorch runs the network.
    """

    name: str
    architecture: str
    folder: Path | None = None
    card: Card | None = field(default=None, compare=False)
    runtime: str = AS_TRAINED
    precision: str = "fp32"
    threads: int = 1
    img_size: ImgSize = None
    file: Path | None = None

    @property
    def is_dense(self) -> bool:
        """Whether it is a detector or a segmenter."""
        return self.card is not None and self.card.task in DENSE

    @property
    def is_export(self) -> bool:
        """Whether the user named an export, whose runtime, precision and size are its own."""
        return self.card is not None and self.card.export is not None

    def build(self) -> nn.Module:
        """The network on the CPU, with the run's weights or random ones, made for the size of the image.

        Raises:
            CmtvisionError: a size the network does not take, a run that cannot be read, an export.
        """
        size = self.img_size
        if self.folder is not None:
            artefact = read_artefact(self.folder)
            model: Any = artefact.model
            size = None if _pair(size) == artefact.preprocess.size else size
        else:
            fixed = size is not None and has_fixed_size(self.architecture)
            model = create_model(self.architecture, **({"img_size": size} if fixed else {}))
        if size is not None and hasattr(model, "set_input_size"):
            model.set_input_size(img_size=size)  # or a CMT would resample its position bias in every pass
        network: nn.Module = model
        return network

    def work(self) -> Work:
        """What one image costs on paper. Raises as ``build`` does."""
        model, input_size = self._shapes()
        whole = total(count(countable(model), input_size))
        values = whole.parameters + sum(buffer.numel() for buffer in model.buffers())
        return Work(input_size, whole.parameters, values, whole.macs, whole.activations)

    def _shapes(self) -> tuple[nn.Module, tuple[int, int, int]]:
        """The network on the meta device, without values, and the (C, H, W) of its input in pixels."""
        if self.card is None:
            return build_shapes_only(self.architecture, self.img_size)
        preprocess = self.card.preprocess
        if self.is_export:
            arguments = constructor_arguments(self.card)
            if self.is_dense:
                with torch.device("meta"):
                    dense = create_dense(self.card.architecture, len(self.card.classes), **arguments).eval()
                return dense, (preprocess.channels, *preprocess.size)
            return build_shapes_only(self.architecture, preprocess.size, len(self.card.classes), arguments)
        return self.build().to("meta"), (preprocess.channels, *(_pair(self.img_size) or self.card.usual_size))


def _pair(size: ImgSize) -> tuple[int, int] | None:
    return (size, size) if isinstance(size, int) else size


def find_targets(words: Sequence[str]) -> list[Target]:
    """What words mean, in their order, each once.

    Args:
        words: names of models, ours and timm's; patterns with * ? [ ] over both; either with the size of the image
            (``resnet50@288``); recipes, for the network that they describe; runs and exports, by their folder, bundle
            or a file in it.

    Raises:
        ConfigError: an unknown name, a pattern that no name matches, a size that is no number of pixels.
            CheckpointError: a folder or a file that holds no model, a card that makes no sense.
    """
    found: dict[Path | str, Target] = {}
    for target in (target for word in words for target in _meant(word)):
        found.setdefault(target.folder.resolve() if target.folder else target.name, target)
    return list(found.values())


def _meant(word: str) -> Iterator[Target]:
    path = Path(word)
    if path.suffix in (".yaml", ".yml"):
        check_name(word)
        yield Target(word, word)
    elif (model_folder(path) / CARD_FILE).is_file() or path.is_dir() or "/" in word or "\\" in word:
        yield _stored(word)
    elif "@" in word:
        name, _, size = word.rpartition("@")
        side = int(size) if size.isdecimal() and size.isascii() else 0
        if not name or not 0 < side <= MAX_EDGE:
            raise ConfigError(f"{word!r}: around an @ stand a name and the size of the image, such as cmt_s@288")
        yield from (replace(target, name=f"{target.name}@{side}", img_size=side) for target in _meant(name))
    elif _PATTERN & set(word):
        matching = [name for name in timm.list_models() if fnmatchcase(name, word)]
        if not matching:
            start = word.partition("*")[0].partition("_")[0]
            close = [name for name in list_models() if start and name.startswith(start)]
            families = sorted({name.partition("_")[0] for name in close or list_models()})
            raise ConfigError(f"no model matches {word!r}; ours begin with {', '.join(families)}")
        yield from (Target(name, name) for name in matching)
    else:
        check_name(word)
        yield Target(word, word)


def _stored(word: str) -> Target:
    """A run or an export."""
    path, folder = Path(word), model_folder(word)
    card = Card.read(folder)
    if path.is_file():
        files = [CARD_FILE, *([MODEL_FILE] if card.export is None else card.export.sha256)]
        if path.name not in files:
            raise CheckpointError(f"{path}: not of the model beside it; its files are {', '.join(files)}")
    if card.export is None:
        return Target(word, card.architecture, folder, card)
    return Target(word, card.architecture, folder, card, card.export.runtime, card.export.precision, file=folder)
