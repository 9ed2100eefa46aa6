"""What int8 costs and saves: python benchmarks/quantize_study.py RUN PHOTOS [--search 2000] [--out NAME].

Quantises a run for both runtimes, and once with the weights alone, by ``cmtvision quantize`` within 0.5 points on the
first --search held-out photos, then evaluates the run and each result on all held-out photos by ``cmtvision eval``.
Most of those the search has not seen. Writes records/quantize-NAME.json.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from record import cmtvision, write_record

WAYS = {
    "onnx int8": ("--to", "onnx"),
    "openvino int8": ("--to", "openvino"),
    "onnx int8 weights": ("--to", "onnx", "--weight-only"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("photos")
    parser.add_argument("--search", type=int, default=2000, help="held-out photos that layers are chosen on")
    parser.add_argument("--out", default="nano", help="name of the record")
    args = parser.parse_args()
    before = evaluated(args.run, args.photos)
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="cmtvision-quantize-") as folder:
        for name, options in WAYS.items():
            place = Path(folder) / name.replace(" ", "-")
            words = ("quantize", str(args.run), args.photos, *options, "--num-images", str(args.search))
            found = json.loads(cmtvision(*words, "--out", str(place), "--json"))
            after = evaluated(place, args.photos)
            drop = 100 * (before["top1_correct"] - after["top1_correct"]) / before["num_images"]
            rows[name] = {"quantize": found, "evaluation": after, "drop_points": drop}
            print(f"{name}: {after['top1_correct']:,} of {after['num_images']:,}, drop {drop:.2f} points", flush=True)
    card = json.loads((args.run / "model.json").read_text(encoding="utf-8"))
    write_record(
        f"quantize-{args.out}",
        f"python benchmarks/quantize_study.py RUN PHOTOS --search {args.search}",
        {"architecture": card["architecture"], "evaluation": before, "ways": rows},
    )


def evaluated(model: Path, photos: str) -> dict[str, Any]:
    """The counts of ``cmtvision eval``."""
    found = json.loads(cmtvision("eval", str(model), photos, "--json"))
    return {key: found[key] for key in ("num_images", "top1_correct", "top1", "loss")}


if __name__ == "__main__":
    main()
