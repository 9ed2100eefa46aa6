"""The forms in which a network is run and timed: which runtimes and precisions there are, and which of them are here.

eager          PyTorch as timm gives the network: NCHW, nothing else; what ratios are taken against
channels-last  the same network in channels-last memory
fused          cmtvision.deploy.fuse, channels-last
compiled       torch.compile of the fused network (of the channels-last one where it cannot be fused), weights frozen
cuda-graph     the same network replayed as one CUDA graph
torch, onnx, openvino    exports, written by cmtvision.deploy.export and verified before they are timed
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from cmtvision.artefact.card import CARD_FILE, Card, model_folder, read_card
from cmtvision.artefact.files import MODEL_FILE, constructor_arguments
from cmtvision.bench.cells import Work
from cmtvision.bench.subjects import ImgSize, Subject, find_subjects
from cmtvision.errors import CheckpointError, ConfigError
from cmtvision.models import build_shapes_only
from cmtvision.models.count import count, total

EXPORTS = {"torch": (), "onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino", "onnxscript")}
"""Runtimes of exported files, and the packages without which they cannot be written and opened."""
IN_PYTORCH = ("eager", "channels-last", "fused", "compiled", "cuda-graph")
RUNTIMES = (*IN_PYTORCH, *EXPORTS)
ON_CPU = ("onnx", "openvino")
"""Runtimes that are taken by default only on a CPU."""
DEFAULT_RUNTIMES = ("eager", "fused", "torch", "onnx", "openvino")
PRECISIONS = ("fp32", "bf16", "fp16", "amp")
"""Of names and runs; an int8 network is an export, made by ``cmtvision quantize``."""


@dataclass(frozen=True)
class Target:
    """What is to be timed.

    Attributes:
        name: what the user wrote.
        subject: a network by name or a run; None for an export.
        export: the export's folder; None for a name or a run.
        card: of an export.
    """

    name: str
    subject: Subject | None = None
    export: Path | None = None
    card: Card | None = field(default=None, compare=False)

    def build(self, img_size: ImgSize = None) -> nn.Module:
        """The network of a name or a run on the CPU, made for a size of image where it is made for one."""
        assert self.subject is not None
        model: Any = self.subject.build(img_size)
        if img_size is not None and self.subject.run is None and hasattr(model, "set_input_size"):
            model.set_input_size(img_size=img_size)  # or a CMT would resample its position bias in every pass
        network: nn.Module = model
        return network

    def work(self, img_size: ImgSize = None) -> Work:
        """What one image costs on paper.

        Raises:
            ConfigError: a size the network does not take.
        """
        if self.subject is not None:
            model, input_size = self.subject.shapes(img_size)
        else:
            assert self.card is not None
            arguments, size = constructor_arguments(self.card), self.card.preprocess.size
            model, input_size = build_shapes_only(self.card.architecture, size, len(self.card.classes), **arguments)
        whole = total(count(model, input_size))
        values = whole.parameters + sum(buffer.numel() for buffer in model.buffers())
        return Work(input_size, values, whole.macs, whole.activations)


@dataclass(frozen=True)
class Form:
    """A target as one runtime runs it.

    Attributes:
        target: what is run.
        runtime: of ``RUNTIMES``.
        precision: of ``PRECISIONS``, or an export's own.
        threads: on a CPU.
        img_size: of the image, in pixels; None for the target's own.
        file: the folder of the export to open, once it is made.
    """

    target: Target
    runtime: str
    precision: str
    threads: int
    img_size: ImgSize = None
    file: Path | None = None

    @property
    def name(self) -> str:
        """What tells it from others."""
        size = "" if self.img_size is None else f" {self.img_size} px"
        return f"{self.target.name}{size} {self.runtime} {self.precision} x{self.threads}"


def find_targets(words: Sequence[str]) -> list[Target]:
    """What words mean: names and patterns of models, run folders, exports (folder, bundle or file); each once.

    Raises:
        ConfigError: an unknown name. CheckpointError: a folder or a file that holds no model, a card that makes no
            sense.
    """
    found: dict[str, Target] = {}
    for word in words:
        path, folder = Path(word), model_folder(word)
        card = Card.from_dict(read_card(folder), folder / CARD_FILE) if (folder / CARD_FILE).is_file() else None
        if card is not None and path.is_file():
            files = [CARD_FILE, *([MODEL_FILE] if card.export is None else card.export.sha256)]
            if path.name not in files:
                raise CheckpointError(f"{path}: not of the model beside it; its files are {', '.join(files)}")
        if card is not None and card.export is not None:
            found.setdefault(str(folder.resolve()), Target(word, export=folder, card=card))
            continue
        for subject in find_subjects([word if card is None or folder == path else str(folder)]):
            key = str(subject.run.resolve()) if subject.run else subject.name
            found.setdefault(key, Target(word if subject.run else subject.name, subject))
    return list(found.values())


def find_forms(
    targets: Sequence[Target],
    *,
    runtimes: Sequence[str] | None = None,
    precisions: Sequence[str] | None = None,
    threads: Sequence[int] = (1,),
    img_size: ImgSize = None,
    device: str = "cpu",
) -> list[Form]:
    """Every form of every target, target by target, 'eager' first.

    Args:
        targets: from ``find_targets``.
        runtimes: of names and runs; None for those of ``DEFAULT_RUNTIMES`` that are installed.
        precisions: of names and runs; None for fp32.
        threads: each on so many.
        img_size: of the image, in pixels; of an export its own.
        device: 'cpu', 'cuda' or 'mps'.

    Raises:
        ConfigError: a runtime or a precision that is unknown, not installed or not for this device; an option that
            exports do not have; another size than an export's.
    """
    check_options(runtimes or (), precisions or (), device)
    exports = [target for target in targets if target.export is not None]
    if len(exports) == len(targets):
        for option, given in (("--runtime", runtimes), ("--precision", precisions)):
            if given is not None:
                raise ConfigError(f"{option}: fixed in an export such as {exports[0].name}; leave the option out")
    chosen = runtimes or [
        name for name in DEFAULT_RUNTIMES if is_here(name) and (device == "cpu" or name not in ON_CPU)
    ]
    return [form for target in targets for form in _forms_of(target, chosen, precisions, threads, img_size)]


def _forms_of(
    target: Target, runtimes: Sequence[str], precisions: Sequence[str] | None, threads: Sequence[int], size: ImgSize
) -> list[Form]:
    if target.card is not None and target.card.export is not None:
        block = target.card.export
        if size is not None and block.img_size != ((size, size) if isinstance(size, int) else size):
            own = " x ".join(map(str, block.img_size))
            raise ConfigError(
                f"--img-size: {target.name} is an export for images of {own} px; leave the option or the export out"
            )
        return [Form(target, block.runtime, block.precision, count, None, target.export) for count in threads]
    ordered = sorted(set(runtimes), key=RUNTIMES.index)
    wanted = sorted(set(precisions or ("fp32",)), key=PRECISIONS.index)
    return [
        Form(target, runtime, precision, count, size)
        for count in threads
        for precision in wanted
        for runtime in ordered
        if precision != "amp" or runtime in IN_PYTORCH  # autocast is PyTorch's own
    ]


def check_options(runtimes: Sequence[str], precisions: Sequence[str], device: str) -> None:
    """Refuse what is unknown, not installed, or not for a device. Raises ConfigError."""
    for name in runtimes:
        if name not in RUNTIMES:
            raise ConfigError(f"--runtime: unknown runtime {name!r}; {_hint(name, RUNTIMES)}")
        missing = [package for package in EXPORTS.get(name, ()) if find_spec(package) is None]
        if missing:
            raise ConfigError(f"--runtime {name}: needs {missing[0]}: pip install 'cmtvision[{name}]'")
        if name == "cuda-graph" and not device.startswith("cuda"):
            raise ConfigError(f"--runtime cuda-graph: needs an NVIDIA GPU, the device is {device}; leave it out")
        if name == "openvino" and device != "cpu":
            raise ConfigError(f"--runtime openvino: measured on a CPU, the device is {device}; add --device cpu")
    for name in precisions:
        if name == "int8":
            raise ConfigError("--precision int8: quantise first (`cmtvision quantize`), then name the export as target")
        if name not in PRECISIONS:
            raise ConfigError(f"--precision: unknown precision {name!r}; {_hint(name, PRECISIONS)}")
    if "amp" in precisions and runtimes and not set(runtimes) & set(IN_PYTORCH):
        raise ConfigError(f"--precision amp: autocast is PyTorch's own; add one of {', '.join(IN_PYTORCH)}")


def is_here(runtime: str) -> bool:
    """Whether the packages of a runtime are installed."""
    return all(find_spec(package) is not None for package in EXPORTS.get(runtime, ()))


def _hint(word: str, known: Sequence[str]) -> str:
    close = get_close_matches(word, known, 1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(known)}"
