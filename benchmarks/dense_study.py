"""CMT as a backbone beside others: detection, instance and semantic segmentation, each network trained the same way.

    OMP_WAIT_POLICY=passive python benchmarks/dense_study.py --work DIR --bccd BCCD --camvid CAMVID --photos PHOTOS

Five tasks: RetinaNet and Mask R-CNN on composed scenes (``cmtvision sample-data --task detection``), RetinaNet on BCCD
(photos of blood cells, Pascal VOC), FPN segmentation on scenes and on CamVid (roads, 240 x 180 px). In each:

- cmt_micro from random weights, and from a classifier of 50 classes of Tiny ImageNet (``cmtvision train PHOTOS --recipe
  ladder_64 --model cmt_micro``);
- timm's resnet18 with a quarter of its channels and mobilenetv3_large_100, whose multiply-adds are next to cmt_micro's,
  and pvt_v1_tiny, which costs several times as much, all from random weights.

Settings were fixed before the first result, and nothing is tuned to any network; every one takes as many steps, nothing
stops early, and the moving average at the end counts. Scenes are measured on their held-out part, BCCD and CamVid on
their test part; nothing was chosen by these images. CamVid's void is learned and counted as a twelfth class. One thread
a network. Several of these commands may work in one DIR at the same time; what is finished is in DIR/results and not
done again, what was interrupted goes on. The record is benchmarks/records/dense-study.json.
"""

import argparse
import fcntl
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from record import cmtvision, write_record

from cmtvision.detection.task import DETECTION
from cmtvision.engine.dense.build import build_dense
from cmtvision.engine.fit import fit
from cmtvision.models.analysis.count import count
from cmtvision.models.analysis.dense_products import countable
from cmtvision.models.detectors import Detector
from cmtvision.recipe import Recipe, dump_recipe, load_recipe
from cmtvision.segmentation.task import SEGMENTATION

SEEDS = (0, 1)
# name: backbone, its arguments, whether it begins with a classifier's weights
BACKBONES: dict[str, tuple[str, str, bool]] = {
    "cmt_micro": ("cmt_micro", "", False),
    "cmt_micro, pretrained": ("cmt_micro", "", True),
    "resnet18, a quarter as wide": ("resnet18", "channels: [16, 32, 64, 128]", False),
    "mobilenetv3_large_100": ("mobilenetv3_large_100", "", False),
    "pvt_v1_tiny": ("pvt_v1_tiny", "", False),
}
COMMON = [
    "model.drop_path_rate=0.0", "optim.lr=1e-3", "optim.lr_base_batch=null", "schedule.warmup_epochs=1",
    "train.batch_size=8", "train.device=cpu", "train.threads=1", "train.loggers=[]", "data.workers=0",
    "ema.decay=0.99", "scene.scale=[0.75,1.33]", "train.eval_every=1000",
]  # fmt: skip
SMALL = "fpn_width: 64, anchor_scale: 0.5"  # objects of 10 to 60 px
# name: data, kind, options of the network, settings
TASKS: dict[str, tuple[str, str, str, list[str]]] = {
    "scenes, RetinaNet": (
        "scenes-detection", "retinanet", SMALL,
        ["scene.size=[128,128]", "scene.eval_short_side=128", "schedule.epochs=20"],
    ),
    "scenes, FPN": (
        "scenes-segmentation", "fpn", "",
        ["scene.size=[128,128]", "scene.eval_short_side=128", "schedule.epochs=10"],
    ),
    "BCCD, RetinaNet": (
        "bccd", "retinanet", SMALL,
        ["scene.size=[192,256]", "scene.eval_short_side=192", "scene.eval_longest=256", "schedule.epochs=30"],
    ),
    "CamVid, FPN": (
        "camvid", "fpn", "",
        ["scene.size=[160,224]", "scene.eval_short_side=180", "schedule.epochs=30"],
    ),
    "scenes, Mask R-CNN": (
        "scenes-detection", "maskrcnn", f"{SMALL}, rois_per_image: 64",
        ["scene.size=[128,128]", "scene.eval_short_side=128", "schedule.epochs=8"],
    ),
}  # fmt: skip


def recipe_of(task: str, backbone: str, seed: int, classifier: Path) -> Recipe:
    """What one network is trained by."""
    _, kind, options, settings = TASKS[task]
    name, arguments, pretrained = BACKBONES[backbone]
    given = ", ".join(part for part in ("frozen_norms: false", options, arguments) if part)
    if name.startswith("pvt"):  # positions for the images it sees, the others are resampled
        settings = [*settings, "model.img_size=128"]
    if pretrained:
        settings = [*settings, f"model.weights={classifier}"]
    return load_recipe(
        "segment" if kind == "fpn" else "detect",
        [*COMMON, *settings, f"model.name={name}_{kind}", f"model.options={{{given}}}", f"seed={seed}"],
    )


def cost(recipe: Recipe, num_classes: int) -> dict[str, Any]:
    """Parameters and multiply-adds of a whole network at the size it is trained on, and of its backbone."""
    assert recipe.scene is not None
    model = build_dense(recipe, num_classes, resume=True).model.eval()
    shape = (recipe.model.in_chans, *recipe.scene.size)
    rows = count(countable(model), shape)
    backbone = count(model.network.backbone.body if isinstance(model, Detector) else model.encoder.model, shape)
    return {
        "parameters": sum(row.parameters for row in rows),
        "mmacs": round(sum(row.macs for row in rows) / 1e6, 1),
        "backbone_mmacs": round(sum(row.macs for row in backbone) / 1e6, 1),
    }


