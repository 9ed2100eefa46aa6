"""Transfer without leakage: what a network that knows seven kinds of clothing brings to three it has never seen.

    OMP_WAIT_POLICY=passive python benchmarks/transfer_study.py --work DIR

cmt_nano and a larger CMT (cmt_ti) learn seven classes of Fashion-MNIST from their 42,000 training photos. Then, for
each of five seeds, 50 training photos of each of the other three classes are drawn, and cmt_nano learns them in four
ways:

    scratch       from random weights
    linear probe  from the seven-class weights; only a new classifier learns
    fine-tune     from the seven-class weights; everything learns, with the settings of scratch
    distilled     exactly as fine-tune, and besides from a teacher: the larger CMT, fine-tuned on the same 150 photos

pullover, coat and shirt are the three classes that networks confuse most; they were set apart before any result was
seen. All settings are fixed beforehand, every method takes as many steps, nothing is held out, nothing stops early, and
the last weights count. The 3,000 test photos of the three classes are looked at once for each trained network, at its
very end, and by nothing else. ``--rehearse`` measures on 3,000 other training photos instead, which no seed draws; with
it settings can be chosen without the test photos.

What is finished is kept in DIR/results and not done again. The record is benchmarks/records/transfer-study.json.
"""

import argparse
import json
import random
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from record import write_record

from cmtvision.data import read_dataset
from cmtvision.engine import evaluate, fit
from cmtvision.recipe import dump_recipe, load_recipe

APART = ("coat", "pullover", "shirt")
SEEDS = (0, 1, 2, 3, 4)
PER_CLASS = 50
REHEARSAL_PER_CLASS = 1000
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's t by the number of seeds

PRETRAINING = {
    "pretrained-nano": ["--recipe", "fashion_mnist", "--epochs", "10"],
    "pretrained-teacher": [
        "--recipe", "fashion_mnist", "--model", "cmt_ti", "--epochs", "5", "--set", "model.drop_path_rate=0.1",
        "--set", "optim.lr=1e-3", "--set", "ema.decay=0.998",
    ],
}  # fmt: skip

# 150 photos in batches of 30, each photo five times an epoch: 25 steps an epoch, 300 in all, for every method
PASSES = 5
COMMON = [
    "data.val_fraction=0", "train.batch_size=30", "train.loggers=[]", "schedule.epochs=12",
    "schedule.warmup_epochs=0.6", "schedule.min_lr=1e-6", "schedule.warmup_lr=1e-6", "ema.decay=0.98",
]  # fmt: skip
FROM_NANO = ["model.weights={work}/pretrained-nano"]
# Chosen by --rehearse on three seeds (photos that no seed draws): the same rate as from scratch. Layer decay 0.8 with a
# head warm-up and half the rate, right for photos like those of pretraining, held these three classes back.
TUNED = ["optim.lr=2e-3"]
METHODS: dict[str, tuple[str, list[str]]] = {
    "scratch": ("cmt_nano from random weights", ["optim.lr=2e-3"]),
    "linear probe": (
        "cmt_nano's seven-class weights, frozen; a new classifier learns",
        [*FROM_NANO, "model.freeze=backbone", "optim.lr=1e-2", "optim.weight_decay=0"],
    ),
    "fine-tune": (
        "cmt_nano from its seven-class weights; everything learns; settings as for scratch, only the start differs",
        [*FROM_NANO, *TUNED],
    ),
    "teacher": (
        "cmt_ti from its seven-class weights, fine-tuned on the same photos: the teacher of 'distilled', no competitor",
        [
            "model.name=cmt_ti", "model.weights={work}/pretrained-teacher", "model.drop_path_rate=0.1",
            *TUNED,
        ],
    ),
    "distilled": (
        "as fine-tune in everything (start, photos, settings, seed, steps), with half of the loss from the teacher's "
        "softened probabilities; the difference to fine-tune is the distillation alone",
        [
            *FROM_NANO, *TUNED, "distill.teacher={work}/teachers/{seed}", "distill.kind=soft", "distill.alpha=0.5",
            "distill.temperature=3",
        ],
    ),
}  # fmt: skip


