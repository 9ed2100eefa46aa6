"""Reading and rewriting an OpenVINO graph with quantisers: its layers, their ranges, and smaller files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cmtvision.deploy.quantizing.half import fits_float16
from cmtvision.deploy.quantizing.quantized import Kind, Layer

LAYOUT = {"Transpose", "Reshape", "Squeeze", "Unsqueeze"}  # change no value: a quantiser may precede them
_STORED_FP16 = 256  # numbers: larger constants that stay floating point are stored as float16


def share_ranges(model: Any) -> None:
    """Have a quantiser read both its ranges from one pair of constants where they are equal, as they mostly are."""
    for op in model.get_ops():
        if op.get_type_name() == "FakeQuantize":
            for source, port in ((1, 3), (2, 4)):
                if np.array_equal(values_of(op.input_value(source)), values_of(op.input_value(port))):
                    op.input(port).replace_source_output(op.input_value(source))


def compress_constants(model: Any, opset: Any) -> None:
    """Store large floating-point constants as float16, which OpenVINO's own option does in no graph with quantisers.

    Ranges of quantisers stay as they are, and so does what float16 cannot hold, see ``fits_float16``: scales too.
    And write equal integer constants, the shapes and orders of layout changes, once.
    """
    known: dict[tuple[str, bytes], Any] = {}
    for op in model.get_ordered_ops():
        if op.get_type_name() != "Constant":
            continue
        values = op.get_data()
        if values.dtype == np.float32 and values.size >= _STORED_FP16 and not _is_range(op) and fits_float16(values):
            new = opset.convert(opset.constant(values.astype(np.float16)), "f32")
        elif values.dtype == np.int64:
            new = known.setdefault((str(values.shape), values.tobytes()), op)
        else:
            continue
        if new is not op:
            for target in op.output(0).get_target_inputs():
                target.replace_source_output(new.output(0))


def _is_range(constant: Any) -> bool:
    targets = constant.output(0).get_target_inputs()
    return any(one.get_node().get_type_name() == "FakeQuantize" and one.get_index() > 0 for one in targets)


def tighten(path: Path) -> None:
    """Leave out indentation and the names of constants: for a small network, model.xml is a third of the files."""
    from xml.etree import ElementTree

    tree = ElementTree.parse(path)  # our own file
    for element in tree.iter():
        element.text, element.tail = (element.text or "").strip(), None
        if element.tag == "layer" and element.get("type") == "Const":
            element.set("name", element.get("id", ""))
    for note in tree.findall("./rt_info/nncf"):
        tree.find("./rt_info").remove(note)  # type: ignore[union-attr]
    tree.write(path, encoding="utf-8", xml_declaration=True)


def layer_of(op: Any) -> Layer:
    """An operation as a row of the table."""
    kind: Kind
    name, type_name = op.get_friendly_name(), op.get_type_name()
    shape = _shape(op.input_value(1)) if len(op.inputs()) > 1 and is_constant(op.input_value(1)) else ()
    weights = int(np.prod(shape)) if shape else 0
    if type_name == "GroupConvolution":
        groups, per_group = shape[0], shape[1]
        kind, words = "depthwise conv", f"{groups * per_group}, {shape[-2]}x{shape[-1]}"
    elif type_name == "Convolution":
        kind = "1x1 conv" if shape[-2:] == (1, 1) else "conv"
        words = f"{shape[1]} to {shape[0]}" + ("" if kind == "1x1 conv" else f", {shape[-2]}x{shape[-1]}")
    elif type_name == "MatMul" and weights:
        rows, columns = shape[-2:] if not op.get_attributes()["transpose_b"] else shape[-2:][::-1]
        kind, words = "linear", f"{rows} to {columns}"
    else:
        products = type_name in ("MatMul", "ScaledDotProductAttention")
        kind = "attention" if products else "addition" if type_name == "Add" else "other"
        own = [str(edge.get_length()) for edge in list(op.output(0).get_partial_shape())[1:] if edge.is_static]
        words = " x ".join(own) if kind == "attention" else type_name
        weights = 0
    return Layer(name, kind, f"{kind} {words}", weights)


def _shape(output: Any) -> tuple[int, ...]:
    return tuple(int(edge) for edge in output.get_shape())


def quantizers(op: Any) -> dict[int, Any]:
    """The FakeQuantize of each input that a value of the network comes through, weights left out."""
    found = {}
    for port, value in enumerate(op.input_values()):
        node = value.get_node()
        while node.get_type_name() in LAYOUT:
            node = node.input_value(0).get_node()
        if node.get_type_name() == "FakeQuantize" and not is_constant(node.input_value(0)):
            found[port] = node
    return found


def ranges_behind(op: Any, port: int, quantizer: Any) -> list[npt.NDArray[np.float32]]:
    """The four ranges of a quantiser, after the layout changes between it and an operation's input."""
    ranges = [values_of(quantizer.input_value(i)) for i in range(1, 5)]
    if all(one.size == 1 for one in ranges):
        return [one.reshape(()) for one in ranges]
    changes = []
    node = op.input_value(port).get_node()
    while node.get_type_name() in LAYOUT:
        changes.append(node)
        node = node.input_value(0).get_node()
    for change in reversed(changes):
        if change.get_type_name() == "Transpose" and ranges[0].ndim == len(change.get_output_partial_shape(0)):
            order = values_of(change.input_value(1))
            ranges = [one.transpose(order) for one in ranges]
        else:  # one range for all channels instead: the widest
            lowest, highest = ranges[0].min(), ranges[1].max()
            return [np.asarray(edge, dtype=np.float32) for edge in (lowest, highest, lowest, highest)]
    return ranges


