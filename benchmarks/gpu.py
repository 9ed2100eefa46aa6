"""Measure CMT on a GPU in under eight minutes: python benchmarks/gpu.py [--quick] [--part PART ...] [--out NAME].

Writes records/gpu-NAME.json after each part, so that a run which is cut short keeps what it has. All that is compared
is timed in interleaved rounds of one run; medians and extremes are kept. "Launched" is what a Python program sees, each
operation sent to the GPU by itself; "replayed" is the same work as one CUDA graph, which costs no launches.

- tests: tests/gpu, so that nothing wrong is timed.
- kernels: each shape of cmt_s at 224 px (the LPU's map, the IRFFN's, the attention of each stage) in bfloat16, forward
  and with backward, the Triton kernel and the plain path; bytes that must be read and written at least, over time, as
  a share of what a copy reaches; and the kernel's largest difference from the plain path, both in float32, over the
  largest value.
- inference: networks of this project and of timm at their published sizes, bfloat16, channels-last, replayed, batches
  of 1 and 64; CMT also fused and in float32, cmt_s with the kernels besides.
- training: a step of cmt_ti, cmt_s, cmt_b and of networks of cmt_s's cost, bfloat16 autocast, launched and replayed,
  kernels off and on; cmt_s in float32 as well.
- compiled: the same step and inference of cmt_s under torch.compile, kernels off and on. It takes minutes.

Without a GPU it says so and writes nothing. --rehearse runs all of it but the graphs and the compiler on the CPU, with
the smallest networks and shapes, kernels in Triton's interpreter, and writes nothing either: what has changed in the
package since the last GPU is found before the next one.
"""

import argparse
import copy
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from record import write_record
from timm.utils import reparameterize_model

import cmtvision  # noqa: F401  # registers the models
from cmtvision.bench.opening import captured
from cmtvision.models.accelerate import accelerate
from cmtvision.models.accelerate.fusing.fuse import fuse
from cmtvision.models.accelerate.kernels import use_kernels

SMALLEST = ((16, 2, 3),)  # in a rehearsal
STAGES = ((64, 1, 56), (128, 2, 28), (256, 4, 14), (512, 8, 7))  # channels, heads, side of the map
KEYS, RATIO = 49, 4
CMT = ("cmt_ti", "cmt_xs", "cmt_s", "cmt_b")
OF_THE_PAPER = (
    "ceit_tiny_patch16_224", "ceit_small_patch16_224", "cvt_13", "cvt_21", "pvt_v1_tiny", "pvt_v1_small",
    "pvt_v1_medium", "deit_tiny_patch16_224", "deit_small_patch16_224", "deit_base_patch16_224",
    "mobilenetv3_large_100",
)  # fmt: skip
OF_TODAY = (
    "pvt_v2_b2", "swin_tiny_patch4_window7_224", "convnext_tiny", "convnextv2_nano", "resnet50", "efficientnet_b3",
    "mobilenetv4_conv_medium", "mobilenetv4_hybrid_medium", "efficientvit_b1", "efficientvit_b2", "repvit_m1_1",
    "repvit_m1_5", "efficientformerv2_s2", "tiny_vit_11m_224", "fastvit_sa12",
)  # fmt: skip
Step = Callable[[], Any]
device = "cuda"  # or, in a rehearsal, "cpu"


def main() -> None:
    parts = {
        "tests": tests, "kernels": kernels, "inference": inference, "training": training, "compiled": compiled
    }  # fmt: skip
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round, small batches, few networks and shapes")
    parser.add_argument("--part", nargs="+", choices=parts, default=list(parts), help="what to measure, in this order")
    parser.add_argument("--out", default="gpu", help="name of the record")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, to see that it would run; no record")
    args = parser.parse_args()
    if args.rehearse:
        rehearse([part for part in args.part if part not in ("tests", "compiled")], parts)
        return
    if not torch.cuda.is_available():
        print("no CUDA GPU here: nothing is measured; --rehearse runs the script on the CPU")
        return
    content: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "copy_bytes_per_second": copy_rate(),
        "parts": {},
    }
    for part in args.part:
        begun = time.perf_counter()
        rows: dict[str, Any] = {}
        for name, row in parts[part](args.quick):
            rows[name] = row
            print(part, name, shortly(row), flush=True)
        content["parts"][part] = {"seconds": time.perf_counter() - begun, "rows": rows}
        write_record(f"gpu-{args.out}", "python benchmarks/gpu.py", content)


