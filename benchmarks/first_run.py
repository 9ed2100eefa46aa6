"""The first run: what `cmtvision train photos` gives in five minutes on this machine, beside what else one could do.

    python benchmarks/first_run.py --work DIR --grocery grocery.tar --tiny tiny-imagenet-50.tar [--fastai PYTHON]

Three sets of photos, each with train/, val/ (to choose by) and test/ (looked at once, by the finished network):

    clothes   2,000 of the bundled photos (Fashion-MNIST), tested on the 2,000 that it holds out
    grocery   Grocery Store Dataset, 43 coarse classes, with the parts that it has
    tiny      a tenth of the training photos of 50 classes of Tiny ImageNet, tested on its validation photos

Where a set has no val/, a fifth of the training photos is it, by our own seeded rule. The methods, all from random
weights, all within five minutes of the wall clock from the start of the command:

    old       what `train` took before it looked, `--recipe default`, at 96 px and fitted to the time
    new       `cmtvision train DATA --minutes 5`
    tuned     the same after `cmtvision tune DATA --minutes 30`, with what that found (its half hour is not counted)
    fastai    `vision_learner(dls, resnet18, pretrained=False).fit_one_cycle(n)` (benchmarks/first_run_others.py)
    timm      timm's train.py defaults with resnet18 (the same)

``--bounds`` measures instead how well `--minutes 2`, `5` and `15` are kept, on the idle machine and beside a busy loop.
What is finished is kept in DIR/results and not done again. The machine should have nothing else to do. The record is
benchmarks/records/first-run.json.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from record import write_record

from cmtvision.data import read_dataset

MINUTES = 5
TUNE_MINUTES = 30
SETS = ("clothes", "grocery", "tiny")
METHODS = ("old", "new", "tuned", "fastai", "fastai-small", "timm", "timm-small")
OLD = ["--recipe", "default", "--set", "model.img_size=96"]
SPACE = [
    "--space", "optim.lr=log:5e-4..6e-3", "--space", "train.batch_size=16,32,64,128", "--space",
    "model.img_size={sizes}", "--space", "augment.auto_augment=null,rand-m5-mstd0.5-inc1", "--space",
    "augment.random_erasing=0,0.2", "--space", "augment.mixup=0,0.2", "--space", "model.drop_path_rate=0,0.1",
]  # fmt: skip
SIZES = {"clothes": "32,48", "grocery": "48,64,96", "tiny": "32,48,64"}
# every proposal gets its twelfth of the half hour, whatever its size: more epochs are planned than fit any of them
LONG = ["--set", "schedule.epochs=400", "--set", "schedule.warmup_epochs=24"]


def main() -> None:
    options = _options()
    # from random weights, whatever this machine has in its caches
    os.environ |= {"HF_HUB_OFFLINE": "1", "TORCH_HOME": str(options.work / "no-weights")}
    data = {name: make_set(name, options) for name in options.sets}
    results = options.work / "results"
    results.mkdir(parents=True, exist_ok=True)
    if options.bounds:
        bounds(data["grocery"], results, options)
    else:
        for seed in range(options.seeds):
            for method in options.methods:
                for name in options.sets:
                    file = results / f"{name}-{method}-{seed}.json"
                    if not file.is_file():
                        print(f"{name} {method} seed {seed}", flush=True)
                        found = METHOD[method](data[name], seed, options)
                        file.write_text(json.dumps({"set": name, "method": method, "seed": seed, **found}, indent=1))
    gather(results, {name: make_set(name, options) for name in SETS if (options.work / "data" / name).is_dir()})


def make_set(name: str, options: argparse.Namespace) -> Path:
    """DIR/data/NAME with train/, val/ and test/, of links to files unpacked beside it."""
    target: Path = options.work / "data" / name
    if target.is_dir():
        return target
    source = options.work / "unpacked" / name
    if name == "clothes":
        command("sample-data", str(source))
        parts = {"train": (source / "train", 200), "test": (source / "val", None)}
    elif name == "grocery":
        source = unpacked(options.grocery, source) / "grocery"
        wrong = source / "test" / "Mushroom"  # in the two other parts it has its whole name
        if wrong.is_dir():
            wrong.rename(source / "test" / "Brown-Cap-Mushroom")
        parts = {part: (source / part, None) for part in ("train", "val", "test")}
    else:
        source = unpacked(options.tiny, source) / "tiny-imagenet-50"
        parts = {"train": (source / "train", 50), "test": (source / "val", None)}
    partial = target.with_name(f".{name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for part, (folder, most) in parts.items():
        for label in sorted(path for path in folder.iterdir() if path.is_dir()):
            (partial / part / label.name).mkdir(parents=True)
            for photo in sorted(label.iterdir())[:most]:
                (partial / part / label.name / photo.name).hardlink_to(photo)
    if "val" not in parts:
        for sample in read_dataset(partial / "train", val_fraction=0.2).val:
            path = Path(str(sample.path))
            moved = partial / "val" / path.parent.name / path.name
            moved.parent.mkdir(parents=True, exist_ok=True)
            path.rename(moved)
    partial.rename(target)
    return target


def unpacked(archive: Path, folder: Path) -> Path:
    """The folder with an archive's files."""
    if not folder.is_dir():
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    return folder


def command(*words: str) -> str:
    """What a cmtvision command prints, which has to succeed."""
    done = subprocess.run([sys.executable, "-m", "cmtvision", *words], check=True, capture_output=True, text=True)
    return done.stdout


