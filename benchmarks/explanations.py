"""Whether explanations name the places that a trained network decides by, and whether they depend on what it learned.

    python benchmarks/explanations.py --run RUN --data PHOTOS [--images 200] [--remark "how RUN was trained"]

RUN is a run of recipe fashion_mnist, PHOTOS the folder of `cmtvision sample-data PHOTOS --full`. Writes
records/explanations.json:

- faithfulness: deletion and insertion (explain/faithfulness.py) of as many held-out images, classes in turn, for the
  class that the network predicts, against random orders of the same cells, for two replacements: the image blurred, and
  the mean colour. "centre" orders cells by their distance from the middle, and knows neither image nor network: a map
  that is no better only says that photos have their object in the middle.
- randomised: rank correlation of each map with the one of the same network with random weights, from the classifier
  down, part by part (Adebayo et al., NeurIPS 2018).
- complete: the completeness error of integrated gradients.
"""

import argparse
import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from record import write_record
from scipy.stats import spearmanr
from torch import nn

from cmtvision.artefact import read_artefact
from cmtvision.explain import attention_rollout, faithfulness, grad_cam, hires_cam, integrated_gradients
from cmtvision.explain.faithfulness import blurred, random_maps
from cmtvision.models import create_model

CELL = 4  # pixels: integrated gradients are summed over the cells of the first stage
BLUR = 4.0  # pixels
RANDOM_ORDERS = 4
STEPS = 64  # of integrated gradients
STAGES = (1, 2, 3)  # the fourth has a single place at 32 px
RANDOMISED_IMAGES = 50
Maps = Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--remark", default="")
    args = parser.parse_args()
    torch.manual_seed(0)
    artefact = read_artefact(args.run)
    network = artefact.model
    photos = sorted(args.data.glob("val/*/*.png"))
    photos = photos[:: len(photos) // args.images][: args.images]
    images = torch.from_numpy(np.stack([artefact.preprocess(photo) for photo in photos]))
    with torch.no_grad():
        classes = network(images).argmax(1)
    correct = sum(artefact.classes[place] == photo.parent.name for place, photo in zip(classes, photos, strict=True))
    errors = integrated_gradients(network, images, classes, steps=STEPS).error
    evaluation = args.run / "evaluation.json"
    scores = json.loads(evaluation.read_text()) if evaluation.is_file() else {}
    content = {
        "remark": args.remark,
        "model": {
            "architecture": artefact.architecture,
            "top1": scores.get("top1"),
            "num_images": scores.get("num_images"),
        },
        "data": "Fashion-MNIST, its test photos",
        "images": len(images),
        "correct": correct,
        "cells": "each map's own grid; integrated gradients summed over cells of 4 x 4 px",
        "faithfulness": {
            "blurred": compared(network, images, classes, blurred(images, BLUR)),
            "mean": compared(network, images, classes, torch.zeros(1)),
        },
        "randomised": randomised(network, images[:RANDOMISED_IMAGES], classes[:RANDOMISED_IMAGES]),
        "complete": {"steps": STEPS, "median": float(errors.median()), "largest": float(errors.max())},
    }
    command = f"python benchmarks/explanations.py --run RUN --data PHOTOS --images {args.images}"
    write_record("explanations", command, content)


def methods() -> dict[str, Maps]:
    """Each method as maps (B, h, w) of a network, images and classes."""
    found: dict[str, Maps] = {}
    for stage in STAGES:
        found[f"grad-cam, stage {stage}"] = lambda n, x, c, stage=stage: grad_cam(n, x, c, stage)
        found[f"hires-cam, stage {stage}"] = lambda n, x, c, stage=stage: hires_cam(n, x, c, stage)
    found["integrated-gradients"] = lambda n, x, c: cells(
        integrated_gradients(n, x, c, steps=STEPS).attributions.sum(1)
    )
    found["rollout"] = lambda n, x, c: attention_rollout(n, x)
    found["centre"] = lambda n, x, c: centre(x)
    return found


def cells(attributions: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(attributions, CELL)


def centre(images: torch.Tensor) -> torch.Tensor:
    side = images.shape[-1] // CELL
    place = torch.arange(side) - (side - 1) / 2
    return -(place[:, None] ** 2 + place[None, :] ** 2).expand(len(images), -1, -1)


def compared(
    network: nn.Module, images: torch.Tensor, classes: torch.Tensor, replacement: torch.Tensor
) -> list[dict[str, Any]]:
    """For each method deletion and insertion, and by how much they are better than the same cells in random order."""
    by_chance: dict[tuple[int, ...], list[torch.Tensor]] = {}
    rows = []
    for name, method in methods().items():
        maps = method(network, images, classes)
        grid = (maps.shape[1], maps.shape[2])
        if grid not in by_chance:
            orders = [
                faithfulness(network, images, classes, random_maps(images, grid, seed), replacement)
                for seed in range(RANDOM_ORDERS)
            ]
            by_chance[grid] = [
                torch.stack([getattr(one, kind) for one in orders]).mean(0)
                for kind in ("deletion_score", "insertion_score")
            ]
        found = faithfulness(network, images, classes, maps, replacement)
        deletion, insertion = by_chance[grid]
        row = {
            "method": name,
            "grid": list(grid),
            "deletion": summary(found.deletion_score, deletion, deletion - found.deletion_score),
            "insertion": summary(found.insertion_score, insertion, found.insertion_score - insertion),
        }
        print(name, row["deletion"], row["insertion"], flush=True)
        rows.append(row)
    return rows


def summary(score: torch.Tensor, chance: torch.Tensor, gain: torch.Tensor) -> dict[str, float]:
    """Means, and the gain over chance with the half-width of its 95% interval over images."""
    return {
        "score": round(float(score.mean()), 4),
        "random_order": round(float(chance.mean()), 4),
        "gain": round(float(gain.mean()), 4),
        "gain_95": round(1.96 * float(gain.std()) / len(gain) ** 0.5, 4),
        "images_better": round(float((gain > 0).float().mean()), 4),
    }


def randomised(network: nn.Module, images: torch.Tensor, classes: torch.Tensor) -> list[dict[str, Any]]:
    """Rank correlation with the maps of the trained network, averaged over images, after each part made random."""
    used = {name: method for name, method in methods().items() if name != "centre"}
    trained = {name: method(network, images, classes) for name, method in used.items()}
    rows = []
    for part, changed in from_the_top(network):
        row: dict[str, Any] = {"down_to": part}
        for name, method in used.items():
            row[name] = correlation(trained[name], method(changed, images, classes))
        rows.append(row)
        print(row, flush=True)
    return rows


def from_the_top(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Copies of a CMT with random weights from the classifier down to a part, which grows."""
    fresh: Any = create_model("cmt_nano", num_classes=network.num_classes)
    changed: Any = copy.deepcopy(network)
    parts = ["head", "final", "stages.3", "stages.2", "stages.1", "stages.0", "stem"]
    for part in parts:
        changed.get_submodule(part).load_state_dict(fresh.get_submodule(part).state_dict())
        yield part, changed.eval()


def correlation(one: torch.Tensor, other: torch.Tensor) -> float | None:
    """Spearman's, averaged over the images where both maps vary; None where there are none."""
    found = [
        float(spearmanr(a.flatten().numpy(), b.flatten().numpy()).statistic)
        for a, b in zip(one, other, strict=True)
        if float(a.std()) > 0 and float(b.std()) > 0
    ]
    return round(float(np.mean(found)), 3) if found else None


if __name__ == "__main__":
    main()
