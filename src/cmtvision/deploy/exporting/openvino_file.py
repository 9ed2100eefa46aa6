"""A network as OpenVINO's two files, model.xml and model.bin, via ONNX.

The canonical NCHW graph via ONNX is what OpenVINO's own passes are tuned for; its conversion straight from
PyTorch gave a slower graph. The graph is float32. fp16 and bf16 store the weights as float16, half the file; with bf16
the runtime is told to compute in bfloat16 when the file is opened (artefact/runtimes/openvino.py), with fp16 in
float16, and a CPU without such arithmetic computes in float32. The weights of fp32 stay float32: OpenVINO's own default
would round them silently.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cmtvision.artefact.runtimes.openvino import import_openvino, openvino_core
from cmtvision.deploy.exporting.network import INPUT, OUTPUT, Precision
from cmtvision.deploy.exporting.onnx_file import ONNX_FILE, require_onnx, write_onnx
from cmtvision.errors import ExportError, first_line

XML_FILE, BIN_FILE = "model.xml", "model.bin"


def write_openvino(
    network: nn.Module,
    example: torch.Tensor,
    folder: Path,
    precision: Precision = "fp32",
    metadata: dict[str, str] | None = None,
) -> list[str]:
    """Write model.xml and model.bin into a folder.

    Args:
        network: what to trace, float32 and in eval mode.
        example: an input of the right shape, with a batch of 2.
        folder: where to.
        precision: 'fp32' keeps float32 weights; others store them as float16.
        metadata: noted in the file.

    Returns:
        The names of the files.

    Raises:
        ConfigError: the packages are missing.
        ExportError: the network cannot be traced or converted, or the graph is not what was asked for.
    """
    openvino = require_openvino()
    with tempfile.TemporaryDirectory(dir=folder, prefix=".onnx.") as between:
        write_onnx(network, example, Path(between))
        try:
            model = openvino_core().read_model(str(Path(between) / ONNX_FILE))
            for key, value in (metadata or {}).items():
                model.set_rt_info(value, ["cmtvision", key])
            _check_shape(model, example)
            openvino.save_model(model, str(folder / XML_FILE), compress_to_fp16=precision != "fp32")
        except RuntimeError as error:
            raise ExportError(f"openvino: the graph cannot be converted: {first_line(error)}") from error
        del model  # it maps the ONNX file, which is about to go
    return [XML_FILE, BIN_FILE]


def require_openvino() -> Any:
    """The package openvino, after checking that those that trace the graph are installed. Raises ConfigError."""
    who = "an export to OpenVINO"
    openvino = import_openvino(who)
    require_onnx(who, "openvino")
    return openvino


def _check_shape(model: "object", example: torch.Tensor) -> None:
    """Check that the batch is dynamic and all other dimensions are fixed. Raises ExportError."""
    for end, name in ((model.input(0), INPUT), (model.output(0), OUTPUT)):  # type: ignore[attr-defined]
        shape = end.get_partial_shape()
        if name not in end.get_names():
            raise ExportError(f"openvino: the graph has no tensor {name!r}")
        if not shape[0].is_dynamic:
            raise ExportError(f"openvino: the batch of {name!r} is frozen at {shape[0]}")
        if any(one.is_dynamic for one in list(shape)[1:]):
            raise ExportError(f"openvino: {name!r} has the shape {shape}, expected all but the batch to be fixed")
    sizes = [one.get_length() for one in list(model.input(0).get_partial_shape())[1:]]  # type: ignore[attr-defined]
    if sizes != list(example.shape[1:]):
        raise ExportError(f"openvino: the input has the shape (batch, {sizes}), expected {list(example.shape[1:])}")
