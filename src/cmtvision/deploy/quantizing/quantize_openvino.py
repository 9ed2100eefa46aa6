"""Static 8-bit networks for OpenVINO, by NNCF: int8 weights with a scale per channel, activations in ranges.

NNCF puts FakeQuantize operations before what computes in 8 bits and carries 8-bit values on through additions and
layout changes, as OpenVINO's passes expect. The network that is written is always NNCF's own, with the excluded layers
named to it. To measure one group alone a hundred times, that is too slow (it collects ranges again): for these
``simulated`` puts the quantisers of one NNCF run into a copy of the fp32 graph, with the same numerical effect.
"""

import logging
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cmtvision.artefact.runtimes.base import arithmetic_of
from cmtvision.artefact.runtimes.openvino import arithmetic_settings, capabilities, import_openvino, openvino_core
from cmtvision.deploy.exporting.onnx_file import require_onnx
from cmtvision.deploy.exporting.openvino_file import BIN_FILE, XML_FILE
from cmtvision.deploy.quantizing.calibration import Forward
from cmtvision.deploy.quantizing.openvino_graph import (
    LAYOUT,
    compress_constants,
    copy_bias,
    is_constant,
    layer_of,
    quantizers,
    ranges_behind,
    share_ranges,
    tighten,
    values_of,
)
from cmtvision.deploy.quantizing.profile import attribute
from cmtvision.deploy.quantizing.quantized import Layer, Rest
from cmtvision.errors import ConfigError
from cmtvision.machine import default_threads

_PROFILED = 12


class OpenVinoQuantizer:
    """See ``Backend`` in search.py.

    Args:
        folder: of the fp32 graph, model.xml and model.bin.
        rest: precision of what is not in 8 bits.

    Raises:
        ConfigError: packages that are missing, or a processor without bf16.
    """

    name = "openvino"

    def __init__(self, folder: Path, rest: Rest) -> None:
        check_openvino(rest)
        self._openvino = import_openvino()
        self._core = openvino_core()
        self.rest: Rest = rest
        self._path = folder / "prepared.xml"
        model = self._core.read_model(folder / XML_FILE)
        # a file read as it is has GELU in five operations, and NNCF would quantise each: join them first
        from openvino._offline_transformations import apply_moc_transformations

        apply_moc_transformations(model, cf=False)
        self._openvino.save_model(model, str(self._path), compress_to_fp16=False)
        self._full: Any = None
        self.layers: list[Layer] = []

    def calibrate(self, images: Iterable[npt.NDArray[np.float32]]) -> None:
        """Collect ranges from inputs (B, C, H, W) and find the layers that NNCF quantises."""
        self._images = [one[None] for batch in images for one in batch]  # NNCF's statistics are of single images
        self._full = self._nncf([])
        original = {op.get_friendly_name() for op in self.reference().get_ops()}
        self.layers = [
            layer_of(op)
            for op in self._full.get_ordered_ops()
            if op.get_friendly_name() in original and op.get_type_name() not in LAYOUT and quantizers(op)
        ]

    def reference(self) -> Any:
        """The fp32 graph."""
        return self._core.read_model(self._path)

    def built(self, int8: frozenset[str]) -> Any:
        """The graph as it ships with these layers in 8 bits."""
        names = [layer.name for layer in self.layers if layer.name not in int8]
        return self._nncf(names) if names else self._full

    def simulated(self, int8: frozenset[str]) -> Any:
        """The fp32 graph with these layers' inputs and weights rounded as in 8 bits."""
        openvino = self._openvino
        opset = openvino.opset13
        model = self.reference()
        ops = {op.get_friendly_name(): op for op in model.get_ops()}
        for source in self._full.get_ops():
            name = source.get_friendly_name()
            if name not in int8 or name not in ops:
                continue
            target = ops[name]
            for port, quantizer in quantizers(source).items():
                ranges = [opset.constant(one) for one in ranges_behind(source, port, quantizer)]
                levels = int(quantizer.get_attributes()["levels"])
                rounded = opset.fake_quantize(target.input_value(port), *ranges, levels)
                target.input(port).replace_source_output(rounded.output(0))
            for port in range(1, len(target.inputs())):
                if is_constant(source.input_value(port)):
                    weight = opset.constant(values_of(source.input_value(port)))
                    target.input(port).replace_source_output(weight.output(0))
            copy_bias(source, target, opset)
        return model

    def open(self, model: Any, rest: Rest | None = None, batch: int = 16) -> Forward:
        """Compile for a batch size; smaller batches are filled up."""
        request = self._compile(model, rest or self.rest, batch).create_infer_request()

        def forward(images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
            whole = images
            if len(images) < batch:
                whole = np.concatenate([images, np.zeros((batch - len(images), *images.shape[1:]), np.float32)])
            request.infer({0: np.ascontiguousarray(whole)})
            return np.array(request.get_output_tensor(0).data[: len(images)], dtype=np.float32)

        return forward

    def times(self, model: Any, images: npt.NDArray[np.float32]) -> dict[str, float]:
        """Milliseconds of each layer, by OpenVINO's own clock: the least of several runs, conversions included."""
        compiled = self._compile(model, self.rest, len(images), PERF_COUNT=True)
        request = compiled.create_infer_request()
        request.infer({0: images})
        least: dict[str, float] = {}
        for _ in range(_PROFILED):
            request.infer({0: images})
            for one in request.get_profiling_info():
                ms = one.real_time.total_seconds() * 1000
                least[one.node_name] = min(ms, least.get(one.node_name, ms))
        nodes = []
        for op in compiled.get_runtime_model().get_ordered_ops():
            info = op.get_rt_info()
            made_of = str(info["originalLayersNames"].astype(str)).split(",") if "originalLayersNames" in info else []
            nodes.append(([op.get_friendly_name(), *made_of], least.get(op.get_friendly_name(), 0.0)))
        return attribute(nodes, [layer.name for layer in self.layers])

    def save(self, model: Any, folder: Path) -> list[str]:
        """Write model.xml and model.bin; what stays floating point is stored as float16. Returns their names."""
        model = model.clone()
        share_ranges(model)
        compress_constants(model, self._openvino.opset13)
        self._openvino.save_model(model, str(folder / XML_FILE), compress_to_fp16=False)
        tighten(folder / XML_FILE)
        return [XML_FILE, BIN_FILE]

    def read(self, folder: Path) -> Any:
        """What ``save`` wrote."""
        return self._core.read_model(folder / XML_FILE)

    def weight_only(self) -> Any:
        """The graph with weights in symmetric int8, a scale per channel; it computes in floating point."""
        nncf = import_nncf()
        with _quiet():
            return nncf.compress_weights(self.reference(), mode=nncf.CompressWeightsMode.INT8_SYM)

    def _nncf(self, kept: list[str]) -> Any:
        nncf = import_nncf()
        with _quiet():
            return nncf.quantize(
                self.reference(),
                nncf.Dataset(self._images),
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=len(self._images),
                ignored_scope=nncf.IgnoredScope(names=kept, validate=False) if kept else None,
            )

    def _compile(self, model: Any, rest: Rest, batch: int, **more: Any) -> Any:
        model = model.clone()
        shape = list(model.input(0).get_partial_shape())
        model.reshape({0: [batch, *(int(edge.get_length()) for edge in shape[1:])]})
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            **arithmetic_settings("int8", arithmetic_of(f"int8-{rest}", capabilities(self._core, "CPU"))),
            "INFERENCE_NUM_THREADS": default_threads(),
        }
        return self._core.compile_model(model, "CPU", {**settings, **more})


