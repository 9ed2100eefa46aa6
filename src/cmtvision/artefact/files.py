"""Reading and writing an artefact: a folder with model.safetensors (weights) and model.json (all else, see card.py)."""

import json
import platform
import re
from collections.abc import Mapping
from dataclasses import field, fields, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic.dataclasses import dataclass
from torch import nn
from torch.overrides import TorchFunctionMode

from cmtvision.artefact.card import CARD_FILE, CONFIG, DENSE, Card, ExportBlock, Task, read_card, sha256_of
from cmtvision.errors import CheckpointError, ConfigError, one_line
from cmtvision.files import write_text
from cmtvision.models import create_model
from cmtvision.models.dense import create_dense
from cmtvision.trust.block import TrustBlock
from cmtvision.weights import read_state_dict, write_safetensors

__all__ = [
    "CARD_FILE",
    "MODEL_FILE",
    "Artefact",
    "Task",
    "read_artefact",
    "read_card",
    "versions",
    "write_artefact",
    "write_export_card",
    "write_trust",
]

MODEL_FILE = "model.safetensors"
_MAKERS = {
    torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.arange, torch.linspace, torch.eye,
}  # fmt: skip
_LONG_LIST = re.compile(r"\[\n\s*(?:-?[\d.eE+-]+,\n\s*){20,}-?[\d.eE+-]+\n\s*\]")
_TIMES, _ROOM = 4, 1 << 25
"""How many values a network may need while it is made: so many times its weights, and buffers that no file holds."""


@dataclass(frozen=True, config=CONFIG)
class Artefact(Card):
    """A trained model: what its card says, and the network.

    Attributes:
        model: the network, in eval mode, on the CPU.
    """

    model: nn.Module = field(kw_only=True)

    @property
    def card(self) -> Card:
        """All of it but the network."""
        return Card(**{one.name: getattr(self, one.name) for one in fields(Card)})


def write_artefact(folder: str | Path, artefact: Artefact) -> Path:
    """Write model.safetensors and model.json into a folder; each file appears whole or not at all.

    Returns:
        The folder.

    Raises:
        CheckpointError: the disk refuses it.
    """
    folder = Path(folder)
    card = replace(artefact.card, provenance={**versions(), **artefact.provenance})
    write_safetensors(artefact.model.state_dict(), folder / MODEL_FILE, {"architecture": artefact.architecture})
    _write_card(folder, card)
    return folder


def write_export_card(folder: Path, source: Artefact | Card | Mapping[str, Any], export: Mapping[str, Any]) -> None:
    """Write the model.json of an export beside its files, whole or not at all.

    Args:
        folder: holds the files of the export already.
        source: the model it was made from: an artefact, a card, or what ``read_card`` gives of either. Classes,
            preprocess, metrics and provenance come from it; provenance gets an entry "exported" with versions and date.
        export: the block, see ``ExportBlock``; "files" lists the names of the files, in the place of their "sha256".

    Raises:
        CheckpointError: a block that makes no sense, a missing file, or a disk that refuses it.
    """
    card = source.card if isinstance(source, Artefact) else source
    if not isinstance(card, Card):
        card = Card.from_dict(card)
    try:
        block = {key: value for key, value in export.items() if key != "files"}
        block["sha256"] = {str(name): "" for name in export["files"]}
        parsed = ExportBlock.from_dict(block)  # refuses names that lead elsewhere before anything is read
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / CARD_FILE}: export block, {error}") from error
    parsed = replace(parsed, sha256={name: sha256_of(folder / name) for name in parsed.sha256})
    provenance = {**card.provenance, "exported": versions()}
    preprocess = replace(card.preprocess, size=parsed.img_size)
    trust = None if card.trust is None else card.trust.without_distance()  # an export gives logits and no features
    _write_card(folder, replace(card, preprocess=preprocess, provenance=provenance, export=parsed, trust=trust))


