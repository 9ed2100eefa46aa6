"""PyTorch: the network itself, the graph of torch.export, or the native code of AOTInductor."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from cmtvision.artefact.card import MAX_CARD_BYTES, Card
from cmtvision.artefact.runtimes.base import Batch, Logits, Runtime, check_shapes, input_of
from cmtvision.errors import CheckpointError, ConfigError, first_line
from cmtvision.machine import default_threads, instruction_sets

_NATIVE = "data/aotinductor/"
_CONFIG = "_config.json"


class NetworkRuntime:
    """A network in eager PyTorch, in channels-last memory. See ``Runtime`` and ``open_runtime``.

    Attributes:
        network: in eval mode, on the device.
    """

    name = "torch"
    precision = arithmetic = "fp32"

    def __init__(self, network: nn.Module, device: str, threads: int | None = None) -> None:
        self.device = pick_device(device)
        set_threads(threads)
        self.network = network.eval().to(self.device).to(memory_format=torch.channels_last)

    def __call__(self, batch: Batch) -> Logits:
        """Logits (B, classes) of a batch (B, C, H, W)."""
        images = torch.from_numpy(batch).to(self.device, memory_format=torch.channels_last)
        with torch.inference_mode():
            logits: Logits = self.network(images).float().cpu().numpy()
        return logits

    def with_features(self, batch: Batch) -> tuple[Logits, npt.NDArray[np.float32] | None]:
        """The same logits in one pass with what the classifier is given, (B, D); None of a network that hides it."""
        network: Any = self.network
        if not (hasattr(network, "forward_features") and hasattr(network, "forward_head")):
            return self(batch), None
        images = torch.from_numpy(batch).to(self.device, memory_format=torch.channels_last)
        with torch.inference_mode():
            maps = network.forward_features(images)
            try:
                pooled = network.forward_head(maps, pre_logits=True)
                logits = network.forward_head(maps)
            except (TypeError, AttributeError):  # a head of another kind than timm's
                return self(batch), None
            shaped = isinstance(pooled, torch.Tensor) and pooled.ndim == 2
            return logits.float().cpu().numpy(), pooled.float().cpu().numpy() if shaped else None


class ProgramRuntime:
    """What a .pt2 file holds, fed as it was traced: contiguous (B, C, H, W), or pixels."""

    name = "torch"

    def __init__(self, program: Callable[[torch.Tensor], Any], device: str, precision: str) -> None:
        self.program, self.device, self.precision = program, device, precision
        self.arithmetic = precision  # the graph's own operations

    def __call__(self, batch: Batch) -> Logits:
        """Logits (B, classes) of a batch."""
        with torch.inference_mode():
            found = self.program(torch.from_numpy(batch).to(self.device))
            logits = found[0] if isinstance(found, tuple | list) else found
            return logits.float().cpu().numpy()


def open_pt2(folder: Path, card: Card, device: str, threads: int | None) -> Runtime:
    """Open model.pt2. Raises CheckpointError where it is no .pt2 file, or of another kind or model than the card's."""
    assert card.export is not None
    path = folder / card.export.file
    _check_archive(path, card.export.compiled)
    set_threads(threads)
    return _open_compiled(path, card, device) if card.export.compiled else _open_graph(path, card, device)


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


def set_threads(threads: int | None) -> None:
    """Set the threads of PyTorch, which are those of the whole process; None keeps to what it may use."""
    if threads is None and torch.get_num_threads() <= default_threads():  # PyTorch knows no container's quota
        return
    torch.set_num_threads(threads or default_threads())


def _open_graph(path: Path, card: Card, device: str) -> Runtime:
    assert card.export is not None
    device = pick_device(device)
    try:
        program = torch.export.load(path)
        if device != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, device)
        nodes = {node.name: node for node in program.graph.nodes}
        inputs, outputs = program.graph_signature.user_inputs, program.graph_signature.user_outputs
        shapes = [tuple(nodes[str(one)].meta["val"].shape)[1:] for one in (*inputs, *outputs)]
    except Exception as error:  # a damaged archive raises whatever it leads the reader to
        raise _unreadable(path, error) from error
    if len(shapes) != 2:
        raise CheckpointError(f"{path}: {len(inputs)} inputs and {len(outputs)} outputs, expected one of each")
    check_shapes(path, card, *shapes)
    return ProgramRuntime(program.module(), device, card.export.precision)


def _open_compiled(path: Path, card: Card, device: str) -> Runtime:
    assert card.export is not None
    lacking = sorted(set(card.export.instructions) - set(instruction_sets()))
    if lacking:  # the first such instruction would end the process
        raise CheckpointError(
            f"{path}: native code for a processor with {', '.join(lacking)}, which this one lacks; "
            "compile it on this machine, or export without --compile"
        )
    try:
        package = torch._inductor.aoti_load_package(str(path))
        built_for = str(package.get_metadata().get("AOTI_DEVICE_KEY", "cpu"))
    except Exception as error:
        raise _unreadable(path, error) from error
    if device != "auto" and device.partition(":")[0] != built_for:
        raise ConfigError(
            f"device {device!r}: {path} was compiled for {built_for}; use that, or compile it for this one"
        )
    runtime = ProgramRuntime(package, built_for, card.export.precision)
    shape, dtype = input_of(card)
    try:
        found = runtime(np.zeros((1, *shape), dtype))  # native code does not tell its shapes before it runs
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    check_shapes(path, card, shape, found.shape[1:])
    return runtime


def _check_archive(path: Path, compiled: bool) -> None:
    """Refuse a .pt2 file with what its card does not say: native code, or objects that run code when unpickled."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [(one.filename.partition("/")[2], one) for one in archive.infolist()]
            if any(name.startswith(_NATIVE) for name, _ in members) != compiled:
                kind = "a graph" if compiled else "native code"
                raise CheckpointError(f"{path}: holds {kind}, which model.json beside it does not say; export it again")
            if compiled:  # its native code runs anyway
                return
            for name, member in members:
                if name.startswith("data/") and name.endswith((".pt", _CONFIG)):
                    _refuse_objects(path, name, _content(archive, member))
    except CheckpointError:
        raise
    except Exception as error:  # a damaged archive raises whatever it leads the reader to
        raise _unreadable(path, error) from error


def _content(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """Raises ValueError for a member that is far larger than it should be, or than the archive."""
    if member.compress_type != zipfile.ZIP_STORED:  # PyTorch compresses none, and a few bytes may become many
        raise ValueError(f"{member.filename} in it is compressed")
    if member.filename.endswith(_CONFIG) and member.file_size > MAX_CARD_BYTES:
        raise ValueError(f"{member.filename} in it is larger than {MAX_CARD_BYTES // 1_000_000} MB")
    return archive.read(member)


def _refuse_objects(path: Path, name: str, content: bytes) -> None:
    if name.endswith(".pt"):
        try:
            torch.load(io.BytesIO(content), weights_only=True)
        except Exception as error:
            raise CheckpointError(f"{path}: refused, {name} in it holds more than tensors") from error
    else:
        entries = json.loads(content).get("config", {}).values()
        if any(entry.get("use_pickle") for entry in entries):
            raise CheckpointError(f"{path}: refused, {name} names objects that would run code when read")


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path}: PyTorch cannot open it ({first_line(error)}); export the model again")