def measure(work: Path, task: str, backbone: str, seed: int, classifier: Path) -> dict[str, Any]:
    """Train one network, and measure it."""
    torch.set_num_threads(1)
    data, kind = TASKS[task][:2]
    recipe = recipe_of(task, backbone, seed, classifier)
    out = work / "runs" / named(task, backbone, seed)
    begun = time.perf_counter()
    learned = SEGMENTATION if kind == "fpn" else DETECTION
    finished = fit(recipe, work / data, out, resume="auto", task=learned)
    seconds = finished.rows[-1]["seconds"]
    split = "val" if data.startswith("scenes") else "test"
    found = learned.evaluate(out, work / data, split=split, device="cpu", workers=0)
    result = {
        "task": task,
        "backbone": backbone,
        "seed": seed,
        "split": split,
        "classes": len(found.classes),
        **found.summary(),
        "train_seconds": round(float(seconds), 1),
    }
    print(f"{task:20}{backbone:28} seed {seed}  {found.headline()}  {time.perf_counter() - begun:.0f} s", flush=True)
    return result


def named(task: str, backbone: str, seed: int) -> str:
    """The name of a run."""
    words = f"{task} {backbone} {seed}".lower().replace(",", "")
    return words.replace(" ", "-")


@contextmanager
def ours(file: Path) -> Iterator[bool]:
    """Whether nobody else is at it."""
    with file.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True


def prepare(work: Path, bccd: Path, camvid: Path, photos: Path | None, classifier: Path | None) -> Path:
    """The data and the classifier, where they are not there yet; gives the classifier."""
    for task in ("detection", "segmentation"):
        if not (work / f"scenes-{task}").is_dir():
            cmtvision("sample-data", str(work / f"scenes-{task}"), "--task", task)
    for name, folder in (("bccd", bccd), ("camvid", camvid)):
        if not (work / name).exists():
            (work / name).symlink_to(folder.resolve(), target_is_directory=True)
    if classifier is not None:
        return classifier.resolve()
    run = work / "classifier"
    assert photos is not None, "--photos or --classifier"
    words = ["--recipe", "ladder_64", "--model", "cmt_micro", "--set", "train.threads=1", "--resume", "auto"]
    cmtvision("train", str(photos), *words, "--out", str(run))
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="Folder of data, runs and results.")
    parser.add_argument("--bccd", type=Path, required=True, help="BCCD's folder, Pascal VOC.")
    parser.add_argument("--camvid", type=Path, required=True, help="CamVid's folder, 240 x 180 px.")
    parser.add_argument("--photos", type=Path, help="Photos to train the classifier on.")
    parser.add_argument("--classifier", type=Path, help="Its run, where there is one already.")
    parser.add_argument("--so-far", action="store_true", help="Only write the record of what is finished in DIR.")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    options = parser.parse_args()
    work = options.work.resolve()
    (work / "results").mkdir(parents=True, exist_ok=True)
    with (work / "preparing").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        classifier = prepare(work, options.bccd, options.camvid, options.photos, options.classifier)
    wanted = [(task, backbone, seed) for seed in options.seeds for task in TASKS for backbone in BACKBONES]
    results = []
    for task, backbone, seed in wanted if not options.so_far else []:
        file = work / "results" / f"{named(task, backbone, seed)}.json"
        with ours(file.with_suffix(".lock")) as free:
            if free and not file.is_file():
                result = measure(work, task, backbone, seed, classifier)
                partial = file.with_suffix(".partial")
                partial.write_text(json.dumps(result, indent=1) + "\n")
                partial.replace(file)
    for task, backbone, seed in wanted:
        file = work / "results" / f"{named(task, backbone, seed)}.json"
        if file.is_file():
            results.append(json.loads(file.read_text()))
    if len(results) < len(wanted) and not options.so_far:
        print("another process is still at work; it writes the record")
        return
    write(results, classifier)


def write(results: list[dict[str, Any]], classifier: Path) -> None:
    """The record."""
    tasks = {}
    for task, (_, kind, _, _) in TASKS.items():
        rows = {}
        figures = ("miou", "pixel_accuracy", "boundary_f1") if kind == "fpn" else ("ap", "ap50", "ap75", "mask_ap")
        for backbone in BACKBONES:
            own = [one for one in results if one["task"] == task and one["backbone"] == backbone]
            if not own:
                continue
            recipe = recipe_of(task, backbone, 0, classifier)
            rows[backbone] = {
                **cost(recipe, own[0]["classes"]),
                **{name: [one[name] for one in own] for name in figures if name in own[0]},
                **{f"mean_{name}": statistics.mean(one[name] for one in own) for name in figures if name in own[0]},
                "seeds": [one["seed"] for one in own],
                "train_seconds": [one["train_seconds"] for one in own],
            }
        if not rows:
            continue
        recipe = recipe_of(task, "cmt_micro", 0, classifier)
        first = next(one for one in results if one["task"] == task)
        tasks[task] = {
            "split": first["split"],
            "images": first["num_images"],
            "backbones": rows,
            "recipe_of_cmt_micro": dump_recipe(recipe).replace(str(classifier), "CLASSIFIER"),
        }
    card = json.loads((classifier / "model.json").read_text())
    write_record(
        "dense-study",
        "python benchmarks/dense_study.py --work DIR --bccd BCCD --camvid CAMVID --photos PHOTOS",
        {
            "remark": "One training script and one set of settings for all, fixed before the first result. Trainings "
            "are short, networks and images small: the figures are there to be compared.",
            "threads": 1,
            "classifier": {"recipe": "ladder_64", "model": "cmt_micro", "top1": card["metrics"].get("top1")},
            "tasks": tasks,
        },
    )


if __name__ == "__main__":
    main()
