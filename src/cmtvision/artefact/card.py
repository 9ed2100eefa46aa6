"""model.json, the card of a model: everything known about it except its weights. Nothing in it is executed.

Format 1 is a network with one label per image, next to model.safetensors. Format 2 is the same with task 'multi-label':
a reader of format 1 knows no task and would turn such a model's logits into probabilities that add up to 1, so it must
refuse the file. Format 3 is an export: the files of a runtime in the place of the weights, and a block "export" that
names them with their SHA-256.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar, get_args

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from cmtvision.data.preprocess import Preprocess
from cmtvision.errors import CheckpointError, DataError
from cmtvision.models.weight_sources import loader_arguments
from cmtvision.trust.block import TrustBlock

Task: TypeAlias = Literal["single-label", "multi-label", "detection", "segmentation"]
RuntimeName: TypeAlias = Literal["onnx", "openvino", "torch"]
ExportPrecision: TypeAlias = Literal["fp32", "fp16", "bf16", "int8", "int8-bf16", "int8-weights", "int8-weights-bf16"]
FORMAT_VERSIONS: dict[Task, int] = {"single-label": 1, "multi-label": 2, "detection": 4, "segmentation": 5}
EXPORT_FORMAT = 3
DENSE: tuple[Task, ...] = ("detection", "segmentation")
"""Tasks that are about places in an image, which is therefore prepared whole."""
USUAL_SIDE, DENSE_STRIDE = 512, 32
"""Of an input where images keep their size; what the sides of every input are padded to multiples of."""
SUFFIXES: dict[RuntimeName, str] = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}
CARD_FILE = "model.json"
MAX_CARD_BYTES = 10_000_000
MAX_EXPORT_BYTES = 8_000_000_000
MAX_EXPORT_FILES = 16
MAX_NUMBER = 65_536
MAX_VALUES = 1_000
NESTED = ("backbone_arguments", "decoder_arguments")  # of a detector or segmenter: those of its parts
CONFIG = ConfigDict(arbitrary_types_allowed=True, extra="ignore")  # of a card: a later version may say more
Parsed = TypeVar("Parsed")


@dataclass(frozen=True, config=CONFIG)
class ExportBlock:
    """What a card says of an export.

    Attributes:
        runtime: what runs it.
        file: the file to open, a plain name in the folder of the card.
        sha256: the hexadecimal SHA-256 of each file of the export, by its plain name.
        precision: of the arithmetic inside; input and logits are float32. 'int8-bf16' is 8 bits with a rest in bf16,
            'int8-weights' has only its weights in 8 bits.
        img_size: (height, width) of the input in pixels.
        opset: of an ONNX graph.
        preprocess_inside: the input is uint8 pixels (B, H, W, C); scale, normalisation and layout are in the graph.
        compiled: native code in a .pt2 package rather than a graph.
        instructions: the instruction sets that native code may use, by Linux's names.
        verification: what was measured against the model it was made from.
    """

    runtime: RuntimeName
    file: str
    sha256: dict[str, str]
    precision: ExportPrecision
    img_size: tuple[int, int]
    opset: int | None = None
    preprocess_inside: bool = False
    compiled: bool = False
    instructions: tuple[str, ...] = ()
    verification: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in (self.file, *self.sha256):
            if not _is_plain(name):
                raise ValueError(f"export file {name!r}, expected the plain name of a file beside {CARD_FILE}")
        needed = {self.file, self.file.removesuffix(".xml") + ".bin"} if self.runtime == "openvino" else {self.file}
        if not self.file.endswith(SUFFIXES[self.runtime]) or not needed <= set(self.sha256):
            raise ValueError(
                f"export file {self.file!r} for {self.runtime}, expected a {SUFFIXES[self.runtime]} file "
                f"with a SHA-256 of {' and '.join(sorted(needed))}"
            )
        if len(self.sha256) > MAX_EXPORT_FILES:
            raise ValueError(f"an export of {len(self.sha256)} files, expected at most {MAX_EXPORT_FILES}")

    @classmethod
    def from_dict(cls, block: Mapping[str, Any]) -> "ExportBlock":
        """From the JSON block. Raises ValueError where it makes no sense."""
        return _validated(cls, block)

    def to_dict(self) -> dict[str, Any]:
        """The JSON block."""
        return {**vars(self), "img_size": list(self.img_size), "instructions": list(self.instructions)}

    def check_files(self, folder: Path) -> None:
        """Compare the files with their SHA-256. Raises CheckpointError for a missing, huge or changed one."""
        for name, expected in self.sha256.items():
            path = folder / name
            if not path.is_file():
                raise CheckpointError(f"{path}: missing; {CARD_FILE} beside it names it, export the model again")
            if path.stat().st_size > MAX_EXPORT_BYTES:
                raise CheckpointError(f"{path}: larger than {MAX_EXPORT_BYTES // 1_000_000_000} GB; not an export")
            if sha256_of(path) != expected:
                raise CheckpointError(
                    f"{path}: not the file that {CARD_FILE} describes (another SHA-256); "
                    "it is torn or of another export, export the model again"
                )


@dataclass(frozen=True, config=CONFIG)
class Card:
    """A model without its weights: what an artefact and an export have in common.

    Attributes:
        architecture: the network's name in timm, or of a detector or segmenter (``models.dense.create_dense``).
        arguments: what it was created with, beyond num_classes.
        classes: class names in the order of the logits.
        preprocess: how an image becomes its input.
        metrics: figures measured when it was written.
        provenance: where it comes from: recipe, data fingerprint, versions, date.
        task: 'single-label' (its classes exclude each other), 'multi-label' (each is a yes or no of its own),
            'detection' (of objects) or 'segmentation' (a class for each pixel).
        export: the runtime's files of an export; None where the weights are in model.safetensors.
        trust: its calibration; None where it has none, as models with several labels per image have.
        sides: of detection and segmentation: the pixels that an image's shorter side gets, and that the longer one has
            at most; None keeps the size.
    """

    architecture: str
    arguments: dict[str, Any]
    classes: list[str]
    preprocess: Preprocess
    metrics: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    task: Task = "single-label"
    export: ExportBlock | None = None
    trust: TrustBlock | None = None
    sides: tuple[int | None, int | None] = (None, None)

    @property
    def data_fingerprint(self) -> str:
        """Of the data that it was trained on; '' where the card does not say."""
        return str(self.provenance.get("data_fingerprint", ""))

    @property
    def usual_size(self) -> tuple[int, int]:
        """(height, width) in pixels of an input: of an export and a classifier the only one, else that of a square."""
        if self.task not in DENSE or self.export is not None:
            return self.preprocess.size
        side = -(-(self.sides[0] or USUAL_SIDE) // DENSE_STRIDE) * DENSE_STRIDE
        return side, side

    @property
    def command(self) -> str:
        """What a person types before ``predict``: 'cmtvision', of a detector 'cmtvision detect'."""
        return {"detection": "cmtvision detect", "segmentation": "cmtvision segment"}.get(self.task, "cmtvision")

    def check_classifier(self, where: object) -> None:
        """Raise CheckpointError for a detector or segmenter."""
        if self.task in DENSE:
            raise CheckpointError(f"{where}: a model for {self.task}, not a classifier; use `{self.command}` with it")

    @property
    def temperature(self) -> float:
        """What logits are divided by for probabilities; 1 where the model is not calibrated."""
        return 1.0 if self.trust is None else self.trust.temperature

    @classmethod
    def read(cls, folder: Path) -> "Card":
        """The card in a folder. Raises CheckpointError where it is missing, torn, of a newer format, or senseless."""
        return cls.from_dict(read_card(folder), folder / CARD_FILE)

    @classmethod
    def from_dict(cls, card: Mapping[str, Any], where: str | Path = CARD_FILE) -> "Card":
        """From what model.json holds.

        Args:
            card: the dictionary that ``read_card`` gives.
            where: the file that an error names.

        Raises:
            CheckpointError: entries that are missing or make no sense.
        """
        task = card.get("task", "single-label")
        known = task in get_args(Task) and card["format_version"] in (FORMAT_VERSIONS[task], EXPORT_FORMAT)
        if not known:
            raise CheckpointError(
                f"{where}: task {task!r} in format {card['format_version']}; take the file from the run again"
            )
        exports = card["format_version"] == EXPORT_FORMAT
        needed = ("architecture", "arguments", "classes", "preprocess", *(("export",) if exports else ()))
        try:
            for name in needed:
                if name not in card:
                    raise ValueError(f"{name!r} is missing; the file is not whole")
            preprocess = Preprocess.from_dict(card["preprocess"])
            export = ExportBlock.from_dict(card["export"]) if exports else None
            given = card.get("trust") if task == "single-label" else None
            trust = None if given is None else TrustBlock.from_dict(given)
            found = _validated(Card, {**card, "preprocess": preprocess, "export": export, "trust": trust})
            _check_arguments(found.arguments)
        except (AttributeError, TypeError, ValueError, DataError) as error:
            raise CheckpointError(f"{where}: {error}") from error
        if found.export is not None and found.export.img_size != found.preprocess.size:
            raise CheckpointError(
                f"{where}: an export for images of {found.export.img_size}, a preprocess for {found.preprocess.size}; "
                "export the model again"
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """What model.json holds."""
        return {
            "format_version": FORMAT_VERSIONS[self.task] if self.export is None else EXPORT_FORMAT,
            "task": self.task,
            "architecture": self.architecture,
            "arguments": self.arguments,
            "classes": self.classes,
            "preprocess": self.preprocess.to_dict(),
            "metrics": self.metrics,
            "provenance": self.provenance,
            **({} if self.export is None else {"export": self.export.to_dict()}),
            **({} if self.trust is None else {"trust": self.trust.to_dict()}),
            **({"sides": list(self.sides)} if self.task in DENSE else {}),
        }


def model_folder(path: str | Path) -> Path:
    """The folder of a model that is given by its folder or by a file in it."""
    path = Path(path)
    return path.parent if path.is_file() else path


def read_card(folder: Path) -> dict[str, Any]:
    """model.json as a dictionary. Raises CheckpointError where it is missing, torn or of a newer format."""
    path = folder / CARD_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{folder}: no {CARD_FILE} in it; expected a run folder that `cmtvision train` finished, or an export"
        )
    if path.stat().st_size > MAX_CARD_BYTES:
        raise CheckpointError(f"{path}: larger than {MAX_CARD_BYTES // 1_000_000} MB; not a model card")
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        found = card["format_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a model card ({error}); take it from the run again") from error
    known = sorted((*FORMAT_VERSIONS.values(), EXPORT_FORMAT))
    if found not in known:
        reads = " and ".join((", ".join(map(str, known[:-1])), str(known[-1])))
        raise CheckpointError(f"{path}: format {found}, this cmtvision reads {reads}; {_writer(card)}")
    return dict(card)


def sha256_of(path: Path) -> str:
    """The hexadecimal SHA-256 of a file. Raises CheckpointError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error


