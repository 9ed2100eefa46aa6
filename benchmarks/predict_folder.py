"""Predict a folder of photos, as a person does it: how long it takes, and how near that is to what the parts allow.

    python benchmarks/predict_folder.py --work DIR [--before SRC] [--photos 3000] [--rounds 5]

The network is cmt_ti at 96 px with weights of a few steps; the photos are JPEG, 500 x 375 px, made of the bundled ones.
In each round ``cmtvision predict RUN PHOTOS --csv`` runs once with this version and, where SRC is the src folder of
another, once with that; then with one photo, which is the time to start. The parts are measured in the same rounds: how
many photos a second all threads open, resize and crop, and how many the network computes, in batches of 32. The two
together are the limit, as both want all processors. The record is benchmarks/records/predict-folder.json.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from photo_folder import write_photos
from record import cmtvision, write_record

OWN = Path(__file__).parents[1] / "src"
BATCH = 32
PART_PHOTOS = 640


def parts(run: Path, photos: list[Path]) -> dict[str, float]:
    """Photos a second of each part of the work, alone."""
    import numpy as np

    from cmtvision import load
    from cmtvision.artefact import Predictor
    from cmtvision.data.ahead import ahead

    found: dict[str, float] = {}

    def timed(name: str, work: Any) -> Any:
        begun = time.perf_counter()
        result = work()
        found[name] = len(photos) / (time.perf_counter() - begun)
        return result

    fast, plain = load(run, "cpu"), load(run, "cpu", plain=True)
    assert isinstance(fast, Predictor)
    assert isinstance(plain, Predictor)
    pixels = timed("prepare", lambda: list(ahead(fast.inputs.prepare, photos, fast.preprocess, BATCH)))
    batches = [
        np.stack([fast.inputs.finish(one) for one in pixels[i : i + BATCH]]) for i in range(0, len(pixels), BATCH)
    ]
    for name, predictor in (("network", fast), ("plain network", plain)):
        runtime: Any = predictor.runtime
        runtime.with_features(batches[0])
        timed(name, lambda runtime=runtime: [runtime.with_features(batch) for batch in batches])
    return found


def predicted(source: Path, run: Path, photos: Path) -> tuple[float, list[list[str]]]:
    """Seconds of the command, and its rows."""
    command = [sys.executable, "-m", "cmtvision", "predict", str(run), str(photos), "--csv", "--top", "1"]
    begun = time.perf_counter()
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(source)}, check=True, capture_output=True, text=True
    )
    return time.perf_counter() - begun, list(csv.reader(done.stdout.splitlines()))[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="Folder of photos and run.")
    parser.add_argument("--before", type=Path, help="The src folder of the version to compare with.")
    parser.add_argument("--photos", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    photos, run = options.work / "photos", options.work / "run"
    if options.parts:
        print(json.dumps(parts(run, sorted(photos.rglob("*.jpg"))[:PART_PHOTOS])))
        return
    if not photos.is_dir():
        write_photos(photos, options.photos)
    if not run.is_dir():
        size = ["--set", "model.img_size=96", "--set", "train.max_steps=3"]
        cmtvision(
            "train", str(photos), "--model", "cmt_ti", "--recipe", "demo", "--epochs", "1", *size, "--out", str(run)
        )
    versions = {"this": OWN, **({} if options.before is None else {"before": options.before.resolve()})}
    seconds: dict[str, list[float]] = {name: [] for name in versions}
    starts: dict[str, list[float]] = {name: [] for name in versions}
    rates: list[dict[str, float]] = []
    rows: dict[str, list[list[str]]] = {}
    first = sorted(photos.rglob("*.jpg"))[0]
    for number in range(options.rounds):
        for name, source in versions.items():
            spent, rows[name] = predicted(source, run, photos)
            seconds[name].append(round(spent, 2))
            starts[name].append(round(predicted(source, run, first)[0], 2))
        command = [sys.executable, __file__, "--work", str(options.work), "--parts"]
        environment = {**os.environ, "PYTHONPATH": str(OWN)}
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        rates.append(json.loads(done.stdout))
        print(f"round {number + 1}: { ({name: found[-1] for name, found in seconds.items()}) }", flush=True)
    content: dict[str, Any] = {"photos": len(rows["this"]), "seconds": seconds, "start_seconds": starts}
    content["photos_per_second_of_parts"] = {
        name: round(statistics.median(one[name] for one in rates)) for name in rates[0]
    }
    limits = [len(rows["this"]) * (1 / one["prepare"] + 1 / one["network"]) for one in rates]
    pairs = list(zip(seconds["this"], starts["this"], limits, strict=True))
    content["of_the_limit"] = round(statistics.median(limit / (whole - start) for whole, start, limit in pairs), 3)
    if "before" in versions:
        together = list(zip(seconds["before"], seconds["this"], starts["before"], starts["this"], strict=True))
        content["speedup"] = round(statistics.median(old / new for old, new, _, _ in together), 2)
        content["speedup_after_the_start"] = round(
            statistics.median((old - a) / (new - b) for old, new, a, b in together), 2
        )
        both = list(zip(rows["this"], rows["before"], strict=True))
        content["other_labels"] = sum(one[:2] != other[:2] for one, other in both)
        content["largest_difference_of_probabilities"] = max(
            abs(float(one[2]) - float(other[2])) for one, other in both
        )
    write_record("predict-folder", "python benchmarks/predict_folder.py --work DIR --before SRC", content)


if __name__ == "__main__":
    main()