def make_data(work: Path) -> None:
    """DIR/seven and DIR/three: train/ and val/ (the official test photos) of the two groups of classes."""
    if (work / "three").is_dir() and (work / "seven").is_dir():
        return
    full = work / "full"
    shutil.rmtree(full, ignore_errors=True)
    run("sample-data", str(full), "--full")
    for part in ("train", "val"):
        for folder in sorted((full / part).iterdir()):
            target = work / ("three" if folder.name in APART else "seven") / part / folder.name
            target.parent.mkdir(parents=True, exist_ok=True)
            folder.rename(target)
    shutil.rmtree(full)


def pretrain(work: Path, needed: str) -> None:
    """The seven-class networks that the settings speak of, by the command, where they are not there and finished."""
    for name, options in PRETRAINING.items():
        out = work / name
        if name in needed and not (out / "model.json").is_file():
            run("train", str(work / "seven"), *options, "--out", str(out), "--seed", "0", "--resume", "auto")


def run(*words: str) -> None:
    """A cmtvision command that has to succeed."""
    subprocess.run([sys.executable, "-m", "cmtvision", *words], check=True, stdout=subprocess.DEVNULL)


def draw(work: Path, seed: int) -> Path:
    """Fifty training photos of each of the three classes, copied to DIR/drawn/SEED."""
    target = work / "drawn" / str(seed)
    if target.is_dir():
        return target
    partial = target.with_name(f".{seed}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for name in APART:
        (partial / name).mkdir(parents=True)
        for photo in _shuffled(work, name, seed)[:PER_CLASS]:
            shutil.copy(photo, partial / name)
    partial.rename(target)
    return target


def rehearsal(work: Path) -> Path:
    """Training photos that no seed draws, to measure on where test photos must not be used."""
    target = work / "rehearsal"
    if not target.is_dir():
        partial = target.with_name(".rehearsal.partial")
        shutil.rmtree(partial, ignore_errors=True)
        for name in APART:
            (partial / "val" / name).mkdir(parents=True)
            (partial / "train" / name).mkdir(parents=True)
            taken = {photo for seed in SEEDS for photo in _shuffled(work, name, seed)[:PER_CLASS]}
            free = [photo for photo in _shuffled(work, name, 1_000) if photo not in taken]
            for photo in free[:REHEARSAL_PER_CLASS]:
                shutil.copy(photo, partial / "val" / name)
            shutil.copy(sorted(taken)[0], partial / "train" / name)  # a data set needs a training part to be one
        partial.rename(target)
    return target


def _shuffled(work: Path, name: str, seed: int) -> list[Path]:
    photos = sorted((work / "three" / "train" / name).iterdir())
    random.Random(f"{name} {seed}").shuffle(photos)
    return photos


def measure(work: Path, results: Path, method: str, seed: int, test: Path, extra: list[str]) -> dict[str, Any]:
    """Train one network and count its right answers; a result that is there for these very settings is taken."""
    settings = [text.format(work=work, seed=seed) for text in [*COMMON, *METHODS[method][1], *extra]]
    recipe = load_recipe("fashion_mnist", [*settings, f"seed={seed}"])
    file = results / f"{method.replace(' ', '-')}-{seed}.json"
    described = dump_recipe(recipe).replace(str(work), "DIR")
    if file.is_file():
        known: dict[str, Any] = json.loads(file.read_text())
        wants_teacher = method == "teacher" and not (work / "teachers" / str(seed) / "model.json").is_file()
        if known["recipe"] == described and not wants_teacher:
            return known
    out = work / "teachers" / str(seed) if method == "teacher" else work / "running"
    begun = time.perf_counter()
    photos = draw(work, seed)
    index = read_dataset(photos, val_fraction=0)
    # listed several times: an epoch ends with a checkpoint, and these epochs would be too short for that
    fit(recipe, photos, out, overwrite=True, index=replace(index, train=sorted(index.train * PASSES)))
    seconds = time.perf_counter() - begun
    found = evaluate(out, test)
    assert found.num_images == 3000, found.num_images
    result = {
        "method": method,
        "seed": seed,
        "correct": found.top1_correct,
        "photos": found.num_images,
        "train_seconds": round(seconds, 1),
        "recipe": described,
    }
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    results.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1) + "\n")
    partial.replace(file)
    print(f"seed {seed}  {method:12}  {found.top1_correct:,} of {found.num_images:,}  {seconds:.0f} s", flush=True)
    return result


