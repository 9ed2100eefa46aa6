"""Measure everything on this machine in under ten minutes: python benchmarks/run_all.py [--quick] [--out NAME].

With --quick it is one short round of the smallest networks, to see that it runs: a record named 'quick'.

Writes records/models.json (parameters, GMACs) and one record of this machine, records/speed-NAME.json:

- start_up_seconds: whole processes.
- speed: cmt_s and the networks of timm with about its multiply-adds, each in every runtime that is here, in float32
  and bfloat16, at batch 1 and 8, by ``cmtvision bench``'s own measurement: interleaved rounds, machine's limits.
- pixels: cmt_s fused from 160 to 640 px: the exponent of time against pixels by least squares on logarithms, and peak
  memory of activations against what they need (cmtvision.models.analysis.activation_need).
- inference: the other sizes of CMT; plain NCHW and channels-last for the README's table.
- training_step: plain NCHW beside channels-last; then throughput.py in a record of its own.
- gpu: where there is one: AMP, torch.compile and CUDA graphs among the runtimes, and gpu.py.

'Plain eager' is timm.create_model(name).eval() in NCHW under torch.inference_mode, float32, nothing else. What does not
fit in the time is left out, and the record's notes say so; --minutes gives more of it.
"""

import argparse
import json
import math
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from record import cmtvision, write_record

from cmtvision.bench.exports import make_exports
from cmtvision.bench.limits import limit_kinds
from cmtvision.bench.measure import measure as measure_targets
from cmtvision.bench.record import speed_record
from cmtvision.bench.runtimes import in_runtimes, is_here
from cmtvision.bench.target import Target, find_targets
from cmtvision.bench.timing import spread
from cmtvision.machine import usable_cores
from cmtvision.models.analysis.activation_need import activation_need

PEERS = ("deit_small_patch16_224", "pvt_v2_b2", "swin_tiny_patch4_window7_224", "convnext_tiny")
SIDES = (160, 224, 320, 448, 640)
BATCHES = (1, 8)
LAYOUTS = {"eager": "nchw", "channels-last": "channels_last"}
HERE = Path(__file__).parent


class Clock:
    """The time that is left, and what was left out for want of it."""

    def __init__(self, minutes: float) -> None:
        self.ends, self.notes = time.monotonic() + 60 * minutes, list[str]()

    def allows(self, what: str, seconds: float) -> bool:
        """Whether so many seconds are left; where not, a note says what was left out."""
        left = self.ends - time.monotonic()
        if left < seconds:
            self.notes.append(f"{what}: left out, it takes some {seconds:.0f} s and {max(left, 0):.0f} s were left")
            print(self.notes[-1])
        else:
            print(f"{what} ({left:.0f} s left)", flush=True)
        return left >= seconds


def options(words: Sequence[str]) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the two smallest networks, one short round")
    parser.add_argument("--out", help="name of the record; default: cpu, of --quick: quick")
    parser.add_argument("--minutes", type=float, default=9.5, help="from which on nothing more is begun")
    parser.add_argument("--also", nargs="*", default=[], metavar="EXPORT", help="exports to time beside cmt_s: int8")
    args = parser.parse_args(words)
    args.out = args.out or ("quick" if args.quick else "cpu")
    return args


def main() -> None:
    args = options(sys.argv[1:])
    clock = Clock(args.minutes)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rounds, seconds = (1, 0.02) if args.quick else (5, 0.6)
    measure = Measure(device, rounds, seconds, clock)
    if not args.quick:
        write_record("models", "cmtvision models --json", {"models": json.loads(cmtvision("models", "--json"))})
    content: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "threads": measure.threads,
        "rounds": rounds,
    }
    content["start_up_seconds"] = start_up(rounds) if clock.allows("start-up", 10 if args.quick else 40) else {}
    ours, others = ("cmt_nano", ("cmt_ti",)) if args.quick else ("cmt_s", PEERS)
    content["speed"] = speed(measure, ours, others, args.also, args.quick)
    if clock.allows("pixels", 30):
        content["pixels"] = pixels(measure, ours, (32, 64) if args.quick else SIDES)
    content["inference"] = inference(measure, content["speed"], () if args.quick else ("cmt_nano", "cmt_ti", "cmt_xs"))
    if clock.allows("training step", 5 if args.quick else 40):
        content["training_step"] = {
            name: training(name, torch.device(device), rounds, seconds)
            for name in ("cmt_nano", "cmt_ti")[: 1 if args.quick else 2]
        }
    if not args.quick and clock.allows("cmt_b", 40):
        content["inference"] |= inference(measure, {"cells": []}, ("cmt_b",))
    if not args.quick and clock.allows(f"{ours} compiled", 200):
        content["compiled"] = measure.models([ours], ["eager", "compiled"])
    if not args.quick and clock.allows("memory at 800 x 1216", 15):
        content["peak_memory_800x1216_gb"] = {"cmt_s": peak_memory("cmt_s")}
    if device == "cuda" and clock.allows("gpu.py", 60 if args.quick else 400):
        subprocess.run([sys.executable, HERE / "gpu.py", *(["--quick"] if args.quick else [])], check=True)
    if clock.allows("throughput.py", 20 if args.quick else 200):
        more = ["--out", args.out, *(["--quick"] if args.quick else [])]
        subprocess.run([sys.executable, HERE / "throughput.py", *more], check=True)
    content["notes"] = clock.notes
    write_record(f"speed-{args.out}", shlex.join(["python", "benchmarks/run_all.py", *sys.argv[1:]]), content)


