"""Train and record the ladder from DeiT to CMT, the leave-one-outs, and CMT beside its peers.

    python benchmarks/comparison_study.py nano --work DIR [--images 2000] [--seeds 3]
    python benchmarks/comparison_study.py micro --work DIR --data DIR [--seeds 2]

nano: trained on the first images of each class of Fashion-MNIST's 60,000, tested on its 10,000 test images, at 32 px by
the recipe `ladder`; the ladder alone; two to three hours on two CPU cores. micro: trained on DIR/train and tested on
DIR/val, 64 px in colour, by the recipe `ladder_64`; twice as long. Each training has one thread, and what is trained in
DIR is kept, so a run that was cut off goes on; `--only ladder` and `--only peers` are half of the work, for two cores.
Writes records/ladder-study.json and records/nano-peers.json, or micro-ladder.json and micro-peers.json, and the figures
of both in docs/figures/.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from record import RECORDS

FIGURES = Path(__file__).parent.parent / "docs" / "figures"
NAMES = {"nano": ("ladder-study", "nano-peers"), "micro": ("micro-ladder", "micro-peers")}
FIGURE_NAMES = {"nano": ("ladder", "nano-peers"), "micro": ("micro-ladder", "micro-peers")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=NAMES)
    parser.add_argument("--work", type=Path, required=True, help="where images and runs are kept")
    parser.add_argument("--data", type=Path, help="of micro: a folder with train/ and val/")
    parser.add_argument("--images", type=int, default=2000, help="of nano: training images of each class")
    parser.add_argument("--seeds", type=int, help="default: 3 of nano, 2 of micro")
    parser.add_argument("--only", choices=("ladder", "peers"))
    args = parser.parse_args()
    if args.size == "nano":
        write_images(args.work, args.images)
    elif args.data is None:
        parser.error("micro needs --data")
    elif not (args.work / "photos").exists():
        args.work.mkdir(parents=True, exist_ok=True)
        (args.work / "photos").symlink_to(args.data.resolve())
    recipe = "ladder" if args.size == "nano" else "ladder_64"
    seeds = args.seeds or (3 if args.size == "nano" else 2)
    common = ["--recipe", recipe, "--set", "train.threads=1", "--seeds", str(seeds), "--resume", "auto"]
    names, figures = NAMES[args.size], FIGURE_NAMES[args.size]
    if args.only != "peers":
        parts = ["--only", "ladder"] if args.size == "nano" else []
        run(args.work, "ablate", "photos", "--size", args.size, *parts, *common, "--out", "ladder")
        keep(args.work / "ladder", "ablation", figures[0], names[0])
    if args.only != "ladder":
        run(args.work, "compare", *peers(args.size), "--train", "photos", *common, "--out", "peers")
        keep(args.work / "peers", "comparison", figures[1], names[1])


def peers(size: str) -> list[str]:
    return [f"{name}_{size}{more}" for name, more in (
        ("cmt", ""), ("ceit", ""), ("cvt", ""), ("pvt_v1", ""), ("deit", "_distilled"), ("vit", ""),
    )]  # fmt: skip


def write_images(work: Path, per_class: int) -> None:
    """work/photos: the first training images of each class, and all test images."""
    if (work / "photos").exists():
        return
    run(work, "sample-data", "all", "--full")
    for folder in sorted((work / "all" / "train").iterdir()):
        for file in sorted(folder.iterdir())[per_class:]:
            file.unlink()
    (work / "all").rename(work / "photos")


def run(work: Path, *words: str) -> None:
    """Run the command in the work folder, so that the record names no place of this machine."""
    work.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "cmtvision", *words], cwd=work, env=environment, check=True)


def keep(study: Path, name: str, figure: str, record: str) -> None:
    shutil.copy(study / f"{name}.json", RECORDS / f"{record}.json")
    shutil.copy(study / f"{name}.svg", FIGURES / f"{figure}.svg")


if __name__ == "__main__":
    main()
