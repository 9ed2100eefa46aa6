"""Runs as training leaves them, but of an untrained network: real images, a real split, a real evaluation."""

import json

import numpy as np
import torch
from PIL import Image

from cmtvision.artefact import Artefact, write_artefact
from cmtvision.artefact.run.write import write_beginning
from cmtvision.data import Preprocess, read_dataset
from cmtvision.engine import evaluate
from cmtvision.models import create_model
from cmtvision.recipe import load_recipe

CLASSES = ["<img src=x>", "blue & co", "red", "green", "gray", "white"]


def write_images(root, classes=CLASSES, train=3, val=6, seed=0):
    """data/train and data/val with class folders of noise; each class has a tone of its own."""
    rng = np.random.default_rng(seed)
    for part, count in (("train", train), ("val", val)):
        for place, name in enumerate(classes):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 60, (30 + number, 40, 3)) + 30 * place
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return root


def write_run(run, data, seed=0, classes=None, task="single-label", evaluated=True, **options):
    """A run folder on that data, with an untrained network drawn by the seed."""
    recipe = load_recipe("demo", ["data.multi_label=true"] if task == "multi-label" else [])
    index = read_dataset(data, val_fraction=0, multi_label=task == "multi-label", **options)
    names = classes or index.classes
    torch.manual_seed(seed)
    model = create_model("cmt_nano", num_classes=len(names), img_size=32)
    torch.nn.init.normal_(model.get_classifier().weight, std=0.5)  # else all answers would be alike
    preprocess = Preprocess((32, 32), 1.0, "bicubic", (0.5,) * 3, (0.5,) * 3)
    run.mkdir(parents=True)
    write_beginning(run, recipe, data, index)
    (run / "metrics.csv").write_text("epoch,lr,train_loss,val_loss,val_top1,seconds\n0,0.001,2,1.5,0.5,60\n")
    write_artefact(run, Artefact("cmt_nano", {"img_size": 32}, names, preprocess, task=task, model=model.eval()))
    if evaluated and index.val:
        (run / "evaluation.json").write_text(json.dumps(evaluate(run, data, workers=0).to_dict()))
    return run