class Measure:
    """Measures targets by the same settings throughout."""

    def __init__(self, device: str, rounds: int, seconds: float, clock: Clock) -> None:
        self.device, self._rounds, self._seconds, self._clock = device, rounds, seconds, clock
        self.threads = usable_cores() if device == "cpu" else torch.get_num_threads()

    def find(
        self,
        names: Sequence[str],
        runtimes: Sequence[str] | None,
        precision: str = "fp32",
        img_size: int | None = None,
    ) -> list[Target]:
        """Models in the runtimes that are here."""
        here = None if runtimes is None else [name for name in runtimes if is_here(name)]
        precisions = None if here is None else [precision]
        targets = find_targets(names)
        return in_runtimes(
            targets, runtimes=here, precisions=precisions, threads=[self.threads], img_size=img_size, device=self.device
        )

    def models(self, names: Sequence[str], runtimes: Sequence[str] | None) -> dict[str, Any]:
        return self(self.find(names, runtimes))

    def __call__(self, targets: Sequence[Target], batches: Sequence[int] = BATCHES) -> dict[str, Any]:
        """Export what has to be, and measure."""
        with tempfile.TemporaryDirectory(prefix="cmtvision-run-all-") as folder:
            # sort is stable: those of a model stand together, which is how they are interleaved
            order = list(dict.fromkeys((target.name, target.img_size) for target in targets))
            ready, failures = make_exports(
                sorted(targets, key=lambda target: order.index((target.name, target.img_size))), Path(folder)
            )
            found = speed_record(measure_targets(
                ready, batches=batches, rounds=self._rounds, seconds=self._seconds, device=self.device,
                limits=limit_kinds(ready), failures=failures, until=self._clock.ends,
            ))  # fmt: skip
        for row in found["cells"]:
            if row["failure"] is not None:
                self._clock.notes.append(
                    f"{row['target']} {row['runtime']} {row['precision']} batch {row['batch']}: {row['failure']}"
                )
        self._clock.notes += found.pop("notes")
        return found


def speed(measure: Measure, ours: str, peers: Sequence[str], also: Sequence[str], quick: bool) -> dict[str, Any]:
    """Our network and its peers in every runtime, in one run."""
    if measure.device == "cuda":
        ways = [(("eager", "channels-last", "fused", "compiled", "cuda-graph"), "fp32"),
                (("eager", "fused", "compiled", "cuda-graph"), "amp"), (("fused", "cuda-graph"), "bf16")]  # fmt: skip
        theirs = [(("eager", "channels-last", "compiled", "cuda-graph"), precision) for precision in ("fp32", "amp")]
    else:
        ways = [(("eager", "channels-last", "fused", "torch", "onnx", "openvino"), "fp32"),
                (("fused", "openvino"), "bf16")]  # fmt: skip
        theirs = [(("eager", "channels-last", "onnx", "openvino"), "fp32"), (("openvino",), "bf16")]
    if quick:
        ways, theirs = [(("eager", "channels-last", "fused"), "fp32")], [(("eager", "channels-last"), "fp32")]
    targets = [target for runtimes, precision in ways for target in measure.find([ours], runtimes, precision)]
    targets += [target for runtimes, precision in theirs for target in measure.find(peers, runtimes, precision)]
    targets += measure.find(also, None) if also else []
    return measure(targets)


def inference(measure: Measure, known: dict[str, Any], more: Sequence[str]) -> dict[str, Any]:
    """Images/s of our networks, NCHW and channels-last, from what was measured and of some more."""
    cells = list(known["cells"])
    if more and measure._clock.allows(", ".join(more), 60):
        runtimes = ("eager", "channels-last", "fused", *(() if measure.device == "cuda" else ("onnx", "openvino")))
        found = measure.models(more, runtimes)
        cells += found["cells"]
    rows: dict[str, Any] = {}
    for cell in cells:
        if cell["failure"] is None and cell["precision"] == "fp32" and str(cell["target"]).startswith("cmt_"):
            name = LAYOUTS.get(cell["runtime"], cell["runtime"])
            rows.setdefault(cell["target"], {})[f"{name} batch {cell['batch']}"] = cell["images_per_second"]
    return {name: row for name, row in rows.items() if {f"{layout} batch 8" for layout in LAYOUTS.values()} <= set(row)}