def summary(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Counts, means, spreads and paired differences, and what they say of fine-tuning against scratch."""
    methods = {}
    for method, results in found.items():
        shares = [result["correct"] / result["photos"] for result in results]
        methods[method] = {
            "what": METHODS[method][0],
            "correct": [result["correct"] for result in results],
            "of": results[0]["photos"],
            "mean": round(statistics.mean(shares), 5),
            "sd": round(statistics.stdev(shares), 5) if len(shares) > 1 else None,
            "train_seconds": [result["train_seconds"] for result in results],
        }
    pairs = {
        f"{better} - {worse}": _paired(found[better], found[worse])
        for better, worse in (
            ("fine-tune", "scratch"), ("linear probe", "scratch"), ("distilled", "scratch"), ("distilled", "fine-tune"),
            ("teacher", "fine-tune"),
        )
    }  # fmt: skip
    gains = pairs["fine-tune - scratch"]["correct"]
    won = sum(gain > 0 for gain in gains)
    return {"methods": methods, "paired": pairs, "verdict": _verdict(won, gains)}


def _verdict(won: int, gains: list[int]) -> str:
    said = f"fine-tuning beats scratch in {won} of {len(gains)} seeds"
    if won == len(gains):
        return f"{said}, by {min(gains)} to {max(gains)} photos of 3,000"
    worst = min(gains)
    return f"{said}; in the others it is behind by up to {-worst} photos of 3,000: see methods and paired for each seed"


def _paired(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> dict[str, Any]:
    gains = [a["correct"] - b["correct"] for a, b in zip(one, other, strict=True)]
    shares = [gain / one[0]["photos"] for gain in gains]
    mean = statistics.mean(shares)
    half = T_95[len(gains)] * statistics.stdev(shares) / len(gains) ** 0.5 if len(gains) in T_95 else None
    return {
        "correct": gains,
        "mean": round(mean, 5),
        "interval_95": None if half is None else [round(mean - half, 5), round(mean + half, 5)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="Folder of data, pretrained networks and results.")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--rehearse", action="store_true", help="Measure on other training photos; write no record.")
    parser.add_argument("--set", action="append", default=[], dest="extra", help="With --rehearse: a recipe setting.")
    options = parser.parse_args()
    if options.extra and not options.rehearse:
        parser.error("--set changes the study; it goes with --rehearse only")
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    make_data(work)
    pretrain(work, " ".join(setting for method in options.methods for setting in METHODS[method][1]))
    test = rehearsal(work) if options.rehearse else work / "three"
    results = work / ("rehearsed" if options.rehearse else "results")
    found: dict[str, list[dict[str, Any]]] = {method: [] for method in METHODS if method in options.methods}
    for seed in options.seeds:
        for method, measured in found.items():
            measured.append(measure(work, results, method, seed, test, options.extra))
    shutil.rmtree(work / "running", ignore_errors=True)
    if list(found) != list(METHODS):
        return
    content = summary(found)
    print(content["verdict"])
    for method, row in content["methods"].items():
        print(f"{method:12}  {row['mean']:.2%}  sd {row['sd'] or 0:.2%}  {row['correct']}")
    if options.rehearse or tuple(options.seeds) != SEEDS:
        return
    pretrained = {}
    for name, words in PRETRAINING.items():
        card = json.loads((work / name / "model.json").read_text())
        pretrained[name] = {
            "command": f"cmtvision train DIR/seven {' '.join(words)} --seed 0 --out DIR/{name}",
            "test_accuracy_on_its_seven_classes": card["metrics"].get("top1"),
            "train_seconds": card["provenance"].get("train_seconds"),
        }
    write_record(
        "transfer-study",
        "python benchmarks/transfer_study.py --work DIR",
        {
            "remark": "50 photos a class are drawn anew for each seed, which also seeds training; the two pretrained "
            "networks are one each, so the spread does not hold the luck of pretraining. The classes were set apart "
            "before any result: the three that are confused most.",
            "classes": list(APART),
            "train_photos_a_class": PER_CLASS,
            "times_a_photo_comes_in_an_epoch": PASSES,
            "seeds": list(SEEDS),
            "pretrained": pretrained,
            **content,
            "recipes": {method: found[method][0]["recipe"] for method in found},
        },
    )


if __name__ == "__main__":
    main()
