"""OpenVINO: opens model.xml on the processor or an Intel GPU, compiled for the batch sizes that come.

A graph compiled for one batch size is 1.3 to 1.5 times as fast as one compiled for any, and compiling takes a second.
So each size gets a graph of its own, up to six; a size that comes for the first time is filled up with zeros where a
graph for a slightly larger one is there.
"""

import sys
import threading
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from cmtvision.artefact.card import Card
from cmtvision.artefact.runtimes.base import Batch, Logits, arithmetic_of, check_shapes
from cmtvision.errors import CheckpointError, ConfigError, first_line
from cmtvision.machine import default_threads, onednn_lacks_bf16, saturates_int8

MAX_COMPILED = 6  # each holds the weights once more
_MAX_FILL = 4  # a first batch of an unknown size runs in a graph for at most so many times its images
# on its own OpenVINO takes bf16 or f16 where the hardware is fast at it, whatever the file says; and for f16 where a
# processor has none, it takes bf16, which is eight times as coarse
HINTS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}


class OpenVinoRuntime:
    """See ``Runtime`` and ``open_runtime``.

    Attributes:
        core: OpenVINO's own, one for the process.
        settings: what graphs are compiled with.
        streams: parts of a batch computed at a time.
    """

    name = "openvino"

    def __init__(self, folder: Path, card: Card, device: str, threads: int | None, streams: int | None) -> None:
        assert card.export is not None
        path = folder / card.export.file
        self.core = openvino_core(str(folder))
        self._target = _target(device, self.core.available_devices)
        self.precision: str = card.export.precision
        self.arithmetic = arithmetic_of(self.precision, capabilities(self.core, self._target))
        self.device = self._target.lower()
        self.streams = streams or 1
        self.settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": str(self.streams),
            **arithmetic_settings(self.precision, self.arithmetic),
        }
        if self._target == "CPU":
            self.settings["INFERENCE_NUM_THREADS"] = threads or default_threads()
        elif threads is not None:
            raise ConfigError(f"threads: a setting of the processor, and device is {device}; leave it out")
        try:
            self._graph = self.core.read_model(path)
        except RuntimeError as error:
            raise CheckpointError(f"{path}: OpenVINO cannot open it ({first_line(error)})") from error
        if len(self._graph.inputs) != 1 or len(self._graph.outputs) != 1:
            found = f"{len(self._graph.inputs)} inputs and {len(self._graph.outputs)} outputs"
            raise CheckpointError(f"{path}: {found}, expected one of each")
        ports = self._graph.input(0), self._graph.output(0)
        inputs, logits = (tuple(_edge(edge) for edge in list(port.get_partial_shape())[1:]) for port in ports)
        check_shapes(path, card, inputs, logits)
        self._path, self._shape = path, inputs
        self._compiled: dict[int, Any] = {}
        self._requests: dict[int, list[Any]] = {}
        self._seen: Counter[int] = Counter()
        self._lock = threading.Lock()

    def __call__(self, batch: Batch) -> Logits:
        """Logits (B, classes) of a batch; one call at a time, others wait."""
        with self._lock:
            size = self._size_for(-(-len(batch) // self.streams))
            requests = self._requests[size]
            parts = [batch[start : start + size] for start in range(0, len(batch), size)]
            found = []
            for first in range(0, len(parts), len(requests)):
                wave = list(zip(requests, parts[first : first + len(requests)], strict=False))
                for request, part in wave:
                    request.start_async({0: _filled(part, size)})
                for request, part in wave:
                    request.wait()
                    found.append(np.array(request.get_output_tensor(0).data[: len(part)], dtype=np.float32))
        return np.concatenate(found)

    @property
    def sizes(self) -> list[int]:
        """The batch sizes that have a graph of their own so far."""
        return list(self._compiled)

    def compiled(self, size: int) -> Any:
        """OpenVINO's own compiled graph for a batch size."""
        return self._compiled[size]

    def _size_for(self, wanted: int) -> int:
        """The batch size to run images in, with a graph compiled for it."""
        self._seen[wanted] += 1
        larger = [size for size in self._requests if size >= wanted]
        if wanted in self._requests:
            return wanted
        if larger and self._seen[wanted] == 1 and min(larger) <= _MAX_FILL * wanted:
            return min(larger)
        if len(self._requests) >= MAX_COMPILED:
            return min(larger) if larger else max(self._requests)
        try:
            self._graph.reshape({0: [wanted, *self._shape]})
            compiled = self.core.compile_model(self._graph, self._target, self.settings)
        except RuntimeError as error:
            raise CheckpointError(f"{self._path}: OpenVINO cannot compile it ({first_line(error)})") from error
        self._compiled[wanted] = compiled
        self._requests[wanted] = [compiled.create_infer_request() for _ in range(self.streams)]
        return wanted


def openvino_core(who: str = "an OpenVINO model") -> Any:
    """OpenVINO's Core, one for the whole process; use it wherever OpenVINO reads or compiles.

    Where the processor has AMX, each Core with a graph puts its own stack for signals in the place of the former, and
    gives the former back when it is deleted, even where that one's Core is gone: with two Cores that overlap, the next
    signal (of a loader process that ends, say) kills the process. One that is never deleted keeps its stack.

    Raises:
        ConfigError: it is not installed; with who needs it.
    """
    openvino = import_openvino(who)
    return _core(openvino)


@cache
def _core(openvino: Any) -> Any:
    return openvino.Core()


def import_openvino(who: str = "an OpenVINO model") -> Any:
    """The package, imported without the telemetry that it sends when it is imported and when it converts.

    Raises:
        ConfigError: it is not installed; with who needs it.
    """
    name = "openvino_telemetry"
    absent = name not in sys.modules
    if absent:
        sys.modules[name] = None  # type: ignore[assignment]  # openvino then takes its own stub that sends nothing
    try:
        import openvino
    except ImportError as error:
        raise ConfigError(f"{who}: needs openvino: pip install 'cmtvision[openvino]'") from error
    finally:
        if absent:
            del sys.modules[name]
    return openvino


def capabilities(core: Any, target: str) -> set[str]:
    """What a device of OpenVINO ('CPU', 'GPU') computes in, of 'fp32', 'fp16', 'bf16', 'int8', ...

    A processor whose 8-bit products saturate is not taken to compute in int8: the model would decide otherwise there.
    """
    found = {str(name).lower() for name in core.get_property(target, "OPTIMIZATION_CAPABILITIES")}
    if target == "CPU":
        found -= {"int8"} if saturates_int8() else set()
        found -= {"bf16", "fp16"} if onednn_lacks_bf16() else set()  # OpenVINO asks the processor, not its oneDNN
    return found


def arithmetic_settings(precision: str, arithmetic: str) -> dict[str, str]:
    """OpenVINO's settings for a file of a precision to be computed in an arithmetic."""
    rest = next((hint for name, hint in HINTS.items() if name in arithmetic.split("-")), HINTS["fp32"])
    settings = {"INFERENCE_PRECISION_HINT": rest}
    if "int8" in precision.split("-") and not arithmetic.startswith("int8"):
        settings["LP_TRANSFORMS_MODE"] = "NO"  # roundings stay what they are, and what is between them is rest
    return settings


def _target(device: str, available: list[str]) -> str:
    if device in ("auto", "cpu"):
        return "CPU"
    if device.partition(":")[0] != "gpu":
        raise ConfigError(f"device {device!r}: an OpenVINO model runs on cpu or gpu (Intel's)")
    wanted = device.upper().replace(":", ".")
    if not any(name == wanted or name.startswith(f"{wanted}.") for name in available):
        raise ConfigError(f"device {device!r}: OpenVINO finds {', '.join(name.lower() for name in available)} here")
    return wanted


def _filled(part: Batch, size: int) -> Batch:
    if len(part) == size:
        return part
    whole = np.zeros((size, *part.shape[1:]), dtype=part.dtype)
    whole[: len(part)] = part
    return whole


def _edge(edge: Any) -> int:
    return int(edge.get_length()) if edge.is_static else -1