def pixels(measure: Measure, name: str, sides: Sequence[int]) -> dict[str, Any]:
    """Time and memory of the fused network against the size of the image."""
    found = measure(
        [target for side in sides for target in measure.find([name], ["fused"], img_size=side)], batches=(1,)
    )
    rows = []
    for side, cell in zip(sides, found["cells"], strict=True):
        if cell["failure"] is not None:
            continue
        need = activation_need(timm.create_model(name, img_size=side), (3, side, side))
        peak = cell["activation_bytes"]
        rows.append({
            "pixels": side,
            "seconds": cell["latency_seconds"]["p50"],
            "gmacs": cell["gmacs"],
            "activation_peak_bytes": peak,
            "activation_need_bytes": need,
            "peak_over_need": None if peak is None else peak / need,
            "process_peak_bytes": cell["memory_bytes"],
        })  # fmt: skip
    exponents = {
        key: slope([(row["pixels"] ** 2, row[key]) for row in rows]) for key in ("seconds", "gmacs") if len(rows) > 1
    }
    return {"model": name, "runtime": "fused", "batch": 1, "exponents": exponents, "rows": rows}


def slope(points: Sequence[tuple[float, float]]) -> float:
    """p of y = c * x^p by least squares on logarithms."""
    xs, ys = ([math.log(point[axis]) for point in points] for axis in (0, 1))
    return statistics.linear_regression(xs, ys).slope


def start_up(rounds: int) -> dict[str, Any]:
    """Seconds of wall time of whole processes, interleaved."""
    commands = {
        "cmtvision --help": [sys.executable, "-m", "cmtvision", "--help"],
        "import torch, timm": [sys.executable, "-c", "import torch, timm"],
        "import torch, timm, cmtvision": [sys.executable, "-c", "import torch, timm, cmtvision"],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            begun = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            times[name].append(time.perf_counter() - begun)
    return {name: spread(values) for name, values in times.items()}


def training(name: str, device: torch.device, rounds: int, seconds: float) -> dict[str, Any]:
    """Images per second of a whole training step, plain NCHW beside channels-last."""
    side = timm.get_pretrained_cfg(name).input_size[-1]
    batch = 128 if side <= 64 else 16
    steps: dict[str, tuple[Callable[[], Any], int]] = {}
    for layout, memory_format in (("nchw", torch.contiguous_format), ("channels_last", torch.channels_last)):
        model = timm.create_model(name).train().to(device).to(memory_format=memory_format)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        images = torch.randn(batch, 3, side, side, device=device).contiguous(memory_format=memory_format)
        labels = torch.randint(0, 1000, (batch,), device=device)
        steps[f"{layout} batch {batch}"] = (
            lambda m=model, o=optimizer, x=images, y=labels: train_step(m, o, x, y),
            batch,
        )
    return interleaved(steps, device, rounds, seconds)


def train_step(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor, labels: torch.Tensor
) -> None:
    with torch.autocast(images.device.type, torch.bfloat16, enabled=images.device.type == "cuda"):
        loss = torch.nn.functional.cross_entropy(model(images).float(), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def interleaved(
    steps: dict[str, tuple[Callable[[], Any], int]], device: torch.device, rounds: int, seconds: float
) -> dict[str, dict[str, float]]:
    """Images per second of each step, all steps in turn in each round."""
    rates: dict[str, list[float]] = {name: [] for name in steps}
    for step, _ in steps.values():
        step()
    for _ in range(rounds):
        for name, (step, batch) in steps.items():
            count, begun = 0, time.perf_counter()
            while count < 2 or time.perf_counter() - begun < seconds:
                step()
                count += 1
                if device.type == "cuda":
                    torch.cuda.synchronize()
            rates[name].append(count * batch / (time.perf_counter() - begun))
    return {name: spread(values) for name, values in rates.items()}


def peak_memory(name: str) -> float:
    """Gigabytes that a process holds at most for one image of 800 x 1216, PyTorch itself included."""
    code = f"""
import torch, timm, cmtvision
model = timm.create_model({name!r}).eval()
with torch.inference_mode():
    model(torch.zeros(1, 3, 800, 1216))
# not getrusage: a child's maximum there begins at its parent's
print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1e6)
"""
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    main()
