"""Which form of CMT-S OpenVINO runs fastest, and where its time goes: python benchmarks/graph_forms.py.

Four forms, the network as written and the fused one, each by way of ONNX and straight from torch.export, in float32 and
bfloat16 at batch 1 and 8, in interleaved rounds; then the profile of the fused one by kind of operation. Writes
records/graph-forms-cpu.json. About three minutes.
"""

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from record import write_record

import cmtvision  # noqa: F401  # registers the models
from cmtvision.artefact.runtimes.openvino import import_openvino, openvino_core
from cmtvision.bench.timing import spread
from cmtvision.deploy.exporting.network import explicit_attention
from cmtvision.deploy.exporting.onnx_file import write_onnx
from cmtvision.models.accelerate.fusing.fuse import fuse

ROUNDS, SECONDS, SIDE = 5, 0.6, 224
PRECISIONS = {"fp32": "f32", "bf16": "bf16"}


def main() -> None:
    import_openvino()
    images = torch.zeros(2, 3, SIDE, SIDE)
    written = timm.create_model("cmt_s").eval()
    fused = fuse(written, SIDE, packed=False)
    with tempfile.TemporaryDirectory() as folder:
        graphs = {
            "as written, torch.export": direct(written, images),
            "fused, torch.export": direct(fused, images),
            "fused, ONNX": by_onnx(fused, images, Path(folder) / "fused"),
        }
        explicit_attention(written)
        graphs["as written, ONNX"] = by_onnx(written, images, Path(folder) / "written")
        rates = measure(graphs)
        profile = {name: profiled(graphs["fused, ONNX"], hint) for name, hint in PRECISIONS.items()}
    for name, row in rates.items():
        print(name, {key: round(value["median"], 1) for key, value in row.items()})
    content = {"model": "cmt_s", "pixels": SIDE, "rounds": ROUNDS, "images_per_second": rates, "profile_ms": profile}
    write_record("graph-forms-cpu", "python benchmarks/graph_forms.py", content)


def direct(network: torch.nn.Module, images: torch.Tensor) -> Any:
    import openvino

    with torch.no_grad():
        program = torch.export.export(network, (images,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    return openvino.convert_model(program)


def by_onnx(network: torch.nn.Module, images: torch.Tensor, folder: Path) -> Any:
    folder.mkdir()
    write_onnx(network, images, folder)
    return openvino_core().read_model(str(folder / "model.onnx"))


def compiled(graph: Any, hint: str, batch: int, profile: bool = False) -> Callable[[], Any]:
    model = graph.clone()
    model.reshape([batch, 3, SIDE, SIDE])
    options = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY", "PERF_COUNT": profile}
    request = openvino_core().compile_model(model, "CPU", options).create_infer_request()
    images = torch.rand(batch, 3, SIDE, SIDE).numpy()

    def run() -> Any:
        request.infer({0: images}, share_inputs=True)
        return request

    return run


def measure(graphs: dict[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """Images a second of each form, precision and batch, all in turn in each round."""
    cells = [(name, precision, batch) for name in graphs for precision in PRECISIONS for batch in (1, 8)]
    runs = {cell: compiled(graphs[cell[0]], PRECISIONS[cell[1]], cell[2]) for cell in cells}
    rates: dict[Any, list[float]] = {cell: [] for cell in cells}
    for _ in range(ROUNDS):
        for cell, run in runs.items():
            run()
            count, begun = 0, time.perf_counter()
            while time.perf_counter() - begun < SECONDS:
                run()
                count += 1
            rates[cell].append(cell[2] * count / (time.perf_counter() - begun))
    found: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
    for (name, precision, batch), values in rates.items():
        found[name][f"{precision} batch {batch}"] = spread(values)
    return dict(found)


def profiled(graph: Any, hint: str, passes: int = 10) -> dict[str, float]:
    """Milliseconds of an image by kind of operation and kernel, by the runtime's own profile, the longest first."""
    run = compiled(graph, hint, 1, profile=True)
    for _ in range(3):
        run()
    sums: dict[str, float] = defaultdict(float)
    for _ in range(passes):
        for node in run().get_profiling_info():
            if node.real_time.total_seconds() > 0:
                sums[f"{node.node_type} ({node.exec_type})"] += 1e3 * node.real_time.total_seconds() / passes
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


if __name__ == "__main__":
    main()