def trained(data: Path, seed: int, out: Path, *words: str, minutes: float = MINUTES) -> dict[str, Any]:
    """`cmtvision train` in a time, timed from outside, then measured on the test photos."""
    given = ["train", str(data), *words, "--minutes", f"{minutes:g}", "--seed", str(seed), "--json"]
    begun = time.monotonic()
    finished = json.loads(command(*given, "--out", str(out), "--overwrite"))
    seconds = time.monotonic() - begun
    tested = json.loads(command("eval", str(out), str(data), "--split", "test", "--json"))
    import yaml

    recipe = yaml.safe_load((out / "recipe.yaml").read_text(encoding="utf-8"))
    return {
        "command": f"cmtvision train DATA {' '.join(given[2:-1])}",
        "seconds": round(seconds, 1),
        "epochs": finished["epochs"],
        "held_out": finished["evaluation"]["top1"],
        "correct": tested["top1_correct"],
        "total": tested["num_images"],
        "recipe": recipe,
    }


def old(data: Path, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    return trained(data, seed, options.work / "runs" / f"{data.name}-old-{seed}", *OLD)


def new(data: Path, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    return trained(data, seed, options.work / "runs" / f"{data.name}-new-{seed}")


def tuned(data: Path, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    out = options.work / "runs" / f"{data.name}-search-{seed}"
    space = [word.format(sizes=SIZES[data.name]) for word in SPACE]
    words = ["tune", str(data), "--minutes", str(TUNE_MINUTES), *space, *LONG, "--set", f"seed={seed}"]
    words += ["--pruner", "none"]  # by the epoch it would stop what begins slowly, and lengths differ
    if not (out / "best.yaml").is_file() or not (out / "over").is_file():
        shutil.rmtree(out, ignore_errors=True)
        begun = time.monotonic()
        command(*words, "--out", str(out))
        (out / "over").write_text(f"{time.monotonic() - begun:.1f}")
    found = trained(data, seed, options.work / "runs" / f"{data.name}-tuned-{seed}", "--recipe", str(out / "best.yaml"))
    search = (out / "trials.csv").read_text(encoding="utf-8").splitlines()
    return {**found, "command": "cmtvision train DATA --recipe best.yaml --minutes 5",
            "search": f"cmtvision tune DATA {' '.join(words[2:])}", "search_seconds": float((out / "over").read_text()),
            "trials": search}  # fmt: skip


def others(tool: str, size: int) -> Any:
    def run(data: Path, seed: int, options: argparse.Namespace) -> dict[str, Any]:
        out = options.work / "results" / f".{data.name}-{tool}-{size}-{seed}.json"
        python = options.fastai if tool == "fastai" else Path(sys.executable)
        words = [tool, str(data), "--test", str(data / "test"), "--minutes", str(MINUTES), "--img-size", str(size)]
        script = Path(__file__).with_name("first_run_others.py")
        begun = time.monotonic()
        subprocess.run([str(python), str(script), *words, "--seed", str(seed), "--out", str(out)], check=True)
        found = json.loads(out.read_text(encoding="utf-8"))
        return {**found, "wall_seconds": round(time.monotonic() - begun, 1)}

    return run


METHOD = {
    "old": old, "new": new, "tuned": tuned, "fastai": others("fastai", 224), "fastai-small": others("fastai", 64),
    "timm": others("timm", 224), "timm-small": others("timm", 64),
}  # fmt: skip


def bounds(data: Path, results: Path, options: argparse.Namespace) -> None:
    """How long `--minutes N` really takes, idle and beside a program that computes without end."""
    for minutes in (2, 5, 15):
        for busy in (False, True):
            file = results / f"minutes-{minutes}-{'busy' if busy else 'idle'}.json"
            if file.is_file():
                continue
            print(f"--minutes {minutes}, {'busy' if busy else 'idle'}", flush=True)
            with busy_loop(busy):
                found = trained(data, 0, options.work / "runs" / "bounds", minutes=minutes)
            kept = {key: found[key] for key in ("seconds", "epochs", "held_out")}
            network = found["recipe"]["model"]
            kept |= {"network": network["name"], "img_size": network["img_size"], "minutes": minutes, "busy": busy}
            file.write_text(json.dumps(kept, indent=1))


@contextmanager
def busy_loop(wanted: bool) -> Iterator[None]:
    """A process beside us that never rests, where it is wanted."""
    loop = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if wanted else None
    try:
        yield
    finally:
        if loop is not None:
            loop.kill()
            loop.wait()


def gather(results: Path, data: dict[str, Path]) -> None:
    """The record, of whatever is finished; commands name no folder of this machine."""
    here = str(results.parent)
    texts = [file.read_text(encoding="utf-8").replace(here, "DIR") for file in sorted(results.glob("[a-z]*.json"))]
    found = [json.loads(text) for text in texts]
    sets = {}
    for name, folder in data.items():
        index = read_dataset(folder, verify=False)
        counts = {part: len(getattr(index, part)) for part in ("train", "val", "test")}
        sets[name] = {"fingerprint": index.fingerprint, "classes": len(index.classes), **counts}
    write_record(
        "first-run",
        "python benchmarks/first_run.py --work DIR --grocery grocery.tar --tiny tiny-imagenet-50.tar",
        {
            "minutes": MINUTES,
            "sets": sets,
            "runs": [one for one in found if "method" in one],
            "bounds": [one for one in found if "busy" in one],
        },
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--grocery", type=Path, help="The Grocery Store Dataset's coarse classes as a tar.")
    parser.add_argument("--tiny", type=Path, help="50 classes of Tiny ImageNet as a tar.")
    parser.add_argument("--fastai", type=Path, help="Python of an environment with fastai.")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--bounds", action="store_true", help="Measure how well --minutes is kept.")
    return parser.parse_args()


if __name__ == "__main__":
    main()