def is_constant(output: Any) -> bool:
    """Whether a value is the same for every image."""
    node = output.get_node()
    if node.get_type_name() == "Constant":
        return True
    ways = {"Convert", "Multiply", "Subtract", "FakeQuantize", *LAYOUT}
    return node.get_type_name() in ways and all(is_constant(value) for value in node.input_values())


def values_of(output: Any) -> npt.NDArray[np.float32]:
    """The numbers of a constant expression: weights as int8 with a scale, or rounded in place."""
    node = output.get_node()
    kind = node.get_type_name()
    if kind == "Constant":
        return np.asarray(node.get_data(), dtype=np.float32 if node.get_data().dtype != np.int64 else np.int64)
    first, *others = (values_of(value) for value in node.input_values())
    compute: dict[str, Callable[..., Any]] = {
        "Convert": lambda: first,
        "Multiply": lambda: first * others[0],
        "Subtract": lambda: first - others[0],
        "Reshape": lambda: first.reshape(_shape(output)),
        "Squeeze": lambda: first.reshape(_shape(output)),
        "Unsqueeze": lambda: first.reshape(_shape(output)),
        "Transpose": lambda: first.transpose(others[0]),
        "FakeQuantize": lambda: _fake_quantize(int(node.get_attributes()["levels"]), first, *others),
    }
    return np.asarray(compute[kind](), dtype=first.dtype)


def _fake_quantize(levels: int, x: Any, low: Any, high: Any, out_low: Any, out_high: Any) -> Any:
    steps = np.round((np.clip(x, low, high) - low) / np.maximum(high - low, 1e-30) * (levels - 1))
    return steps / (levels - 1) * (out_high - out_low) + out_low


def copy_bias(source: Any, target: Any, opset: Any) -> None:
    """NNCF shifts biases to make up for the mean error of a layer: take its bias."""
    for ours, theirs in zip(target.output(0).get_target_inputs(), source.output(0).get_target_inputs(), strict=False):
        ours_add, theirs_add = ours.get_node(), theirs.get_node()
        if not ours_add.get_type_name() == theirs_add.get_type_name() == "Add":
            continue
        port = 1 - ours.get_index()
        if is_constant(ours_add.input_value(port)) and is_constant(theirs_add.input_value(1 - theirs.get_index())):
            bias = opset.constant(values_of(theirs_add.input_value(1 - theirs.get_index())))
            ours_add.input(port).replace_source_output(bias.output(0))
