"""What the native loops of a fused CMT gain: beside the same network without them, OpenVINO and ONNX Runtime.

    python benchmarks/native_loops.py [--model cmt_s] [--rounds 15]
    python benchmarks/native_loops.py --training [--rounds 15]

With --training: what those of training gain, in a step of cmt_ti at 160 px, batch 16, beside the step without them and
beside the plain one of throughput.py; the rule was 1.15 times the step without them. Its record is
benchmarks/records/native-training.json.

One process, float32 and bfloat16 (where the processor multiplies it), weights of no training; in each round every form
computes the same batch, so that a busy machine slows them all. Exports are verified before they are timed; ONNX Runtime
has no bfloat16 on CPUs. The rule by which the loops were kept: at least 1.15 times the faster of OpenVINO and ONNX
Runtime for cmt_s, at batch 1 or 8. The record is benchmarks/records/native-loops.json.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from photo_folder import write_photos
from record import write_record
from throughput import our_network, our_step, plain_step

from cmtvision.artefact import Artefact, load, write_artefact
from cmtvision.artefact.card import RuntimeName
from cmtvision.data import Preprocess
from cmtvision.deploy import export
from cmtvision.deploy.exporting.export import Precision
from cmtvision.machine import keep_freed_memory
from cmtvision.models import create_model
from cmtvision.models.accelerate.fusing.fuse import FusedAttention, FusedCMT, fuse
from cmtvision.models.accelerate.fusing.fused_layers import FusedConv, LastNorm, can_pack
from cmtvision.models.accelerate.modules import FastAttention, FastIRFFN, MapLayerNorm, TokenLinear
from cmtvision.models.accelerate.native.library import library

BATCHES = (1, 8)
PAUSE = 0.05  # seconds in which the threads of the form before come to rest


def only(network: FusedCMT, kinds: tuple[type, ...]) -> FusedCMT:
    """The network with the native loops of some modules."""
    for module in network.modules():
        if isinstance(module, LastNorm | FusedAttention) and not isinstance(module, kinds):
            module.native = False
        if isinstance(module, FusedConv) and not isinstance(module, kinds):
            module._loops = None
    return network


def exports(model: Any, name: str, preprocess: Preprocess, precision: Precision, folder: Path) -> dict[str, Any]:
    """The network in other runtimes, opened."""
    classes = [str(number) for number in range(model.num_classes)]
    write_artefact(folder / "run", Artefact(name, {}, classes, preprocess, model=model))
    photos = write_photos(folder / "photos", 8)
    others: list[RuntimeName] = ["openvino", "onnx"] if precision == "fp32" else ["openvino"]
    return {
        to: load(export(folder / "run", to, folder / to, precision=precision, images=photos).folder, "cpu").runtime
        for to in others
    }


TRAINING = {
    "without": (),
    "inside the IRFFN": (FastIRFFN,),
    "LayerNorm": (MapLayerNorm,),
    "attention": (FastAttention,),
    "linear layers by oneDNN": (TokenLinear,),
    "all": (FastIRFFN, MapLayerNorm, FastAttention, TokenLinear),
}


def training_step(kinds: tuple[type, ...], bf16: bool) -> Callable[[], None]:
    """The step of the engine with the loops of some modules."""
    network = our_network()
    for module in network.modules():
        if isinstance(module, FastIRFFN | MapLayerNorm | FastAttention):
            module.native = isinstance(module, kinds)
        if isinstance(module, TokenLinear) and not isinstance(module, kinds):
            module.as_convolution = False
    return our_step(bf16, network=network)


def training(rounds: int) -> None:
    """Time the steps, each once a round."""
    steps: dict[tuple[str, str], Callable[[], None]] = {("fp32", "plain"): plain_step()}
    for precision in ("fp32", "bf16"):
        steps |= {(precision, form): training_step(kinds, precision == "bf16") for form, kinds in TRAINING.items()}
    times: dict[tuple[str, str], list[float]] = {key: [] for key in steps}
    for number in range(rounds + 2):
        for key, step in steps.items():
            time.sleep(PAUSE)
            begun = time.perf_counter()
            step()
            if number > 1:
                times[key].append(time.perf_counter() - begun)
    content: dict[str, Any] = {"model": "cmt_ti", "pixels": 160, "batch": 16, "precisions": {}}
    for precision in ("fp32", "bf16"):
        without, plain = times[precision, "without"], times["fp32", "plain"]
        content["precisions"][precision] = {
            form: {
                "seconds": round(statistics.median(own), 4),
                "against_without": round(statistics.median(a / b for a, b in zip(without, own, strict=True)), 3),
                "against_plain": round(statistics.median(a / b for a, b in zip(plain, own, strict=True)), 3),
            }
            for (kind, form), own in times.items()
            if kind == precision
        }
        print(precision, content["precisions"][precision], flush=True)
    write_record("native-training", "python benchmarks/native_loops.py --training", content)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="cmt_s")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--training", action="store_true")
    options = parser.parse_args()
    assert library() is not None, "no compiler here, or CMTVISION_NATIVE=off"
    if options.training:
        training(options.rounds)
        return
    keep_freed_memory()  # as ``predict`` does
    torch.manual_seed(0)
    model: Any = create_model(options.model).eval()
    preprocess = Preprocess.from_timm(timm.data.resolve_model_data_config(model))
    content: dict[str, Any] = {"model": options.model, "pixels": list(preprocess.size), "precisions": {}}
    precisions: dict[Precision, torch.dtype] = {"fp32": torch.float32}
    if can_pack(torch.device("cpu"), torch.bfloat16):
        precisions["bf16"] = torch.bfloat16
    for precision, dtype in precisions.items():
        content["precisions"][precision] = inference(options.model, model, preprocess, precision, dtype, options.rounds)
    write_record("native-loops", "python benchmarks/native_loops.py", content)


def inference(
    name: str, model: Any, preprocess: Preprocess, precision: Precision, dtype: torch.dtype, count: int
) -> dict[int, Any]:
    """What each form of a network does in one precision, by batch size."""
    height, width = preprocess.size
    forms: dict[str, Callable[[Any], Any]] = {}

    def in_torch(network: FusedCMT) -> Callable[[Any], Any]:
        return lambda batch: network(torch.from_numpy(batch)).numpy()

    kept = {
        "fused": (),
        "fused, native norms": (LastNorm,),
        "fused, native convolutions": (FusedConv,),
        "fused, native attention": (FusedAttention,),
        "fused, native": (LastNorm, FusedConv, FusedAttention),
    }
    for form, kinds in kept.items():
        forms[form] = in_torch(only(fuse(model, preprocess.size, dtype), kinds))
    batches: dict[int, Any] = {}
    with tempfile.TemporaryDirectory() as place, torch.inference_mode():
        others = exports(model, name, preprocess, precision, Path(place))
        forms |= others
        for size in BATCHES:
            batch = np.random.default_rng(0).normal(size=(size, 3, height, width)).astype(np.float32)
            expected = model(torch.from_numpy(batch)).numpy()
            rounds: list[dict[str, float]] = []
            for number in range(count + 2):
                seconds = {}
                for form, compute in forms.items():
                    time.sleep(PAUSE)
                    begun = time.perf_counter()
                    compute(batch)
                    seconds[form] = time.perf_counter() - begun
                if number > 1:
                    rounds.append(seconds)
            found = {
                form: {
                    "images_per_second": round(size / statistics.median(one[form] for one in rounds), 2),
                    "against_fused": round(statistics.median(one["fused"] / one[form] for one in rounds), 3),
                    "largest_difference": float(np.abs(compute(batch) - expected).max() / np.abs(expected).max()),
                }
                for form, compute in forms.items()
            }
            best = statistics.median(
                min(one[form] for form in others) / one["fused, native"] for one in rounds
            )  # of each round the faster
            batches[size] = {"forms": found, "against_the_best_runtime": round(best, 3)}
            speeds = {form: row["images_per_second"] for form, row in found.items()}
            print(precision, size, speeds, f"{best:.2f}", flush=True)
    return batches


if __name__ == "__main__":
    main()
