"""Measure training speed on this machine in a few minutes: python benchmarks/throughput.py [--quick] [--compile].

Writes records/throughput-NAME.json, every ratio from one run, medians of interleaved rounds:

- training_step: cmt_ti, 160 px, batch 16: the plain step (NCHW, eager, float32, an optimiser that is not fused, and
  the network as the paper writes it) beside what ``cmtvision train`` does, in float32 and under bfloat16 autocast;
  --compile adds train.compile with its compile time.
- loader: photos/s of one loader process from a folder of JPEG files, from shards of the same files, and from shards
  written with --short-side 256, beside torchvision's ImageFolder in a DataLoader with the same random changes.
- waiting: the share of training time that ``cmtvision.fit`` waits for data, from the JPEG folder.
"""

import argparse
import csv
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from photo_folder import write_photos
from record import write_record
from timm.data.transforms_factory import transforms_imagenet_train
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

import cmtvision
from cmtvision.data import DatasetIndex, Preprocess, read_dataset
from cmtvision.data.shards.shard_writer import write_shards
from cmtvision.data.training.augment import allow_no_bits
from cmtvision.engine.loaders import train_loader
from cmtvision.engine.optim import build_optimizer
from cmtvision.models.accelerate import accelerate
from cmtvision.recipe import Recipe

SIDE, BATCH, CLASSES = 160, 16, 1000
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ROUNDS = 5
NUM_PHOTOS = 608
LOADER_BATCH = 32
SHORT_SIDE = 256
FIT_STEPS = 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round, few photos")
    parser.add_argument("--compile", action="store_true", help="measure train.compile too, which takes minutes")
    parser.add_argument("--out", default="cpu", help="name of the record")
    args = parser.parse_args()
    rounds = 1 if args.quick else ROUNDS
    content: dict[str, Any] = {"threads": torch.get_num_threads(), "rounds": rounds}
    content["training_step"] = training_step(rounds, args.compile)
    with tempfile.TemporaryDirectory() as temporary:
        folder = write_photos(Path(temporary) / "photos", 64 if args.quick else NUM_PHOTOS)
        content["loader"] = loader(folder, Path(temporary) / "shards", rounds)
        content["waiting"] = waiting(folder, Path(temporary) / "run", 4 if args.quick else FIT_STEPS)
    write_record(f"throughput-{args.out}", "python benchmarks/throughput.py", content)


def training_step(rounds: int, compiled: bool) -> dict[str, Any]:
    """Seconds of one step, and how many times as fast as the plain one."""
    rows = {"plain": plain_step(), "fp32": our_step(False), "bf16": our_step(True)}
    if compiled:
        rows |= {"fp32 compiled": our_step(False, compiled=True), "bf16 compiled": our_step(True, compiled=True)}
    first: dict[str, float] = {}
    for name, step in rows.items():
        first[name] = seconds(step)
        step()
    times: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(rounds):
        for name, step in rows.items():
            times[name].append(min(seconds(step), seconds(step)))
    result = compared(times, "plain")
    for name in result:
        if "compiled" in name:
            result[name]["first_step_seconds"] = first[name]
    shares = {"fp32": where_time_goes(False), "bf16": where_time_goes(True)}
    return {"model": "cmt_ti", "pixels": SIDE, "batch": BATCH, "rows": result, "shares": shares}


PARTS = {
    "convolutions and matrix products": ("convolution", "::mm", "addmm", "bmm"),
    "native loops": ("_InsideIRFFN", "_LayerNorm", "_Attention"),
    "batch norm and GELU elsewhere": ("batch_norm", "gelu"),
    "additions, copies, casts": ("::add", "::copy_", "::mul", "::sum"),
}


def where_time_goes(bf16: bool) -> dict[str, float]:
    """Shares of our step's time, as PyTorch's profiler sees it."""
    step = our_step(bf16)
    for _ in range(2):
        step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(3):
            step()
    times = {event.key: float(event.self_cpu_time_total) for event in profile.key_averages()}
    total = sum(times.values())
    shares = dict.fromkeys(PARTS, 0.0)
    for key, taken in times.items():
        part = next((name for name, words in PARTS.items() if any(word in key for word in words)), None)
        if part is not None:
            shares[part] += taken / total
    return shares | {"everything else": 1 - sum(shares.values())}


def plain_step() -> Callable[[], None]:
    """A training step without any of what this package does for speed."""
    model = timm.create_model("cmt_ti", drop_path_rate=0.1).train()
    optimizer = torch.optim.AdamW(model.parameters())
    images, labels = batch()

    def step() -> None:
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def our_network() -> nn.Module:
    """The network as the engine trains it: faster modules, channels-last."""
    model = accelerate(timm.create_model("cmt_ti", drop_path_rate=0.1))
    return model.train().to(memory_format=torch.channels_last)


