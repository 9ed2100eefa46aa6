"""What is compared: models by name, every model that a pattern means, and trained runs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeAlias

import timm
from torch import nn

from cmtvision.artefact import read_artefact
from cmtvision.artefact.card import CARD_FILE, Card, read_card
from cmtvision.errors import ConfigError
from cmtvision.models import build_shapes_only, create_model, list_models
from cmtvision.models.registry import check_name

ImgSize: TypeAlias = int | tuple[int, int] | None  # side or (height, width) in pixels, None for the model's own
_PATTERN = set("*?[")
_FROM_THE_RECIPE = ("in_chans", "img_size")


@dataclass(frozen=True)
class Subject:
    """One model of a comparison.

    Attributes:
        name: what the user wrote; its row is called so.
        architecture: the registered name of the network.
        run: the folder of a trained model, None for a network with random weights.
    """

    name: str
    architecture: str
    run: Path | None = None

    def shapes(self, img_size: ImgSize = None) -> tuple[nn.Module, tuple[int, int, int]]:
        """The network on the meta device, without values, and the (C, H, W) of its input in pixels.

        Args:
            img_size: of the image, in pixels.

        Raises:
            ConfigError: a size the network does not take.
        """
        if self.run is None:
            shapes: tuple[nn.Module, tuple[int, int, int]] = build_shapes_only(self.architecture, img_size)
            return shapes
        model, input_size = self._read(img_size)
        return model.to("meta"), input_size

    def build(self, img_size: ImgSize = None) -> nn.Module:
        """The network itself, on the CPU: with the run's weights, or random ones. Raises as ``shapes`` does."""
        if self.run is not None:
            return self._read(img_size)[0]
        cfg = timm.get_pretrained_cfg(self.architecture, allow_unregistered=True)
        fixed = img_size is not None and cfg is not None and cfg.fixed_input_size
        model: nn.Module = create_model(self.architecture, **({"img_size": img_size} if fixed else {}))
        return model

    def options(self) -> dict[str, Any]:
        """Constructor arguments of the network beyond its name, without what a recipe says of its input."""
        if self.run is None:
            return {}
        arguments = _card(self.run).arguments
        return {key: value for key, value in arguments.items() if key not in _FROM_THE_RECIPE}

    def _read(self, img_size: ImgSize) -> tuple[nn.Module, tuple[int, int, int]]:
        artefact = read_artefact(self.run or Path())
        model: Any = artefact.model
        size = (img_size, img_size) if isinstance(img_size, int) else img_size or artefact.preprocess.size
        if size != artefact.preprocess.size and hasattr(model, "set_input_size"):
            model.set_input_size(img_size=size)  # others take any size as they are, or say that they do not
        return model, (artefact.preprocess.channels, *size)


def find_subjects(words: Sequence[str]) -> list[Subject]:
    """What words mean, in their order, each once.

    Args:
        words: names of models, ours and timm's; patterns with * ? [ ] over both; folders of finished runs.

    Raises:
        ConfigError: an unknown name, or a pattern that no name matches. CheckpointError: a folder without a model.
    """
    found: dict[Any, Subject] = {}
    for subject in (subject for word in words for subject in _meant(word)):
        found.setdefault(subject.run.resolve() if subject.run else subject.name, subject)
    return list(found.values())


def _meant(word: str) -> Iterator[Subject]:
    folder = Path(word)
    if (folder / CARD_FILE).is_file() or folder.is_dir() or "/" in word or "\\" in word:
        yield Subject(word, _card(folder).architecture, folder)
    elif _PATTERN & set(word):
        matching = [name for name in timm.list_models() if fnmatchcase(name, word)]
        if not matching:
            start = word.partition("*")[0].partition("_")[0]
            close = [name for name in list_models() if start and name.startswith(start)]
            families = sorted({name.partition("_")[0] for name in close or list_models()})
            raise ConfigError(f"no model matches {word!r}; ours begin with {', '.join(families)}")
        yield from (Subject(name, name) for name in matching)
    else:
        check_name(word)
        yield Subject(word, word)


def _card(folder: Path) -> Card:
    return Card.from_dict(read_card(folder), folder / CARD_FILE)
