"""A network as an ONNX file: dynamic batch, checked, without information about the machine that wrote it.

fp32 is the network as it is. fp16 is a half-precision graph, float32 in and out: GPUs compute in it, ONNX Runtime on a
CPU inserts casts and computes in float32, at the speed of fp32; the file is half as large. bf16 is weights stored in
bfloat16 and arithmetic in float32, since convolutions of ONNX take bfloat16 from opset 22 only and few runtimes run
them: half the file, the speed of fp32.
"""

import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from cmtvision.artefact.runtimes.onnx import import_onnxruntime
from cmtvision.deploy.exporting.network import INPUT, OUTPUT
from cmtvision.errors import ConfigError, ExportError, first_line

if TYPE_CHECKING:
    from onnx import ModelProto

ONNX_FILE = "model.onnx"
WEIGHTS_FILE = "model.onnx.data"
DEFAULT_OPSET = LOWEST_OPSET = 18
HIGHEST_OPSET = 25  # as far as the exporter's converter goes (onnxscript 0.7)
EXTERNAL_BYTES = 1_900_000_000  # a protobuf ends at 2 GB: larger weights go into a file of their own
_STORED_NUMEL = 16  # smaller tensors stay float32: scalars, not weights


def write_onnx(
    network: nn.Module,
    example: torch.Tensor,
    folder: Path,
    opset: int | None = None,
    stored_bf16: bool = False,
    metadata: dict[str, str] | None = None,
    outputs: Sequence[str] = (OUTPUT,),
) -> list[str]:
    """Write model.onnx into a folder.

    Args:
        network: what to trace, in eval mode.
        example: an input of the right shape, with a batch of 2; of a batch of 1 the graph takes one image.
        folder: where to.
        opset: 18 by default.
        stored_bf16: keep the weights as bfloat16, and convert them to float32 when the graph is loaded.
        metadata: properties of the file.
        outputs: names of what the network gives.

    Returns:
        The names of the files.

    Raises:
        ConfigError: the packages are missing, or the opset is out of range.
        ExportError: the network cannot be traced, or the graph is not what was asked for.
    """
    onnx = require_onnx()
    opset = check_opset(opset)
    model = _trace(network, example, opset, outputs)
    _strip(model)
    if stored_bf16:
        _store_as_bf16(model)
    onnx.helper.set_model_props(model, metadata or {})
    model.producer_name, model.producer_version = "cmtvision", (metadata or {}).get("cmtvision", "")
    if len(example) > 1:
        _check_shape(model, example)
    large = sum(value.numel() * value.element_size() for value in network.state_dict().values()) > EXTERNAL_BYTES
    path = folder / ONNX_FILE
    if large:
        onnx.save_model(model, str(path), save_as_external_data=True, location=WEIGHTS_FILE)
    else:
        path.write_bytes(model.SerializeToString())
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"onnx: the graph is not valid: {first_line(error)}") from error
    return [ONNX_FILE, WEIGHTS_FILE] if large else [ONNX_FILE]


def require_onnx(who: str = "an export to ONNX", extra: str = "onnx") -> Any:
    """The package onnx, after checking that its tracing companion is installed; what opens the file is not asked for.

    Args:
        who: what needs them, for the message.
        extra: the extra of cmtvision that installs them.

    Raises:
        ConfigError: one of them is missing.
    """
    try:
        import onnx
        import onnxscript
    except ImportError as error:
        raise ConfigError(f"{who} needs {error.name or 'onnx'}: pip install 'cmtvision[{extra}]'") from None
    del onnxscript
    return onnx


def check_opset(opset: int | None) -> int:
    """The opset to write. Raises ConfigError for one that the exporter or the installed runtime does not know."""
    if opset is None or opset == DEFAULT_OPSET:
        return DEFAULT_OPSET
    highest = _highest_opset()
    if not LOWEST_OPSET <= opset <= highest:
        raise ConfigError(f"opset {opset}: expected {LOWEST_OPSET} to {highest}, what is installed here can write")
    return opset