def check_openvino(rest: Rest) -> None:
    """Raises ConfigError for packages that are missing, or a processor without the arithmetic of the rest."""
    who = "quantising for OpenVINO"
    import_openvino(who)
    require_onnx(who, "openvino")  # the fp32 graph that it starts from is traced with it
    import_nncf()
    if rest == "bf16" and "bf16" not in capabilities(openvino_core(), "CPU"):
        raise ConfigError("rest bf16: this processor has no bfloat16 arithmetic; use fp32")


def import_nncf() -> Any:
    """The package, imported without its telemetry and log messages.

    Raises:
        ConfigError: it is not installed.
    """
    import_openvino()
    before = os.environ.get("NNCF_CI")
    os.environ["NNCF_CI"] = "1"  # read when it is imported: no telemetry
    logger = logging.getLogger("torch.utils.cpp_extension")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it remarks on a missing CUDA compiler
    try:
        with _quiet():
            import nncf
    except ImportError as error:
        raise ConfigError(f"quantising for OpenVINO needs nncf ({error}): pip install 'cmtvision[openvino]'") from None
    finally:
        logger.setLevel(level)
        if before is None:
            del os.environ["NNCF_CI"]
        else:
            os.environ["NNCF_CI"] = before
    nncf.set_log_level(logging.ERROR)
    return nncf


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence NNCF's progress bars, which no option turns off."""
    import warnings

    with open(os.devnull, "w", encoding="utf-8") as nowhere, warnings.catch_warnings():  # noqa: PTH123
        warnings.simplefilter("ignore")  # its dependencies' deprecations, which no caller can change
        sys.stdout.flush()
        with redirect_stdout(nowhere), redirect_stderr(nowhere):
            yield