def rehearse(names: list[str], parts: dict[str, Callable[[bool], Iterator[tuple[str, Any]]]]) -> None:
    """Run the quick form of some parts on the CPU. Raises what they raise, and RuntimeError for a row that failed."""
    global device  # noqa: PLW0603
    assert os.environ.get("TRITON_INTERPRET") == "1", "a rehearsal wants TRITON_INTERPRET=1 in the environment"
    device = "cpu"
    for part in names:
        for name, row in parts[part](True):
            print(part, name, shortly(row), flush=True)
            if "failed" in row:
                raise RuntimeError(f"{part} {name}: {row['failed']}")


def tests(_quick: bool) -> Iterator[tuple[str, Any]]:
    """The tests that need a GPU, as a process of their own."""
    folder = Path(__file__).parents[1] / "tests" / "gpu"
    command = [sys.executable, "-m", "pytest", str(folder), "-q", "-p", "no:cacheprovider", "-n", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    yield "tests/gpu", {"exit_code": done.returncode, "last_line": (done.stdout.strip().splitlines() or [""])[-1]}
    if done.returncode:
        print(done.stdout[-4000:], done.stderr[-2000:], flush=True)


def replayed(step: Step) -> Step:
    """The step as one CUDA graph; as it is in a rehearsal."""
    return captured(step) if device == "cuda" else step


def kernels(quick: bool) -> Iterator[tuple[str, Any]]:
    """Kernel and plain path of each operation."""
    batch, rounds = (8, 1) if quick else (64, 5)
    stages = STAGES[-1:] if quick else STAGES
    if device == "cpu":
        batch, stages = 1, SMALLEST
    for name, (kernel, plain, moved) in kernel_rows(stages, batch).items():
        steps = {"kernel launched": kernel, "plain launched": plain}
        steps |= {"kernel replayed": replayed(kernel), "plain replayed": replayed(plain)}
        times = interleaved(steps, rounds, 0.05)
        share = moved / statistics.median(times["kernel replayed"]) / copy_rate()
        yield name, spreads(times) | {"share_of_copy_rate": share, "difference": kernel.difference}


def kernel_rows(stages: Any, batch: int) -> dict[str, tuple[Any, Step, int]]:
    """(kernel, plain path, bytes that must move) of each operation."""
    rows: dict[str, tuple[Any, Step, int]] = {}
    for channels, heads, side in stages:
        for part, width, gelu in (("lpu", channels, False), ("irffn", RATIO * channels, True)):
            name = f"{part} {width}x{side}x{side}"
            rows |= {f"{name} {way}": row for way, row in depthwise_rows(batch, width, side, gelu).items()}
        name = f"attention {heads}x{side * side}x{KEYS}"
        rows |= {f"{name} {way}": row for way, row in attention_rows(batch, heads, side * side, channels).items()}
    return rows


def depthwise_rows(batch: int, channels: int, side: int, gelu: bool) -> dict[str, tuple[Any, Step, int]]:
    from cmtvision.models.accelerate.kernels.depthwise import depthwise

    x = bfloat16(batch, channels, side, side).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(channels, 1, 3, 3, device=device), torch.randn(channels, device=device)

    def plain(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        z = F.conv2d(x, weight.to(x.dtype), bias.to(x.dtype), padding=1, groups=channels) + x
        return F.gelu(z) if gelu else z

    def kernel(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return depthwise(x, weight, bias, gelu=gelu)

    least = x.numel() * x.element_size()
    return both_ways(kernel, plain, (x, weight, bias), 2 * least, 5 * least)


def attention_rows(batch: int, heads: int, queries: int, channels: int) -> dict[str, tuple[Any, Step, int]]:
    from cmtvision.models.accelerate.kernels.attention import attention

    tokens = [bfloat16(batch, n, heads, channels // heads).transpose(1, 2) for n in (queries, KEYS, KEYS)]
    bias = torch.randn(1, heads, queries, KEYS, device=device)

    def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))

    q, kv, b = (v.numel() * v.element_size() for v in (tokens[0], tokens[1], bias))
    return both_ways(attention, plain, (*tokens, bias), 2 * (q + kv) + b, 5 * q + 6 * kv + 3 * b)


def bfloat16(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device=device, dtype=torch.bfloat16)


def both_ways(kernel: Any, plain: Any, inputs: Any, forward: int, backward: int) -> dict[str, tuple[Any, Step, int]]:
    learned = [x.detach().requires_grad_() for x in inputs]

    def inference(path: Any) -> Any:
        def step() -> None:
            with torch.inference_mode():
                path(*inputs)

        return step

    def training(path: Any) -> Any:
        gradient = torch.ones_like(plain(*inputs))

        def step() -> None:
            torch.autograd.grad(path(*learned), learned, gradient)

        return step

    steps = {
        "forward": (inference(kernel), inference(plain), forward),
        "forward and backward": (training(kernel), training(plain), forward + backward),
    }
    for step, _, _ in steps.values():
        step.difference = difference(kernel, plain, inputs)
    return steps


def difference(kernel: Any, plain: Any, inputs: Any) -> float:
    """The largest difference of values and gradients in float32, over the largest value."""
    found = []
    for path in (kernel, plain):
        exact = [x.detach().float().requires_grad_() for x in inputs]
        out = path(*exact)
        found.append([out.detach(), *torch.autograd.grad(out, exact, torch.ones_like(out))])
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-6)) for a, b in zip(*found, strict=True))