def _highest_opset() -> int:
    """The latest opset that the exporter, onnx and the installed onnxruntime all know."""
    onnx, onnxruntime = require_onnx(), import_onnxruntime("an export to a later opset")
    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
    ends = [helper.make_tensor_value_info(name, float32, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "probe", ends[:1], ends[1:])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    for opset in range(min(HIGHEST_OPSET, onnx.defs.onnx_opset_version()), LOWEST_OPSET, -1):
        probe = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
        try:
            onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception:  # onnxruntime's own kinds, one for each status
            continue
        return opset
    return LOWEST_OPSET


def _trace(network: nn.Module, example: torch.Tensor, opset: int, outputs: Sequence[str]) -> "ModelProto":
    shapes = ({0: torch.export.Dim("batch", min=1)},) if len(example) > 1 else None
    # of a network that it can trace in its second way only the exporter prints thousands of lines about the first
    with warnings.catch_warnings(), redirect_stderr(StringIO()):
        # the exporter and the packages under it warn about their own insides, which no caller can change
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=UserWarning, module=r"(torch|onnxscript|copyreg)(\..*)?$")
        try:
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                opset_version=opset,
                input_names=[INPUT],
                output_names=list(outputs),
                dynamic_shapes=shapes,
                verbose=False,
            )
        except Exception as error:  # whatever a network leads the tracer and its converters to
            raise ExportError(f"onnx: the network cannot be traced: {_root_cause(error)}") from error
    if program is None:
        raise ExportError("onnx: the exporter gave no graph")
    model: ModelProto = program.model_proto
    written = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if written != opset:
        raise ExportError(f"onnx: asked for opset {opset}, the exporter wrote {written}; choose that one, or 18")
    return model


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {first_line(error) if isinstance(error, Exception) else error}"


def _strip(model: "ModelProto") -> None:
    """Drop the exporter's metadata: source lines and file paths, larger than a small network's graph."""
    graph = model.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info):
        part.doc_string = ""
        del part.metadata_props[:]


def _store_as_bf16(model: "ModelProto") -> None:
    """Replace each float32 weight by a bfloat16 one and a Cast, which runtimes fold away when they load the graph."""
    import ml_dtypes
    from onnx import TensorProto, helper, numpy_helper

    graph, casts = model.graph, []
    for weight in graph.initializer:
        if weight.data_type != TensorProto.FLOAT or np.prod(weight.dims) < _STORED_NUMEL:
            continue
        name, values = weight.name, numpy_helper.to_array(weight)
        stored = f"{name}.bf16"
        rounded = values.astype(ml_dtypes.bfloat16)  # to nearest, ties to even
        weight.CopyFrom(helper.make_tensor(stored, TensorProto.BFLOAT16, values.shape, rounded.tobytes(), raw=True))
        casts.append(helper.make_node("Cast", [stored], [name], name=f"{name}.cast", to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _check_shape(model: "ModelProto", example: torch.Tensor) -> None:
    """Check that the batch is dynamic and all other dimensions are fixed. Raises ExportError."""
    for value, rest in ((model.graph.input[0], list(example.shape[1:])), (model.graph.output[0], None)):
        batch, *others = value.type.tensor_type.shape.dim
        sizes = [one.dim_value for one in others]
        if not batch.dim_param:
            raise ExportError(f"onnx: the batch of {value.name!r} is frozen at {batch.dim_value}")
        if not all(sizes) or (rest is not None and sizes != rest):
            raise ExportError(f"onnx: {value.name!r} has the shape (batch, {sizes}), expected (batch, {rest})")
    names = model.graph.input[0].name, model.graph.output[0].name
    if len(model.graph.input) != 1 or len(model.graph.output) != 1 or names != (INPUT, OUTPUT):
        raise ExportError(f"onnx: the graph goes from {names[0]!r} to {names[1]!r}, expected {INPUT!r} to {OUTPUT!r}")