def our_step(bf16: bool, compiled: bool = False, network: nn.Module | None = None) -> Callable[[], None]:
    """The step of the engine: its network, its optimiser, its autocast."""
    model = our_network() if network is None else network
    optimizer = build_optimizer(model, Recipe(), 1e-4, torch.device("cpu"))
    run = torch.compile(model, dynamic=False) if compiled else model
    images, labels = batch()

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = run(images.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(BATCH, 3, SIDE, SIDE), torch.randint(0, CLASSES, (BATCH,))


def loader(folder: Path, shards: Path, rounds: int) -> dict[str, Any]:
    """Seconds of one photo, and how many times as fast as torchvision."""
    index = read_dataset(folder, val_fraction=0.0)
    write_shards(index, shards)
    write_shards(index, small := shards.with_name("small"), short_side=SHORT_SIDE)
    loaders: dict[str, DataLoader[Any]] = {
        "torchvision folder": torchvision_loader(folder),
        "folder": our_loader(index),
        "shards": our_loader(read_dataset(shards, val_fraction=0.0)),
        f"shards --short-side {SHORT_SIDE}": our_loader(read_dataset(small, val_fraction=0.0)),
    }
    times: dict[str, list[float]] = {name: [] for name in loaders}
    for counted in range(rounds + 1):
        for name, photos in loaders.items():
            taken = epoch_seconds(photos)
            if counted:
                times[name].append(taken / (len(photos) * LOADER_BATCH))
    result = compared(times, "torchvision folder")
    for row in result.values():
        row["photos_per_second"] = 1 / row["median_seconds"]
    return {"pixels": SIDE, "batch": LOADER_BATCH, "workers": 1, "photos": len(index.train), "rows": result}


def torchvision_loader(folder: Path) -> DataLoader[Any]:
    changes = transforms_imagenet_train(
        SIDE, hflip=0.5, auto_augment="rand-m9-mstd0.5-inc1", interpolation="bicubic", mean=MEAN, std=STD,
        color_jitter=None, re_prob=0.25, re_mode="pixel", re_count=1,
    )  # type: ignore[arg-type]  # fmt: skip
    allow_no_bits(changes)  # or a rare draw ends the run with Pillow 13
    photos = ImageFolder(str(folder), changes)
    return DataLoader(photos, LOADER_BATCH, shuffle=True, num_workers=1, drop_last=True, persistent_workers=True)


def our_loader(index: DatasetIndex) -> DataLoader[Any]:
    recipe = Recipe.model_validate({"data": {"workers": 1, "val_fraction": 0.0}})
    return train_loader(index, Preprocess((SIDE, SIDE), 0.875, "bicubic", MEAN, STD), recipe, LOADER_BATCH)


def epoch_seconds(photos: DataLoader[Any]) -> float:
    """A whole epoch of a loader process that is already there, its reading ahead included."""
    begun = time.perf_counter()
    for _ in photos:
        pass
    return time.perf_counter() - begun


def waiting(folder: Path, out: Path, steps: int) -> dict[str, Any]:
    """What metrics.csv says of a short run."""
    recipe = Recipe.model_validate({
        "model": {"name": "cmt_ti", "img_size": SIDE},
        "data": {"val_fraction": 0.0},
        "schedule": {"epochs": 1, "warmup_epochs": 0},
        "ema": {"enabled": False},
        "train": {"batch_size": BATCH, "precision": "fp32", "max_steps": steps, "device": "cpu", "loggers": ()},
    })  # fmt: skip
    cmtvision.fit(recipe, folder, out)
    with (out / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {"steps": steps, "batch": BATCH, "data_wait": [float(row["data_wait"]) for row in rows]}


def seconds(step: Callable[[], None]) -> float:
    begun = time.perf_counter()
    step()
    return time.perf_counter() - begun


def compared(times: dict[str, list[float]], base: str) -> dict[str, dict[str, float]]:
    """Median and extremes of each row; its speed over the base row's, and the extremes of that round by round."""
    rows = {}
    for name, values in times.items():
        ratios = [other / own for other, own in zip(times[base], values, strict=True)]
        rows[name] = {
            "median_seconds": statistics.median(values),
            "min_seconds": min(values),
            "max_seconds": max(values),
            "speedup": statistics.median(times[base]) / statistics.median(values),
            "speedup_min": min(ratios),
            "speedup_max": max(ratios),
        }
    return rows


if __name__ == "__main__":
    main()