def inference(quick: bool) -> Iterator[tuple[str, Any]]:
    """Each network at its published size, batches of 1 and 64."""
    names: tuple[str, ...] = ("cmt_ti", "mobilenetv3_large_100") if quick else CMT + OF_THE_PAPER + OF_TODAY
    for name in names:
        try:
            yield name, inference_row(name, quick)
        except (RuntimeError, TypeError, ValueError) as error:
            yield name, {"failed": str(error).splitlines()[0]}


def inference_row(name: str, quick: bool) -> dict[str, Any]:
    model = reparameterize_model(timm.create_model(name).eval()).to(device)
    size = model.pretrained_cfg["input_size"]
    row: dict[str, Any] = {"input_size": size, "parameters": sum(p.numel() for p in model.parameters())}
    for batch in (1, 4) if quick else (1, 64):
        images = bfloat16(batch, *size).contiguous(memory_format=torch.channels_last)
        steps = {"plain": replayed(inference_step(lower(model), images))}
        if name in CMT:
            exact = model.to(memory_format=torch.channels_last)
            steps["float32"] = replayed(inference_step(exact, images.float()))
            steps["fused float32"] = replayed(inference_step(fuse(model, size[1:], packed=False), images.float()))
            fused = fuse(model, size[1:], torch.bfloat16, packed=False)
            steps["fused"] = replayed(inference_step(fused, images))
        if name == "cmt_s":
            steps["launched"] = inference_step(lower(model), images)
            with use_kernels("on"):
                steps["kernels"] = replayed(inference_step(accelerate(lower(model)), images))
        row[f"batch {batch}"] = spreads(interleaved(steps, 1 if quick else 5, 0.05))
    return row


def lower(model: torch.nn.Module) -> torch.nn.Module:
    """A copy in bfloat16, channels-last."""
    return copy.deepcopy(model).to(dtype=torch.bfloat16, memory_format=torch.channels_last)


def inference_step(model: torch.nn.Module, images: torch.Tensor) -> Step:
    def step() -> None:
        with torch.inference_mode():
            model(images)

    return step


