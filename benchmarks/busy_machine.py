"""Measure how a busy machine slows training and prediction: python benchmarks/busy_machine.py [--quick] [--out NAME].

Writes records/busy-NAME.json: images/s of every way for OpenMP's threads to wait for work, idle and beside other work.

- training: steps of cmt_ti, 96 px, batch 32, from a loader of JPEG files, as ``cmtvision train`` makes them.
- torch: ``Predictor.predict`` of 16 files by the same network.

Each way is a process of its own, since OpenMP reads its settings once. They take turns; the rows of one round were
measured one after another. The other work is a busy loop of Python.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from record import write_record

from cmtvision.machine import SPIN, usable_processors

SIDE, BATCH, FILES, ROUNDS = 96, 32, 16, 5
SECONDS, AT_LEAST = 2.0, 1  # of a turn, and steps
WAYS: dict[str, dict[str, str]] = {
    "GNU's default": {},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "spin 20000": {"GOMP_SPINCOUNT": "20000"},
    f"spin {SPIN}": {"GOMP_SPINCOUNT": SPIN},
}
OURS = f"spin {SPIN}"
JOBS = {"training": list(WAYS), "torch": ["GNU's default", OURS]}
LOADS = ("idle", "busy loop")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--out", default="cpu", help="name of the record")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        answer(*args.worker)
        return
    rounds = 1 if args.quick else ROUNDS
    with tempfile.TemporaryDirectory() as temporary:
        make_files(Path(temporary))
        rows = [row for job, ways in JOBS.items() for row in measure(job, ways, Path(temporary), rounds)]
    content = {"processors": usable_processors(), "rounds": rounds, "pixels": SIDE, "batch": BATCH, "rows": rows}
    write_record(f"busy-{args.out}", "python benchmarks/busy_machine.py", content)


def make_files(folder: Path) -> None:
    """Photos, and a network with random weights."""
    import timm
    from photo_folder import write_photos

    from cmtvision.artefact import Artefact
    from cmtvision.artefact.files import write_artefact
    from cmtvision.data import Preprocess

    write_photos(folder / "photos", 4 * BATCH)
    contract = Preprocess((SIDE, SIDE), 0.9, "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    network = timm.create_model("cmt_ti", num_classes=10, img_size=SIDE).eval()
    artefact = Artefact("cmt_ti", {"img_size": SIDE}, [str(i) for i in range(10)], contract, model=network)
    write_artefact(folder / "torch", artefact)


def measure(job: str, ways: list[str], folder: Path, rounds: int) -> Iterator[dict[str, Any]]:
    """Rows of one job: images/s of each way beside each load, medians over rounds."""
    workers = {way: Worker(job, folder, WAYS[way]) for way in ways}
    found: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        for load in LOADS:
            for way, worker in workers.items():
                with beside(load):
                    found.setdefault((way, load), []).append(worker.turn())
    for worker in workers.values():
        worker.close()
    for (way, load), rates in found.items():
        row = {"job": job, "threads wait": way, "beside": load, "images_per_second": statistics.median(rates)}
        print(row, flush=True)
        yield {**row, "min": min(rates), "max": max(rates)}


class Worker:
    """A process that measures when it is asked to."""

    def __init__(self, job: str, folder: Path, environment: dict[str, str]) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
        command = [sys.executable, "-W", "ignore", __file__, "--worker", job, str(folder)]
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, text=True, env={**inherited, **environment}, **pipes)
        self._read()

    def turn(self) -> float:
        """Images/s of one turn."""
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> float:
        return float(json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@contextmanager
def beside(load: str) -> Iterator[None]:
    """Some other work, for as long as the block takes."""
    if load != "busy loop":
        yield
        return
    loop = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    time.sleep(0.2)
    try:
        yield
    finally:
        loop.kill()
        loop.wait()


def answer(job: str, folder: str) -> None:
    """Be a worker: a turn for each line, until the input ends."""
    step = training(Path(folder)) if job == "training" else prediction(Path(folder), job)
    step()  # compiles, allocates, fills caches
    print("0", flush=True)
    for _ in sys.stdin:
        begun, images, steps = time.perf_counter(), 0, 0
        while steps < AT_LEAST or time.perf_counter() - begun < SECONDS:
            images, steps = images + step(), steps + 1
        print(images / (time.perf_counter() - begun), flush=True)


def training(folder: Path) -> Callable[[], int]:
    """A step as the engine makes it; what is returned gives the images of a step."""
    import timm
    import torch
    import torch.nn.functional as F

    from cmtvision.data import Preprocess, read_dataset
    from cmtvision.engine.loaders import train_loader
    from cmtvision.engine.optim import build_optimizer
    from cmtvision.recipe import Recipe

    recipe = Recipe.model_validate({"data": {"val_fraction": 0.0}})
    contract = Preprocess((SIDE, SIDE), 0.9, "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    loader = train_loader(read_dataset(folder / "photos", val_fraction=0.0), contract, recipe, BATCH)
    model = timm.create_model("cmt_ti", num_classes=2, img_size=SIDE).train().to(memory_format=torch.channels_last)
    optimizer = build_optimizer(model, recipe, 1e-4, torch.device("cpu"))

    def batches() -> Iterator[Any]:
        while True:
            yield from loader

    stream = batches()

    def step() -> int:
        images, labels, _ = next(stream)
        loss = F.cross_entropy(model(images.contiguous(memory_format=torch.channels_last)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return len(images)

    return step


def prediction(folder: Path, runtime: str) -> Callable[[], int]:
    """Files as ``cmtvision predict`` takes them."""
    import cmtvision
    from cmtvision.data.listing.class_folders import images_below

    predictor = cmtvision.load(folder / runtime, device="cpu")
    files = images_below(folder / "photos")[:FILES]

    return lambda: len(predictor.predict(files))


if __name__ == "__main__":
    main()