def _writer(card: Mapping[str, Any]) -> str:
    """Which version to install for a card of a format that this one does not know."""
    provenance = card.get("provenance")
    versions = provenance.get("exported", provenance) if isinstance(provenance, dict) else None
    version = versions.get("cmtvision") if isinstance(versions, dict) else None
    known = isinstance(version, str) and len(version) < 30 and version.replace(".", "").isalnum()
    return (
        f"install the version that wrote it: pip install 'cmtvision>={version}'"
        if known
        else ("install the version that wrote it")
    )


def _validated(kind: type[Parsed], values: Mapping[str, Any]) -> Parsed:
    """A card, or a block of one, of its JSON. Raises ValueError, one line, where it makes no sense."""
    try:
        return TypeAdapter(kind).validate_python(dict(values))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place, given, about = ".".join(map(str, first["loc"])), str(first["input"])[:60], first.get("ctx", {})
        if first["type"] == "missing":
            said = f"{place!r} is missing; the file is not whole"
        elif first["type"] == "literal_error":
            said = f"{place} {given!r}, expected one of {about['expected'].replace(chr(39), '')}"
        elif first["type"] == "value_error":
            said = str(about["error"])
        else:
            said = f"{place}: got {given}; {first['msg'][:1].lower()}{first['msg'][1:]}"
        raise ValueError(said) from error


