"""Measure everything on this machine in under ten minutes: python benchmarks/run_all.py [--quick] [--out NAME].

Writes records/models.json (parameters, GMACs) and records/speed-NAME.json: start-up times, images/s of a training
step and of inference for every network, plain NCHW beside channels-last in interleaved rounds (medians and spread), and
peak memory at 800 x 1216. With a GPU the same under bf16 autocast there. Then throughput.py: training step and loader
on the CPU beside plain ones.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from record import cmtvision, write_record

import cmtvision as package  # noqa: F401  # registers the models

ROUNDS = 5
SECONDS_PER_ROUND = 0.6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the two smallest networks, one round")
    parser.add_argument("--out", default="cpu", help="name of the speed record")
    args = parser.parse_args()
    names = ["cmt_nano", "cmt_ti"] if args.quick else ["cmt_nano", "cmt_ti", "cmt_xs", "cmt_s", "cmt_b"]
    rounds = 1 if args.quick else ROUNDS
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not args.quick:
        write_record("models", "cmtvision models --json", {"models": json.loads(cmtvision("models", "--json"))})
    content: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "start_up_seconds": start_up(rounds),
        "inference": {name: inference(name, device, rounds) for name in names},
        "training_step": {name: training(name, device, rounds) for name in names[:2]},
    }
    if not args.quick:
        content["peak_memory_800x1216_gb"] = {"cmt_s": peak_memory("cmt_s")}
    write_record(f"speed-{args.out}", "python benchmarks/run_all.py", content)
    script = Path(__file__).with_name("throughput.py")
    subprocess.run([sys.executable, script, "--out", args.out, *(["--quick"] if args.quick else [])], check=True)


def start_up(rounds: int) -> dict[str, Any]:
    """Seconds of wall time of whole processes, interleaved."""
    commands = {
        "cmtvision --help": [sys.executable, "-m", "cmtvision", "--help"],
        "import torch, timm": [sys.executable, "-c", "import torch, timm"],
        "import torch, timm, cmtvision": [sys.executable, "-c", "import torch, timm, cmtvision"],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for counted in range(rounds + 1):
        for name, command in commands.items():
            begun = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            if counted:
                times[name].append(time.perf_counter() - begun)
    return {name: spread(values) for name, values in times.items()}


def inference(name: str, device: torch.device, rounds: int) -> dict[str, Any]:
    """Images per second at batch 1 and 8, plain NCHW beside channels-last."""
    side = timm.get_pretrained_cfg(name).input_size[-1]
    steps: dict[str, tuple[Callable[[], Any], int]] = {}
    for layout, memory_format in (("nchw", torch.contiguous_format), ("channels_last", torch.channels_last)):
        model = timm.create_model(name).eval().to(device).to(memory_format=memory_format)
        for batch in (1, 8):
            images = torch.randn(batch, 3, side, side, device=device).contiguous(memory_format=memory_format)
            steps[f"{layout} batch {batch}"] = (lambda m=model, x=images: forward(m, x), batch)
    return interleaved(steps, device, rounds)


def forward(model: torch.nn.Module, images: torch.Tensor) -> None:
    with torch.inference_mode(), autocast(images.device):
        model(images)


def training(name: str, device: torch.device, rounds: int) -> dict[str, Any]:
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
    return interleaved(steps, device, rounds)


def train_step(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor, labels: torch.Tensor
) -> None:
    with autocast(images.device):
        loss = torch.nn.functional.cross_entropy(model(images).float(), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def autocast(device: torch.device) -> Any:
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def interleaved(
    steps: dict[str, tuple[Callable[[], Any], int]], device: torch.device, rounds: int
) -> dict[str, dict[str, float]]:
    """Images per second of each step, all steps in turn in each round."""
    rates: dict[str, list[float]] = {name: [] for name in steps}
    for step, _ in steps.values():
        step()
    for _ in range(rounds):
        for name, (step, batch) in steps.items():
            count, begun = 0, time.perf_counter()
            while count < 2 or time.perf_counter() - begun < SECONDS_PER_ROUND:
                step()
                count += 1
                if device.type == "cuda":
                    torch.cuda.synchronize()
            rates[name].append(count * batch / (time.perf_counter() - begun))
    return {name: spread(values) for name, values in rates.items()}


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


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