def training(quick: bool) -> Iterator[tuple[str, Any]]:
    """A step of AdamW, launched and replayed."""
    names = ("cmt_s", "cmt_ti", "cmt_b", "deit_small_patch16_224", "swin_tiny_patch4_window7_224")
    if quick:
        names = ("cmt_nano",) if device == "cpu" else ("cmt_nano", "cmt_ti")
    batch = (4 if device == "cuda" else 2) if quick else 128
    for name in names:
        steps: dict[str, Step] = {}
        for mode in ("off", "on") if name.startswith("cmt") else ("off",):
            with use_kernels(mode):
                steps[f"{mode} launched"] = with_kernels(mode, training_step(name, batch))
                steps[f"{mode} replayed"] = replayed(with_kernels(mode, training_step(name, batch)))
        if name in ("cmt_s", "cmt_nano"):
            steps["off replayed float32"] = replayed(with_kernels("off", training_step(name, batch, bf16=False)))
        yield f"{name} batch {batch}", spreads(interleaved(steps, 1 if quick else 5, 0.2))


def compiled(quick: bool) -> Iterator[tuple[str, Any]]:
    """A training step under torch.compile, replayed, kernels off and on."""
    name, batch = ("cmt_nano", 4) if quick else ("cmt_s", 128)
    for mode in ("off", "on"):
        with use_kernels(mode):
            step = replayed(training_step(name, batch, torch.compile))
            yield f"{name} batch {batch} {mode}", spreads(interleaved({"step": step}, 1 if quick else 5, 0.2))
        torch.compiler.reset()


def with_kernels(mode: str, step: Step) -> Step:
    def run() -> None:
        with use_kernels(mode):
            step()

    return run


def training_step(name: str, batch: int, wrap: Any = None, bf16: bool = True) -> Step:
    model: Any = timm.create_model(name)
    if name.startswith("cmt"):
        model = accelerate(model)
    model = model.to(device).to(memory_format=torch.channels_last).train()
    size = model.pretrained_cfg["input_size"]
    images = torch.randn(batch, *size, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 1000, (batch,), device=device)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True, capturable=device == "cuda")
    run = wrap(model, dynamic=False) if wrap is not None else model

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=bf16, cache_enabled=False):
            logits = run(images)
        loss = F.cross_entropy(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


@cache
def copy_rate() -> float:
    """Bytes read and written per second by a copy of 1 GiB; in a rehearsal of 1 MiB."""
    source = torch.empty(2**30 if device == "cuda" else 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / statistics.median(interleaved({"copy": lambda: target.copy_(source)}, 5, 0.05)["copy"])


def interleaved(steps: dict[str, Step], rounds: int, seconds_a_round: float) -> dict[str, list[float]]:
    """Wall seconds of a step, all steps in turn in each round; in a rehearsal of one pass."""
    if device == "cpu":
        return {name: [seconds(step, 1)] for name, step in steps.items()}
    for step in steps.values():
        for _ in range(3):
            step()
    counts = {name: max(2, int(seconds_a_round / seconds(step, 2))) for name, step in steps.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            times[name].append(seconds(step, counts[name]))
    return times


def seconds(step: Step, count: int) -> float:
    finish()
    begun = time.perf_counter()
    for _ in range(count):
        step()
    finish()
    return (time.perf_counter() - begun) / count


def finish() -> None:
    """Wait for the GPU."""
    if device == "cuda":
        torch.cuda.synchronize()


def spreads(times: dict[str, list[float]]) -> dict[str, Any]:
    return {
        name: {"median_seconds": statistics.median(values), "min_seconds": min(values), "max_seconds": max(values)}
        for name, values in times.items()
    }


def shortly(row: Any) -> str:
    """Medians in milliseconds, for whoever watches."""
    if not isinstance(row, dict):
        return ""
    if "median_seconds" in row:
        return f"{row['median_seconds'] * 1e3:.3f} ms"
    return ", ".join(f"{key} {text}" for key, value in row.items() if (text := shortly(value)))


if __name__ == "__main__":
    main()