def _check_arguments(arguments: dict[str, Any]) -> None:
    """Whether a network's arguments are such as a recipe can give: plain values, or flat lists of them.

    A card may come from anywhere. What names a source of weights would fetch it, and a number without bounds would
    fill the memory before anything could be compared with the weights beside the card.

    Raises:
        ValueError: they are not.
    """
    refused = loader_arguments(arguments)
    if refused:
        raise ValueError(f"argument {refused[0]!r} says where weights come from; a model's own stand beside its card")
    for key, value in arguments.items():
        if isinstance(value, dict) and key in NESTED:
            _check_arguments(value)
            continue
        for item in value if isinstance(value, list) else [value]:
            if not isinstance(item, bool | int | float | str | None):
                raise ValueError(f"argument {key!r}: got {str(item)[:60]}, expected a plain value or a list of them")
            if isinstance(item, int | float) and not abs(item) <= MAX_NUMBER:
                raise ValueError(f"argument {key!r}: got {item}, expected at most {MAX_NUMBER:,}")
        if isinstance(value, list) and len(value) > MAX_VALUES:
            raise ValueError(f"argument {key!r}: {len(value)} values, expected at most {MAX_VALUES}")


def _is_plain(name: str) -> bool:
    """Whether a name from a card means a file in the card's own folder and nothing else."""
    return bool(name) and name not in (".", "..") and not set(name) & set("/\\:\0") and name.isprintable()
