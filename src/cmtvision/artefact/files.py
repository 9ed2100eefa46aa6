"""Reading and writing an artefact: a folder with model.safetensors (weights) and model.json (all else).

model.json holds the format version, the task, the architecture and its arguments, the classes in the order of the
logits, the preprocess block, metrics and provenance. Nothing in it is executed, and nothing else is needed to predict.

Format 2 is format 1 with task 'multi-label': a reader of format 1 knows no task and would turn such a model's logits
into probabilities that add up to 1, so it must refuse the file. Models with one label a photo stay format 1.
"""

import json
import platform
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import nn

from cmtvision.data.preprocess import Preprocess
from cmtvision.errors import CheckpointError, ConfigError, DataError
from cmtvision.models import create_model
from cmtvision.weights import read_state_dict, write_safetensors
from cmtvision.weights.files import atomic_write

Task: TypeAlias = Literal["single-label", "multi-label"]
FORMAT_VERSIONS: dict[Task, int] = {"single-label": 1, "multi-label": 2}
MODEL_FILE = "model.safetensors"
CARD_FILE = "model.json"
MAX_CARD_BYTES = 10_000_000


@dataclass(frozen=True)
class Artefact:
    """A trained model and what is needed to use it.

    Attributes:
        model: the network, in eval mode, on the CPU.
        architecture: its name in timm.
        arguments: what it was created with, beyond num_classes.
        classes: class names in the order of the logits.
        preprocess: how an image becomes its input.
        metrics: figures measured when it was written.
        provenance: where it comes from: recipe, data fingerprint, versions, date.
        task: 'single-label' (its classes exclude each other) or 'multi-label' (each is a yes or no of its own).
    """

    model: nn.Module
    architecture: str
    arguments: dict[str, Any]
    classes: list[str]
    preprocess: Preprocess
    metrics: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    task: Task = "single-label"


def write_artefact(folder: str | Path, artefact: Artefact) -> Path:
    """Write model.safetensors and model.json into a folder; each file appears whole or not at all.

    Returns:
        The folder.

    Raises:
        CheckpointError: the disk refuses it.
    """
    folder = Path(folder)
    card = {
        "format_version": FORMAT_VERSIONS[artefact.task],
        "task": artefact.task,
        "architecture": artefact.architecture,
        "arguments": artefact.arguments,
        "classes": artefact.classes,
        "preprocess": artefact.preprocess.to_dict(),
        "metrics": artefact.metrics,
        "provenance": {**versions(), **artefact.provenance},
    }
    write_safetensors(artefact.model.state_dict(), folder / MODEL_FILE, {"architecture": artefact.architecture})
    write_text(folder / CARD_FILE, json.dumps(card, indent=2) + "\n")
    return folder


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all. Raises CheckpointError where the disk refuses it."""
    atomic_write(path, lambda temporary: Path(temporary).write_text(text, encoding="utf-8"))


def read_artefact(folder: str | Path) -> Artefact:
    """Open an artefact or a run folder.

    Raises:
        CheckpointError: no artefact there, one of a newer format, or weights that do not fit its architecture.
    """
    folder = Path(folder)
    card = read_card(folder)
    task = card.get("task", "single-label")
    if task not in get_args(Task) or FORMAT_VERSIONS[task] != card["format_version"]:
        raise CheckpointError(
            f"{folder / CARD_FILE}: task {task!r} in format {card['format_version']}; take the file from the run again"
        )
    try:
        classes = [str(name) for name in card["classes"]]
        arguments = dict(card["arguments"])
        preprocess = Preprocess.from_dict(card["preprocess"])
        model = create_model(str(card["architecture"]), num_classes=len(classes), **_constructor(arguments))
        state = read_state_dict(folder / MODEL_FILE)
        model.load_state_dict(state)
    except KeyError as error:
        raise CheckpointError(f"{folder / CARD_FILE}: {error} is missing; the file is not whole") from error
    except (TypeError, ValueError, DataError, ConfigError) as error:
        raise CheckpointError(f"{folder / CARD_FILE}: {error}") from error
    except RuntimeError as error:
        raise CheckpointError(
            f"{folder}: {MODEL_FILE} does not fit the architecture {card['architecture']!r} of {CARD_FILE}; "
            "take both files from one run"
        ) from error
    return Artefact(
        model=model.eval(),
        architecture=str(card["architecture"]),
        arguments=arguments,
        classes=classes,
        preprocess=preprocess,
        metrics=dict(card.get("metrics", {})),
        provenance=dict(card.get("provenance", {})),
        task=task,
    )


def read_card(folder: Path) -> dict[str, Any]:
    """model.json as a dictionary. Raises CheckpointError where it is missing, torn or of a newer format."""
    path = folder / CARD_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder}: no {CARD_FILE} in it; expected a run folder that `cmtvision train` finished")
    if path.stat().st_size > MAX_CARD_BYTES:
        raise CheckpointError(f"{path}: larger than {MAX_CARD_BYTES // 1_000_000} MB; not a model card")
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        found = card["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: not a model card ({error}); take it from the run again") from error
    if found not in FORMAT_VERSIONS.values():
        known = " and ".join(map(str, FORMAT_VERSIONS.values()))
        raise CheckpointError(
            f"{path}: format {found}, this cmtvision reads {known}; install the version that wrote it"
        )
    return dict(card)


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


def _constructor(arguments: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}
