"""Transfer to natural photos, as in the paper's second table: CMT and its peers of size micro, fine-tuned and not.

    python benchmarks/transfer_peers.py --work DIR --pretrained STUDY --grocery grocery.tar [--seeds 2] [--jobs 2]

STUDY is the --work of ``comparison_study.py micro``: its networks of seed 0, trained on 50 classes of Tiny ImageNet,
are fine-tuned at 64 px on the 43 coarse classes of the Grocery Store Dataset, and the same networks are trained on them
from random weights. One recipe for all: ladder_64 for 20 epochs. From random weights it keeps its own learning rate;
for fine-tuning, that of ``RATES`` is taken with which the six networks together, at seed 0, recognise most of val/.
With that, and only then, each network is asked test/ once. Each training has one thread; what is finished in DIR is
kept.

Writes records/grocery-transfer.json.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from comparison_study import peers
from first_run import make_set
from record import write_record

from cmtvision.data import read_dataset
from cmtvision.recipe import dump_recipe, load_recipe

RECIPE, SETTINGS = "ladder_64", ["schedule.epochs=20", "train.eval_every=20", "train.threads=1"]
RATES = {"scratch": ("1.5e-3",), "fine-tuned": ("1.5e-3", "5e-4")}  # the recipe's own, and a third of it
Run = tuple[str, str, str, int]  # network, start, learning rate, seed
Found = TypeVar("Found")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--pretrained", type=Path, required=True, help="--work of comparison_study.py micro")
    parser.add_argument("--grocery", type=Path, required=True, help="the Grocery Store Dataset's coarse classes as tar")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, a thread each")
    options = parser.parse_args()
    photos = make_set("grocery", options)

    networks = peers("micro")
    tried: list[Run] = [(name, start, rate, 0) for start, rates in RATES.items() for rate in rates for name in networks]
    at_a_time(options.jobs, lambda run: train(options.work, photos, options.pretrained, run), tried)
    held_out = at_a_time(options.jobs, lambda run: correct(options.work, photos, "val", run), tried)
    sums = {
        start: {rate: sum(held_out[name, start, rate, 0] for name in networks) for rate in rates}
        for start, rates in RATES.items()
    }
    best = {start: max(rates, key=sums[start].__getitem__) for start, rates in RATES.items()}
    final: list[Run] = [
        (name, start, best[start], seed) for seed in range(options.seeds) for start in RATES for name in networks
    ]
    at_a_time(options.jobs, lambda run: train(options.work, photos, options.pretrained, run), final)
    tested = at_a_time(options.jobs, lambda run: test(options.work, photos, run), final)
    index = read_dataset(photos)
    write_record(
        "grocery-transfer",
        "python benchmarks/transfer_peers.py --work DIR --pretrained STUDY --grocery grocery.tar",
        {
            "data": {
                "fingerprint": index.fingerprint,
                "classes": len(index.classes),
                **{part: len(getattr(index, part)) for part in ("train", "val", "test")},
            },
            "seeds": list(range(options.seeds)),
            "recipe": dump_recipe(load_recipe(RECIPE, SETTINGS)),
            "learning_rates": {"held_out_correct_of_all_networks": sums, "chosen": best},
            "held_out_correct": {" ".join(map(str, run)): count for run, count in held_out.items()},
            "rows": {
                name: {
                    start: [tested[name, start, best[start], seed] for seed in range(options.seeds)] for start in RATES
                }
                for name in networks
            },
        },
    )


def at_a_time(jobs: int, what: Callable[[Run], Found], runs: Sequence[Run]) -> dict[Run, Found]:
    """What each run gives."""
    with ThreadPoolExecutor(jobs) as pool:
        return dict(zip(runs, pool.map(what, runs), strict=True))


def train(work: Path, photos: Path, study: Path, run: Run) -> None:
    """Train, where that is not done."""
    name, start, rate, seed = run
    out = folder(work, run)
    weights = ["--weights", str(study / "peers" / "runs" / name / "seed-0")] if start == "fine-tuned" else []
    settings = [*SETTINGS, f"optim.lr={rate}", f"seed={seed}"]
    words = ["--recipe", RECIPE, "--model", name, *weights, *(word for one in settings for word in ("--set", one))]
    if not (out / "model.json").is_file():
        print(*run, flush=True)
        command("train", str(photos), *words, "--out", str(out), "--resume", "auto")


def test(work: Path, photos: Path, run: Run) -> int:
    """Ask a finished network test/, once; the answer is kept beside it."""
    file = folder(work, run).with_suffix(".test")
    if not file.is_file():
        file.write_text(str(correct(work, photos, "test", run)))
    return int(file.read_text())


def correct(work: Path, photos: Path, split: str, run: Run) -> int:
    """The photos of a part that a finished network recognises."""
    words = ("eval", str(folder(work, run)), str(photos), "--split", split, "--json")
    found: dict[str, Any] = json.loads(command(*words))
    return int(found["top1_correct"])


def folder(work: Path, run: Run) -> Path:
    name, start, rate, seed = run
    return work / "runs" / f"{name}-{start}-lr{rate.replace('.', '_')}-seed{seed}"


def command(*words: str) -> str:
    """Run a command of cmtvision that has to succeed; gives what it prints."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "cmtvision", *words], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


if __name__ == "__main__":
    main()
