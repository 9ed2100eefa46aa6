"""What a first run on a small photo set gives with what else is at hand: fastai, or the recipe of timm's train.py.

    python benchmarks/first_run_others.py {fastai,timm} DATA --test FOLDER --minutes 5 --img-size 224 --seed 0 \
        --threads 2 --out record.json

A resnet18 from random weights, every setting the tool's own default, on DATA/train, validated on DATA/val after every
epoch as both do, then tested on the class folders of FOLDER (``--test``; DATA/test where not given).

    fastai   ``vision_learner(dls, resnet18, pretrained=False, metrics=accuracy).fit_one_cycle(epochs)`` with
             ``ImageDataLoaders.from_folder(item_tfms=Resize(224))``, as fastai's quick start and book have it. With
             ``--augment`` also ``batch_tfms=aug_transforms()``. Its last weights are tested.
    timm     the defaults of train.py, which timm's package does not hold, restated on timm's own functions. The weights
             of the best epoch on DATA/val are tested: train.py's model_best.

Neither tool knows a time limit; both want a number of epochs. Some batches are timed, and as many whole epochs are
trained as then seem to fit between the start of this process and the limit, validation and the timing itself included
(at least one, which may be too long: compare train_seconds with the limit). ``--epochs`` is for someone who knows the
number: nothing is timed. Testing comes after the limit. fastai needs no cmtvision, and runs in an environment of its
own: ``pip install fastai``.
"""

import argparse
import copy
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

BEGUN = time.perf_counter()  # before the tools are imported, which takes seconds

TIMING_SHARE = 0.04  # of the limit: how long batches are timed, after the first one
VALIDATION_SHARE = 0.4  # of what training takes for a photo: no backward pass, no augmentation
PACKAGES = ("torch", "torchvision", "pillow", "numpy")

# train.py of timm 1.0: the defaults of its arguments
TIMM: dict[str, Any] = {
    "opt": "sgd", "momentum": 0.9, "weight_decay": 2e-5, "lr_base": 0.1, "lr_base_size": 256, "lr_base_scale": "linear",
    "sched": "cosine", "warmup_lr": 1e-5, "warmup_epochs": 5, "min_lr": 0.0, "batch_size": 128, "smoothing": 0.1,
    "scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3), "hflip": 0.5, "color_jitter": 0.4, "interpolation": "random",
    "workers": 4,
}  # fmt: skip


def run_fastai(options: argparse.Namespace) -> dict[str, Any]:
    """Train by fastai's Learner; the last weights count."""
    from fastai.vision.all import (
        Callback,
        CancelFitException,
        ImageDataLoaders,
        Resize,
        accuracy,
        aug_transforms,
        get_image_files,
        resnet18,
        set_seed,
        vision_learner,
    )

    def learner() -> Any:
        set_seed(options.seed)
        more = {"batch_tfms": aug_transforms()} if options.augment else {}
        dls = ImageDataLoaders.from_folder(options.data, valid="val", item_tfms=Resize(options.img_size), **more)
        return vision_learner(dls, resnet18, pretrained=False, metrics=accuracy)

    class Timed(Callback):
        """Ends a fit when enough batches were timed."""

        def __init__(self, clock: BatchClock) -> None:
            self.clock = clock

        def after_batch(self) -> None:
            if self.training and self.clock.enough():
                raise CancelFitException

    learn = learner()
    batch, num_train, num_val = learn.dls.train.bs, len(learn.dls.train_ds), len(learn.dls.valid_ds)
    clock = BatchClock(options.minutes)
    if options.epochs is None:
        with learn.no_bar(), learn.no_logging():
            learn.fit_one_cycle(1, cbs=Timed(clock))
        learn = learner()
    epochs = options.epochs or clock.epochs(batch, num_train, num_val)
    with learn.no_bar():
        learn.fit_one_cycle(epochs)
    trained = time.perf_counter()
    rows = list(learn.recorder.values)  # an epoch each: train loss, val loss, accuracy; predicting adds a row
    photos = get_image_files(options.test)
    known = {name: index for index, name in enumerate(learn.dls.vocab)}
    with learn.no_bar():
        scores, _ = learn.get_preds(dl=learn.dls.test_dl(photos))
    answers = scores.argmax(1).tolist()
    steps = len(learn.dls.train)
    return {
        "trained": trained,
        "settings": {
            "network": "torchvision resnet18 with fastai's head, pretrained=False",
            "item_tfms": f"Resize({options.img_size})",
            "batch_tfms": "aug_transforms()" if options.augment else None,
            "fit": f"fit_one_cycle({epochs})",
            "optimizer": learn.opt_func.__name__,
            "lr_max": learn.lr,
            "batch_size": batch,
            "workers": learn.dls.train.fake_l.num_workers,
            "tested weights": "last",
        },
        "classes": len(known),
        "train_photos": num_train,
        "val_photos": num_val,
        "epochs": epochs,
        "epochs_by": clock.said(options.epochs),
        "steps": epochs * steps,
        "photos_seen": epochs * steps * batch,
        "val_top1": [round(row[2], 5) for row in rows],
        "train_loss": [round(row[0], 4) for row in rows],
        "correct": sum(known.get(photo.parent.name) == answer for photo, answer in zip(photos, answers, strict=True)),
        "total": len(photos),
    }


