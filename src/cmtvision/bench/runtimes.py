"""The ways in which a network is run and timed: which runtimes and precisions there are, and which of them are here.

eager          PyTorch as timm gives the network: NCHW, nothing else; what ratios are taken against
channels-last  the same network in channels-last memory
fused          cmtvision.models.accelerate.fusing.fuse, channels-last
compiled       torch.compile of the fused network (of the channels-last one where it cannot be fused), weights frozen
cuda-graph     the same network replayed as one CUDA graph
torch, onnx, openvino    exports, written by cmtvision.deploy.exporting.export and verified before they are timed
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from difflib import get_close_matches
from importlib.util import find_spec

from cmtvision.bench.target import ImgSize, Target
from cmtvision.errors import ConfigError

EXPORTS = {"torch": (), "onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino", "onnxscript")}
"""Runtimes of exported files, and the packages without which they cannot be written and opened."""
IN_PYTORCH = ("eager", "channels-last", "fused", "compiled", "cuda-graph")
RUNTIMES = (*IN_PYTORCH, *EXPORTS)
ON_CPU = ("onnx", "openvino")
"""Runtimes that are taken by default only on a CPU."""
DEFAULT_RUNTIMES = ("eager", "fused", "torch", "onnx", "openvino")
OF_DENSE = ("eager", "onnx")
"""Of detectors and segmenters, in fp32."""
PRECISIONS = ("fp32", "bf16", "fp16", "amp")
"""Of names and runs; an int8 network is an export, made by ``cmtvision quantize``."""


def in_runtimes(
    targets: Sequence[Target],
    *,
    runtimes: Sequence[str] | None = None,
    precisions: Sequence[str] | None = None,
    threads: Sequence[int] = (1,),
    img_size: ImgSize = None,
    device: str = "cpu",
) -> list[Target]:
    """Every target in every way that is asked for, target by target, 'eager' first.

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
    if all(target.is_export for target in targets):
        for option, given in (("--runtime", runtimes), ("--precision", precisions)):
            if given is not None:
                raise ConfigError(f"{option}: fixed in an export such as {targets[0].name}; leave the option out")
    chosen = runtimes or [
        name for name in DEFAULT_RUNTIMES if is_here(name) and (device == "cpu" or name not in ON_CPU)
    ]
    return [way for target in targets for way in _ways(target, chosen, precisions or ("fp32",), threads, img_size)]


def _ways(
    target: Target, runtimes: Sequence[str], precisions: Sequence[str], threads: Sequence[int], size: ImgSize
) -> Iterator[Target]:
    if target.card is not None and target.card.export is not None:
        own = target.card.export.img_size
        if size is not None and own != ((size, size) if isinstance(size, int) else size):
            raise ConfigError(
                f"--img-size: {target.name} is an export for images of {own[0]} x {own[1]} px; "
                "leave the option or the export out"
            )
        yield from (replace(target, threads=count) for count in threads)
        return
    if target.is_dense:
        runtimes, precisions = [name for name in runtimes if name in OF_DENSE], ["fp32"]
        if not runtimes:
            raise ConfigError(f"--runtime: {target.name} finds places in images; it runs in {' or '.join(OF_DENSE)}")
    for count in threads:
        for precision in sorted(set(precisions), key=PRECISIONS.index):
            for runtime in sorted(set(runtimes), key=RUNTIMES.index):
                if precision != "amp" or runtime in IN_PYTORCH:  # autocast is PyTorch's own
                    yield replace(
                        target, runtime=runtime, precision=precision, threads=count, img_size=target.img_size or size
                    )


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
