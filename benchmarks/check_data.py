"""Measure what ``cmtvision check-data`` finds, and what it costs.

python benchmarks/check_data.py [--planted] [--large [--originals FOLDER]] [--tiny FOLDER] [--grocery FOLDER]
    [--threads N]

- --planted: faults in the bundled photos. 150 copies of the file itself, all held out while the original is trained
  on; 300 copies resized (0.75, 1.5 or 2 times), 300 re-encoded as JPEG (quality
  60 to 95), 300 cropped (92 to 98% of each side); a third of each held out while its original is trained on. In another
  copy 5% of the labels are changed to another class.
- --large: time and memory on the 60,000 training and 10,000 test photos of Fashion-MNIST.
- --tiny, --grocery: what is found in other photos (Tiny ImageNet's 50 classes, the Grocery Store Dataset).

Writes records/check-data.json; parts that are not measured are kept from the record that is there.
"""

import argparse
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from record import RECORDS, write_record

from cmtvision.data import write_sample_data
from cmtvision.machine import usable_processors
from cmtvision.quality.check import CheckOptions, check_data
from cmtvision.quality.findings import DataCheck

COPIES, SAME_FILES, FLIPPED, SEED = 300, 150, 0.05, 0
SHOWN = 20
PAIR_KINDS = ("leakage", "contradictory-labels", "exact-duplicates", "near-duplicates")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--planted", action="store_true")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--originals", type=Path, help="folder of Fashion-MNIST's .gz files, for --large")
    parser.add_argument("--tiny", type=Path)
    parser.add_argument("--grocery", type=Path)
    parser.add_argument("--threads", type=int, default=usable_processors())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    file = RECORDS / "check-data.json"
    parts = json.loads(file.read_text(encoding="utf-8"))["parts"] if file.is_file() else {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        # the smallest first: the peak of memory is one of the whole process
        if args.grocery is not None:
            parts["grocery"] = looked_at(args.grocery)[1]
        if args.planted:
            parts["labels"] = flipped_labels(folder / "labels")
            parts["copies"] = planted_copies(folder / "copies")
        if args.tiny is not None:
            parts["tiny-imagenet-50"] = looked_at(args.tiny)[1]
        if args.large:
            write_sample_data(folder / "full", full=True, source=args.originals)
            parts["large"] = looked_at(folder / "full")[1]
    write_record("check-data", f"python benchmarks/check_data.py {' '.join(words())}", {"parts": parts})


def words() -> list[str]:
    """The command line, without folders of this machine."""
    return [Path(word).name if "/" in word else word for word in sys.argv[1:]]


def planted_copies(folder: Path) -> dict[str, Any]:
    """Recall of planted copies, and precision of the pairs that involve one."""
    write_sample_data(folder)
    generator = np.random.default_rng(SEED)
    originals = sorted(folder.glob("train/*/*.png"))
    chosen = generator.permutation(len(originals))[: 3 * COPIES]
    same = leak_files(folder, originals, generator)
    planted: dict[frozenset[str], tuple[str, bool]] = {}
    for number, place in enumerate(chosen.tolist()):
        kind = ("resized", "re-encoded", "cropped")[number % 3]
        part = "val" if number // 3 % 3 == 0 else "train"
        original = originals[place]
        copy = folder / part / original.parent.name / f"copy-{number:04d}{'.jpg' if kind == 're-encoded' else '.png'}"
        write_copy(Image.open(original), kind, generator, copy)
        names = frozenset(str(file.relative_to(folder)) for file in (original, copy))
        planted[names] = (kind, part == "val")
    check, facts = looked_at(folder)
    found = {frozenset(map(plain, pair)) for pair in pairs_of(check)}
    found = {pair for pair in found if len(pair) > 1}
    natural = [pair for pair in found if not any("copy-" in name for name in pair)]
    with_copy = {pair for pair in found if any("copy-" in name for name in pair)}
    # a copy of an image that has a real near copy in the data is a copy of that one, too
    related = {name: pair for pair in natural for name in pair}
    wrong = [pair for pair in with_copy - planted.keys() if not _explained(pair, planted, related)]
    rows = {
        kind: {
            "planted": sum(one == kind for one, _ in planted.values()),
            "found": sum(one == kind for pair, (one, _) in planted.items() if pair in found),
        }
        for kind in ("resized", "re-encoded", "cropped")
    }
    leaks = [pair for pair, (_, leaked) in planted.items() if leaked]
    leaked = check.finding("leakage")
    told = {frozenset(plain(photo.name) for photo in item.photos) for item in leaked.items} if leaked else set()
    hits = sum(row["found"] for row in rows.values())
    exact = {
        frozenset((photo.name, other.name))
        for item in (leaked.items if leaked else [])
        for photo in item.photos
        for other in item.photos
        if photo.name < other.name
    }
    return {
        "kinds": rows,
        "recall": hits / len(planted),
        "wrong_pairs": sorted(sorted(pair) for pair in wrong),
        "precision": hits / max(1, hits + len(wrong)),
        "precision_with_all_others_wrong": hits / max(1, hits + len(wrong) + len(natural)),
        "natural_pairs": sorted(sorted(pair) for pair in natural),
        "leaks": {
            "same_file": {"planted": len(same), "found": len(same & exact)},
            "same_picture": {"planted": len(leaks), "found": sum(pair in told for pair in leaks)},
        },
        **facts,
    }


def plain(name: str) -> str:
    """The name of an image; of a copy of the file itself, that of the original."""
    return name.replace("val/", "train/").replace("same-", "") if "same-" in name else name


def leak_files(folder: Path, originals: list[Path], generator: np.random.Generator) -> set[frozenset[str]]:
    """Training files copied as they are into the held-out part; the pairs of names."""
    pairs = set()
    for place in generator.permutation(len(originals))[:SAME_FILES].tolist():
        original = originals[place]
        copy = folder / "val" / original.parent.name / f"same-{original.name}"
        shutil.copy(original, copy)
        pairs.add(frozenset(str(file.relative_to(folder)) for file in (original, copy)))
    return pairs


def _explained(
    pair: frozenset[str], planted: dict[frozenset[str], tuple[str, bool]], related: dict[str, frozenset[str]]
) -> bool:
    """Whether each copy in a pair may be replaced by its original so that the pair is one of the data's own."""
    original = {name: other for one in planted for name in one if "copy-" in name for other in one if name != other}
    real = frozenset(original.get(name, name) for name in pair)
    return len(real) == 1 or any(related.get(name) == real for name in real)


def write_copy(picture: Image.Image, kind: str, generator: np.random.Generator, file: Path) -> None:
    """A copy of a kind."""
    width, height = picture.size
    if kind == "re-encoded":
        picture.save(file, quality=int(generator.integers(60, 96)))
        return
    if kind == "resized":
        factor = generator.choice([0.75, 1.5, 2.0])
        method = generator.choice([Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS])
        picture.resize((round(width * factor), round(height * factor)), Image.Resampling(method)).save(file)
        return
    wide, high = (round(side * generator.uniform(0.92, 0.98)) for side in (width, height))
    wide = min(wide, width - 1)
    left, top = int(generator.integers(0, width - wide + 1)), int(generator.integers(0, height - high + 1))
    picture.crop((left, top, left + wide, top + high)).save(file)


def flipped_labels(folder: Path) -> dict[str, Any]:
    """Precision among the first k label errors, k labels being wrong."""
    write_sample_data(folder)
    generator = np.random.default_rng(SEED)
    files = sorted(folder.glob("*/*/*.png"))
    classes = sorted({file.parent.name for file in files})
    number = round(FLIPPED * len(files))
    flipped = set()
    for place in generator.permutation(len(files))[:number].tolist():
        file = files[place]
        others = [name for name in classes if name != file.parent.name]
        goal = file.parent.parent / str(generator.choice(others)) / f"moved-{file.name}"
        file.rename(goal)
        flipped.add(str(goal.relative_to(folder)))
    check, facts = looked_at(folder)
    found = check.finding("label-errors")
    ranked = [item.photos[0].name for item in found.items] if found else []
    hits = [name in flipped for name in ranked]
    return {
        "flipped": number,
        "reported": len(ranked),
        "precision_at_k": sum(hits[:number]) / number,
        "recall": sum(hits) / number,
        **facts,
    }


def looked_at(data: Path) -> tuple[DataCheck, dict[str, Any]]:
    """A check of a folder, with its cost and the counts of what was found."""
    cost: dict[str, dict[str, float]] = {}

    @contextmanager
    def phase(name: str) -> Iterator[Any]:
        wall, processor = time.monotonic(), time.process_time()
        yield lambda done, total: None
        cost[name] = {
            "seconds": round(time.monotonic() - wall, 1),
            "processor_seconds": round(time.process_time() - processor, 1),
        }
        print(name, cost[name], flush=True)

    begun = time.process_time()
    check = check_data(str(data), CheckOptions(), phase).result
    facts = {
        "photos": len(check.photos),
        "classes": len(check.classes),
        "seconds": round(check.seconds, 1),
        "processor_seconds": round(time.process_time() - begun, 1),
        "phases": cost,
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[1], 1),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "label_accuracy": check.label_accuracy,
        "findings": {one.kind: {"severity": one.severity, "count": len(one.items)} for one in check.findings},
        "first": {
            one.kind: [
                {"photos": [photo.name for photo in item.photos][:4], "text": item.text, "score": round(item.score, 4)}
                for item in one.items[:SHOWN]
            ]
            for one in check.findings
        },
    }
    return check, facts


def pairs_of(check: DataCheck) -> set[frozenset[str]]:
    """Every pair of copies in any finding, by name."""
    found = set()
    for kind in PAIR_KINDS:
        finding = check.finding(kind)
        for item in finding.items if finding else []:
            first = item.photos[0].name
            found |= {frozenset((first, photo.name)) for photo in item.photos[1:]}
    return found


if __name__ == "__main__":
    main()