def run_timm(options: argparse.Namespace) -> dict[str, Any]:
    """Train as timm's train.py does by default; the weights of the best epoch count."""
    import timm
    from timm.data import resolve_data_config
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2
    from timm.utils import random_seed

    if options.augment:
        raise SystemExit("--augment is fastai's: the recipe of timm's train.py always augments")
    random_seed(options.seed)
    names = sorted(class_names(options.data / "train"))
    class_map = {name: index for index, name in enumerate(names)}  # val/ and the test folder may lack some
    model = timm.create_model("resnet18", pretrained=False, num_classes=len(names))
    config = resolve_data_config({"img_size": options.img_size}, model=model)
    train = _timm_loader(options.data / "train", class_map, config, training=True)
    val = _timm_loader(options.data / "val", class_map, config)
    batch, num_train, num_val = TIMM["batch_size"], len(train.dataset), len(val.dataset)
    lr = TIMM["lr_base"] * batch / TIMM["lr_base_size"]
    criterion = LabelSmoothingCrossEntropy(TIMM["smoothing"])

    def optimizer_of(network: Any) -> Any:
        decay, momentum = TIMM["weight_decay"], TIMM["momentum"]
        return create_optimizer_v2(network, opt=TIMM["opt"], lr=lr, weight_decay=decay, momentum=momentum)

    clock = BatchClock(options.minutes)
    if options.epochs is None:
        trial = copy.deepcopy(model)
        for _ in _timm_epoch(trial, optimizer_of(trial), criterion, train):
            if clock.enough():
                break
    epochs = options.epochs or clock.epochs(batch, num_train, num_val)
    optimizer = optimizer_of(model)
    warmup = TIMM["warmup_epochs"] if options.warmup_epochs is None else options.warmup_epochs
    scheduler, _ = create_scheduler_v2(
        optimizer, TIMM["sched"], num_epochs=epochs, warmup_epochs=warmup, warmup_lr=TIMM["warmup_lr"],
        min_lr=TIMM["min_lr"],
    )  # fmt: skip
    losses, val_top1, best = [], [], {}
    for number in range(epochs):
        found = list(_timm_epoch(model, optimizer, criterion, train))
        losses.append(round(sum(found) / len(found), 4))
        right, total = _timm_correct(model, val)
        if not best or right / total > max(val_top1):
            best = copy.deepcopy(model.state_dict())
        val_top1.append(round(right / total, 5))
        scheduler.step(number + 1, val_top1[-1])
        print(f"epoch {number + 1} of {epochs}  loss {losses[-1]:.3f}  val {val_top1[-1]:.2%}", flush=True)
    trained = time.perf_counter()

    model.load_state_dict(best)
    right, total = _timm_correct(model, _timm_loader(options.test, class_map, config))
    return {
        "trained": trained,
        "settings": {
            "network": "timm resnet18, pretrained=False",
            **TIMM,
            "lr": lr,
            "warmup_epochs": warmup,
            "val_crop_pct": config["crop_pct"],
            "val_interpolation": config["interpolation"],
            "tested weights": "best epoch on val/",
        },
        "classes": len(names),
        "train_photos": num_train,
        "val_photos": num_val,
        "epochs": epochs,
        "epochs_by": clock.said(options.epochs),
        "steps": epochs * len(train),
        "photos_seen": epochs * len(train) * batch,
        "val_top1": val_top1,
        "train_loss": losses,
        "correct": right,
        "total": total,
    }