def read_artefact(folder: str | Path) -> Artefact:
    """Open an artefact or a run folder.

    Raises:
        CheckpointError: no artefact there, one of a newer format, or weights that do not fit its architecture; or an
            export, which has no weights of a network in it.
    """
    folder = Path(folder)
    return artefact_of(Card.read(folder), folder)


def artefact_of(card: Card, folder: Path) -> Artefact:
    """The artefact in a folder whose card has been read. Raises as ``read_artefact`` does."""
    if card.export is not None:
        raise CheckpointError(
            f"{folder}: an export for {card.export.runtime}, without the network's weights; give the run it comes from"
        )
    state = read_state_dict(folder / MODEL_FILE)
    model = _network(card, sum(value.numel() for value in state.values()), folder)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(
            f"{folder}: {MODEL_FILE} does not fit the architecture {card.architecture!r} of {CARD_FILE}; "
            "take both files from one run"
        ) from error
    return Artefact(**{one.name: getattr(card, one.name) for one in fields(Card)}, model=model.eval())


def versions() -> dict[str, Any]:
    """What the machine runs: package versions, Python, and the time in UTC."""
    import timm

    return {
        "cmtvision": version("cmtvision"),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def write_trust(folder: Path, card: Card, trust: TrustBlock) -> None:
    """Write a card anew with another calibration, whole or not at all. Raises CheckpointError if that fails."""
    _write_card(folder, replace(card, trust=trust))


def _write_card(folder: Path, card: Card) -> None:
    write_text(folder / CARD_FILE, _long_lists_in_a_line(json.dumps(card.to_dict(), indent=2)) + "\n")


def _long_lists_in_a_line(text: str) -> str:
    """Indented JSON with every list of more than 20 numbers in one line, so that a person can still read the rest."""
    return _LONG_LIST.sub(lambda found: " ".join(found[0].split()), text)  # a string holds no line end: it is escaped


def constructor_arguments(card: Card) -> dict[str, Any]:
    """A card's arguments as its network's constructor takes them: JSON has lists where it has tuples.

    Raises:
        ConfigError: a network that is described elsewhere, so that making it would ask the network or another folder.
    """
    if not card.architecture.replace(".", "_").isidentifier():
        raise ConfigError(
            f"architecture {card.architecture[:100]!r} is no name of a model in timm, and what it may stand for "
            "elsewhere is not fetched; write the model's name there, such as 'resnet18'"
        )
    return {key: tuple(value) if isinstance(value, list) else value for key, value in card.arguments.items()}


def _network(card: Card, elements: int, folder: Path) -> Any:
    """The card's network with random values, made in no more memory than its weights explain.

    Raises:
        CheckpointError: no such network, or arguments that it does not take.
    """
    try:
        with _Bounded(_ROOM + _TIMES * elements):
            create = create_dense if card.task in DENSE else create_model
            return create(card.architecture, num_classes=len(card.classes), **constructor_arguments(card))
    except ConfigError as error:
        raise CheckpointError(f"{folder / CARD_FILE}: {error}") from error
    except _TooLargeError:
        raise CheckpointError(
            f"{folder}: the network of {CARD_FILE} is larger than its weights in {MODEL_FILE}, {elements:,} values; "
            "take both files from one run"
        ) from None
    except Exception as error:  # constructors meet senseless values with any error
        raise CheckpointError(
            f"{folder / CARD_FILE}: {card.architecture} cannot be made with {card.arguments}: {one_line(error)}"
        ) from error


class _TooLargeError(Exception):
    """More values than there is room for."""


class _Bounded(TorchFunctionMode):
    """Counts the values of the tensors that are made, and raises _TooLargeError in front of one too many."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See torch.overrides: called for every function of torch."""
        kwargs = kwargs or {}
        if func in _MAKERS:
            shape_only = {key: value for key, value in kwargs.items() if key in ("size", "dtype", "fill_value", "end")}
            try:
                self.room -= func(*args, **shape_only, device="meta").numel()
            except RuntimeError as error:  # more than an address space, or senseless; either way not to be made
                raise _TooLargeError from error
            if self.room < 0:
                raise _TooLargeError
        return func(*args, **kwargs)
