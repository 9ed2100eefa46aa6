"""Train and record the ladder from DeiT to CMT, and CMT-nano beside its peers: two to three hours on two CPU cores.

    python benchmarks/comparison_study.py --work DIR [--photos 2000] [--seeds 3]

Trained on the first photos of each class of Fashion-MNIST's 60,000, tested on its 10,000 test photos, by the recipe
`ladder`. What is trained in DIR is kept, so a run that was cut off goes on. Writes records/ladder-study.json,
records/nano-peers.json and the figures of both in docs/figures/.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from record import RECORDS

FIGURES = Path(__file__).parent.parent / "docs" / "figures"
PEERS = ("cmt_nano", "ceit_nano", "cvt_nano", "pvt_v1_nano", "deit_nano_distilled", "vit_nano")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="where photos and runs are kept")
    parser.add_argument("--photos", type=int, default=2000, help="training photos of each class")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    write_photos(args.work, args.photos)
    common = ["--recipe", "ladder", "--seeds", str(args.seeds), "--resume", "auto"]
    run(args.work, "ablate", "photos", "--only", "ladder", *common, "--out", "ladder")
    keep(args.work / "ladder", "ablation", "ladder", "ladder-study")
    run(args.work, "compare", *PEERS, "--train", "photos", *common, "--out", "peers")
    keep(args.work / "peers", "comparison", "nano-peers", "nano-peers")


def write_photos(work: Path, per_class: int) -> None:
    """work/photos: the first training photos of each class, and all test photos."""
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
    subprocess.run([sys.executable, "-m", "cmtvision", *words], cwd=work, check=True)


def keep(study: Path, name: str, figure: str, record: str) -> None:
    shutil.copy(study / f"{name}.json", RECORDS / f"{record}.json")
    shutil.copy(study / f"{name}.svg", FIGURES / f"{figure}.svg")


if __name__ == "__main__":
    main()