def _timm_epoch(model: Any, optimizer: Any, criterion: Any, loader: Any) -> Iterator[float]:
    """One pass over the training photos: the loss of each step."""
    model.train()
    for images, labels in loader:
        loss = criterion(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()


def _timm_correct(model: Any, loader: Any) -> tuple[int, int]:
    """(right answers, photos)."""
    import torch

    model.eval()
    right = total = 0
    with torch.no_grad():
        for images, labels in loader:
            right += int((model(images).argmax(1) == labels).sum())
            total += len(labels)
    return right, total


def _timm_loader(folder: Path, class_map: dict[str, int], config: dict[str, Any], training: bool = False) -> Any:
    """A loader as train.py builds it for training or validation."""
    import torch
    from timm.data import create_dataset, create_loader

    dataset = create_dataset("", root=str(folder), search_split=False, class_map=class_map, is_training=training)
    ways = {"interpolation": config["interpolation"], "crop_pct": config["crop_pct"]}
    if training:
        ways = {name: TIMM[name] for name in ("scale", "ratio", "hflip", "color_jitter", "interpolation")}
    return create_loader(
        dataset, input_size=config["input_size"], batch_size=TIMM["batch_size"], is_training=training,
        mean=config["mean"], std=config["std"], num_workers=TIMM["workers"], device=torch.device("cpu"), **ways,
    )  # fmt: skip


class BatchClock:
    """Times batches, and says how many epochs fit between now and the limit."""

    def __init__(self, minutes: float) -> None:
        self.limit = 60 * minutes
        self.ends: list[float] = []
        self.epoch_seconds: float | None = None

    def enough(self) -> bool:
        """Count a batch that ends now; whether enough were timed."""
        self.ends.append(time.perf_counter())
        return len(self.ends) > 1 and self.ends[-1] - self.ends[0] >= TIMING_SHARE * self.limit

    def epochs(self, batch: int, num_train: int, num_val: int) -> int:
        """Whole epochs, validation included, for the time that is left; at least 1."""
        # the first batch allocates, and waits for the loader to start; an epoch of one batch has no other
        timed = (self.ends[-1] - self.ends[0]) / (len(self.ends) - 1) if len(self.ends) > 1 else self.limit
        self.epoch_seconds = timed * (num_train // batch + VALIDATION_SHARE * num_val / batch)
        left = self.limit - (time.perf_counter() - BEGUN)
        return max(1, int(left / self.epoch_seconds))

    def said(self, given: int | None) -> str:
        """Where the number of epochs is from, in words."""
        if self.epoch_seconds is None:
            return f"--epochs {given}"
        return f"{len(self.ends) - 1} batches timed: {self.epoch_seconds:.1f} s an epoch expected"


def class_names(folder: Path) -> set[str]:
    """The folders in a folder."""
    return {path.name for path in folder.iterdir() if path.is_dir()}


def hardware() -> dict[str, str]:
    """The machine, in the words of ``cmtvision doctor``, which may not be installed here."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": models[0] if models else platform.processor() or "unknown",
        "cores": f"{usable} usable of {os.cpu_count()}",
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
    }


TOOLS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {"fastai": run_fastai, "timm": run_timm}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("tool", choices=list(TOOLS))
    parser.add_argument("data", type=Path, help="Folder with train/ and val/, each with a folder a class.")
    parser.add_argument("--test", type=Path, help="Folder of class folders to test on; DATA/test where not given.")
    parser.add_argument("--minutes", type=float, default=5.0, help="From the start of this process to trained weights.")
    parser.add_argument("--epochs", type=int, help="As many, whatever they take; no batches are timed.")
    parser.add_argument("--img-size", type=int, default=224)
    parser.add_argument("--augment", action="store_true", help="fastai: with batch_tfms=aug_transforms().")
    parser.add_argument("--warmup-epochs", type=int, help="timm: other than train.py's 5.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True, help="The record, a JSON file.")
    options = parser.parse_args()
    options.test = options.test or options.data / "test"
    if options.epochs is not None and options.epochs < 1:
        parser.error("--epochs has to be at least 1")
    if options.warmup_epochs is not None and options.tool != "timm":
        parser.error("--warmup-epochs is for timm")
    for folder in (options.data / "train", options.data / "val", options.test):
        if not folder.is_dir():
            parser.error(f"{folder} is no folder; DATA needs train/ and val/, and --test a folder of class folders")
    for folder in (options.data / "val", options.test):
        if unknown := sorted(class_names(folder) - class_names(options.data / "train")):
            parser.error(f"{folder} has folders that {options.data / 'train'} has not: {', '.join(unknown)}")

    import torch

    torch.set_num_threads(options.threads)
    found = TOOLS[options.tool](options)
    ended, trained = time.perf_counter(), found.pop("trained")
    record = {
        "command": " ".join(["python", "benchmarks/first_run_others.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": hardware(),
        "versions": {name: metadata.version(name) for name in (options.tool, *PACKAGES)},
        "tool": options.tool,
        "data": options.data.resolve().name,
        "img_size": options.img_size,
        "seed": options.seed,
        "threads": options.threads,
        "limit_seconds": 60 * options.minutes,
        "train_seconds": round(trained - BEGUN, 1),
        "test_seconds": round(ended - trained, 1),
        "seconds": round(ended - BEGUN, 1),
        **found,
        "top1": round(found["correct"] / found["total"], 5),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"{found['correct']:,} of {found['total']:,} correct after {record['train_seconds']} s; wrote {options.out}")


if __name__ == "__main__":
    main()
