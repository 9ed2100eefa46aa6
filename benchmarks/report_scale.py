"""The report of a run with 1,000 classes and 50,000 images: time, size and memory.

    python benchmarks/report_scale.py FOLDER [--classes 1000] [--images 50000]

Writes into FOLDER a run with an untrained network, and synthetic answers to images that are links to a few hundred
JPEGs; then makes the page with the code that ``cmtvision report`` runs after predicting, and records what that costs.
"""

import argparse
import csv
import json
import os
import resource
import time
from pathlib import Path

import numpy as np
from PIL import Image
from record import write_record

from cmtvision.artefact import Artefact, Predictor, load, write_artefact
from cmtvision.artefact.confusion import Confusion
from cmtvision.artefact.run.read import read_run
from cmtvision.data import DatasetIndex, Preprocess, Sample
from cmtvision.engine.evaluation.evaluate import Evaluation, PhotoResult
from cmtvision.models import create_model
from cmtvision.report.whole_page import Options, whole_page

FILES = 200
GROUP = 10  # classes that look alike


def write_images(root: Path, images: int, rng: np.random.Generator) -> list[Path]:
    """Links to FILES pictures of 320 x 240 px."""
    (root / "pictures").mkdir(parents=True)
    for number in range(FILES):
        small = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(small).resize((320, 240), Image.Resampling.BICUBIC).save(root / f"pictures/{number}.jpg")
    paths = []
    for number in range(images):
        path = root / f"val/{number // 1000:03}/{number:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(root / f"pictures/{number % FILES}.jpg", path)
        paths.append(path)
    return paths


def write_run(run: Path, data: Path, classes: list[str], names: list[str], labels: list[int]) -> Predictor:
    model = create_model("cmt_nano", num_classes=len(classes), img_size=64)
    preprocess = Preprocess((64, 64), 1.0, "bicubic", (0.5,) * 3, (0.5,) * 3)
    write_artefact(run, Artefact("cmt_nano", {"img_size": 64}, classes, preprocess, model=model))
    (run / "recipe.yaml").write_text("name: scale\n")
    facts = {"data": str(data), "root": str(data), "split_source": "folders", "num_val": len(names)}
    (run / "run.json").write_text(json.dumps({**facts, "classes": classes}))
    with (run / "split.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        writer.writerows([name, classes[label], "val"] for name, label in zip(names, labels, strict=True))
    with (run / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["epoch", "lr", "train_loss", "val_loss", "val_top1", "seconds"])
        writer.writerows([e, 1e-3 / (e + 1), 6 / (e + 1), 5 / (e + 1), 1 - 1 / (e + 2), 60 * e] for e in range(300))
    return load(run)


def synthetic(paths: list[Path], labels: np.ndarray, classes: list[str], rng: np.random.Generator) -> Evaluation:
    """Three quarters right; most mistakes within a group of GROUP classes."""
    count = len(labels)
    near = labels // GROUP * GROUP + rng.integers(0, GROUP, count)
    anywhere = rng.integers(0, len(classes), count)
    drawn = rng.random(count)
    said = np.where(drawn < 0.75, labels, np.where(drawn < 0.95, near, anywhere)).clip(0, len(classes) - 1)
    sure = rng.beta(5, 1.5, count).clip(0.01, 0.999)
    own = np.where(said == labels, sure, (1 - sure) * rng.random(count))
    margin, in_five = sure * rng.random(count), (said == labels) | (rng.random(count) < 0.7)
    counts = Confusion.of(labels, said, len(classes))
    columns = (labels, said, sure, own, margin, in_five)
    rows = [PhotoResult(path, *one) for path, *one in zip(paths, *(column.tolist() for column in columns), strict=True)]
    right = int((said == labels).sum())
    return Evaluation(classes, "val", count, right, int(in_five.sum()), 1.0, counts, rows)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--images", type=int, default=50_000)
    asked = parser.parse_args()
    rng = np.random.default_rng(0)
    classes = [f"class {number:04} of group {number // GROUP:03}" for number in range(asked.classes)]
    paths = write_images(asked.folder / "data", asked.images, rng)
    labels = rng.integers(0, len(classes), len(paths))
    names = [path.relative_to(asked.folder / "data").as_posix() for path in paths]
    predictor = write_run(asked.folder / "run", asked.folder / "data", classes, names, labels.tolist())
    evaluation = synthetic(paths, labels, classes, rng)
    samples = [Sample(path, label) for path, label in zip(paths, labels.tolist(), strict=True)]
    index = DatasetIndex(asked.folder / "data", classes, [], samples, [], "", "folders")
    run = read_run(asked.folder / "run")
    # in kilobytes; what the page adds to the network, the answers and the lists of images
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun, computed = time.perf_counter(), time.process_time()
    page, _, _ = whole_page(run, predictor, evaluation, index, Options())
    seconds, computed = time.perf_counter() - begun, time.process_time() - computed
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    file = asked.folder / "report.html"
    file.write_text(page, encoding="utf-8")
    content = {
        "classes": len(classes),
        "images": len(paths),
        "seconds": round(seconds, 1),
        "processor_seconds": round(computed, 1),
        "bytes": file.stat().st_size,
        "peak_memory_mb": round(peak / 1024),
        "peak_memory_before_mb": round(before / 1024),
        "load_average": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(content, indent=1))
    write_record("report-scale", "python benchmarks/report_scale.py FOLDER", content)


if __name__ == "__main__":
    main()
