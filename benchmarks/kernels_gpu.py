"""Measure the Triton kernels on a GPU: python benchmarks/kernels_gpu.py [--quick] [--compile] [--out NAME].

Writes records/kernels-NAME.json, kernel beside plain path in interleaved rounds of one run (medians and extremes):

- kernels: each shape of cmt_s at 224 px (the LPU's map, the IRFFN's, the attention of each stage) in bfloat16, forward
  and with backward; bytes that must be read and written at least, over time, as a share of what a copy reaches.
- network: a whole cmt_s, channels-last, bfloat16 autocast: a training step and inference with kernels "off", "on" and
  "auto"; --compile adds torch.compile with "off" and "on".
- choices: what "auto" took, and the two times it measured.

Without a GPU it says so and writes nothing.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import timm
import torch
import torch.nn.functional as F
from record import write_record

import cmtvision  # noqa: F401  # registers the models
from cmtvision.models.kernels import choices, use_kernels

SECONDS_A_ROUND = 0.2
STAGES = ((64, 1, 56), (128, 2, 28), (256, 4, 14), (512, 8, 7))  # channels, heads, side of the map
KEYS, RATIO = 49, 4
Step = Callable[[], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round, small batches, the first and last stage")
    parser.add_argument("--compile", action="store_true", help="measure torch.compile too, which takes minutes")
    parser.add_argument("--out", default="gpu", help="name of the record")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA GPU here: the kernels are not measured")
        return
    rounds, batch = (1, 8) if args.quick else (7, 64)
    stages = (STAGES[0], STAGES[-1]) if args.quick else STAGES
    copy = copy_rate()
    content = {
        "device": torch.cuda.get_device_name(),
        "rounds": rounds,
        "batch": batch,
        "copy_bytes_per_second": copy,
        "kernels": {name: compared(row, rounds, copy) for name, row in kernel_rows(stages, batch).items()},
        "network": {
            f"{name} batch {size}": network(name, size, rounds, args.compile) for name, size in networks(batch)
        },
        "choices": [{"key": [str(part) for part in key], **vars(choice)} for key, choice in choices().items()],
    }
    write_record(f"kernels-{args.out}", "python benchmarks/kernels_gpu.py", content)


def networks(batch: int) -> list[tuple[str, int]]:
    return [("training_step", batch), ("inference", 1), ("inference", batch)]


def kernel_rows(stages: Any, batch: int) -> dict[str, tuple[Step, Step, int]]:
    """(kernel, plain path, bytes that must move) of each operation."""
    rows: dict[str, tuple[Step, Step, int]] = {}
    for channels, heads, side in stages:
        for part, width, gelu in (("lpu", channels, False), ("irffn", RATIO * channels, True)):
            name = f"{part} {width}x{side}x{side}"
            rows |= {f"{name} {way}": row for way, row in depthwise_rows(batch, width, side, gelu).items()}
        name = f"attention {heads}x{side * side}x{KEYS}"
        rows |= {f"{name} {way}": row for way, row in attention_rows(batch, heads, side * side, channels).items()}
    return rows


def depthwise_rows(batch: int, channels: int, side: int, gelu: bool) -> dict[str, tuple[Step, Step, int]]:
    from cmtvision.models.kernels.depthwise import depthwise

    x = bfloat16(batch, channels, side, side).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(channels, 1, 3, 3, device="cuda"), torch.randn(channels, device="cuda")

    def plain(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        z = F.conv2d(x, weight.to(x.dtype), bias.to(x.dtype), padding=1, groups=channels) + x
        return F.gelu(z) if gelu else z

    def kernel(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return depthwise(x, weight, bias, gelu=gelu)

    least = x.numel() * x.element_size()
    return both_ways(kernel, plain, (x, weight, bias), 2 * least, 5 * least)


def attention_rows(batch: int, heads: int, queries: int, channels: int) -> dict[str, tuple[Step, Step, int]]:
    from cmtvision.models.kernels.attention import attention

    tokens = [bfloat16(batch, n, heads, channels // heads).transpose(1, 2) for n in (queries, KEYS, KEYS)]
    bias = torch.randn(1, heads, queries, KEYS, device="cuda")

    def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))

    q, kv, b = (v.numel() * v.element_size() for v in (tokens[0], tokens[1], bias))
    return both_ways(attention, plain, (*tokens, bias), 2 * (q + kv) + b, 5 * q + 6 * kv + 3 * b)


def bfloat16(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def both_ways(kernel: Any, plain: Any, inputs: Any, forward: int, backward: int) -> dict[str, tuple[Step, Step, int]]:
    learned = [x.detach().requires_grad_() for x in inputs]

    def inference(path: Any) -> Step:
        def step() -> None:
            with torch.inference_mode():
                path(*inputs)

        return step

    def training(path: Any) -> Step:
        gradient = torch.ones_like(plain(*inputs))
        return lambda: torch.autograd.grad(path(*learned), learned, gradient)

    return {
        "forward": (inference(kernel), inference(plain), forward),
        "forward and backward": (training(kernel), training(plain), forward + backward),
    }


def compared(row: tuple[Step, Step, int], rounds: int, copy: float) -> dict[str, Any]:
    kernel, plain, moved = row
    times = interleaved({"kernel": kernel, "plain": plain}, rounds)
    return ratios(times, "plain") | {"share_of_copy_rate": moved / statistics.median(times["kernel"]) / copy}


def network(name: str, batch: int, rounds: int, compiled: bool) -> dict[str, Any]:
    """Seconds of a step of cmt_s, and how many times as fast as with kernels off."""
    images = torch.randn(batch, 3, 224, 224, device="cuda").contiguous(memory_format=torch.channels_last)
    steps: dict[str, Step] = {}
    for compile_it in (False, True) if compiled else (False,):
        for mode in ("off", "on") if compile_it else ("off", "on", "auto"):
            model = timm.create_model("cmt_s").cuda().to(memory_format=torch.channels_last)
            step = (train_step if name == "training_step" else inference_step)(model, images, compile_it)
            steps[f"{mode} compiled" if compile_it else mode] = with_kernels(mode, step)
    return {"batch": batch, "rows": ratios(interleaved(steps, rounds), "off")}


def with_kernels(mode: str, step: Step) -> Step:
    def run() -> None:
        with use_kernels(mode):
            step()

    return run


def train_step(model: torch.nn.Module, images: torch.Tensor, compiled: bool) -> Step:
    optimizer = torch.optim.AdamW(model.train().parameters(), fused=True)
    labels = torch.randint(0, 1000, (len(images),), device="cuda")
    run = torch.compile(model, dynamic=False) if compiled else model

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            logits = run(images)
        loss = F.cross_entropy(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def inference_step(model: torch.nn.Module, images: torch.Tensor, compiled: bool) -> Step:
    run = torch.compile(model.eval(), dynamic=False) if compiled else model.eval()

    def step() -> None:
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
            run(images)

    return step


def copy_rate() -> float:
    """Bytes read and written per second by a copy of 1 GiB."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * 2**30 / statistics.median(interleaved({"copy": lambda: target.copy_(source)}, 5)["copy"])


def interleaved(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Wall seconds of a step, launches included, all steps in turn in each round."""
    for step in steps.values():
        for _ in range(3):  # kernels are compiled, tuned and chosen here
            step()
    counts = {name: max(2, int(SECONDS_A_ROUND / seconds(step, 2))) for name, step in steps.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            times[name].append(seconds(step, counts[name]))
    return times


def seconds(step: Step, count: int) -> float:
    torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(count):
        step()
    torch.cuda.synchronize()
    return (time.perf_counter() - begun) / count


def ratios(times: dict[str, list[float]], base: str) -> dict[str, Any]:
    return {
        name: {
            "median_seconds": statistics.median(values),
            "min_seconds": min(values),
            "max_seconds": max(values),
            "speedup": statistics.median(times[base]) / statistics.median(values),
        }
        for name, values in times.items()
    }


if __name__ == "__main__":
    main()
