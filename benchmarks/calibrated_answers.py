"""Measure what a run's calibrated answers promise: python benchmarks/calibrated_answers.py RUN PHOTOS [--out NAME].

Writes records/answers-NAME.json. Of 200 random halves of the held-out photos one calibrates and the other is measured:

- temperature: the calibration error of the measured half before and after, and in how many halves it became lower;
- sets: at three levels the share of photos whose set holds the right class, and the mean size of a set. A set has at
  least one class; 'empty' is the same where it may have none, which the levels are promised of exactly;
- familiarity: which share of the measured half, and of the same photos turned, inverted and replaced by noise, is
  called unfamiliar, by feature distance and by energy; with the area under the ROC curve.
"""

import argparse
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from record import write_record
from scipy.stats import rankdata

import cmtvision
from cmtvision.artefact.run.data import read_as_the_run
from cmtvision.trust.calibration import expected_calibration_error
from cmtvision.trust.conformal import members, of_the_class
from cmtvision.trust.familiarity import UNFAMILIAR, energy, neighbour_distance, of_unit_length
from cmtvision.trust.fit import fit_bank, fit_block

SPLITS, LEVELS, BANKS = 200, (0.8, 0.9, 0.95), 5
COLUMNS = ("coverage", "size", "empty")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--out", default="demo", help="name of the record")
    args = parser.parse_args()
    predictor = cmtvision.load(args.run, device="cpu")
    index = read_as_the_run(args.run, args.photos, classes=predictor.classes)
    targets = np.array([sample.label for sample in index.val])
    pictures = [Image.open(sample.path).convert("L") for sample in index.val]
    logits, features = seen(predictor, pictures)
    rng = np.random.default_rng(0)
    halves = [rng.permutation(len(targets)) for _ in range(SPLITS)]
    content = {
        "architecture": predictor.card.architecture,
        "data_fingerprint": predictor.card.provenance["data_fingerprint"],
        "num_images": len(targets),
        "top1": float((logits.argmax(axis=1) == targets).mean()),
        "splits": SPLITS,
        **answers(logits, targets, halves),
        "familiarity": familiarity(predictor, pictures, logits, features, targets, halves[:BANKS]),
    }
    write_record(f"answers-{args.out}", f"python benchmarks/calibrated_answers.py RUN PHOTOS --out {args.out}", content)


def seen(predictor: Any, pictures: list[Any]) -> tuple[Any, Any]:
    """Logits (N, C) and features (N, D)."""
    found = []
    for start in range(0, len(pictures), 100):
        batch = np.stack([predictor.inputs(one) for one in pictures[start : start + 100]])
        logits, features = predictor.with_features(torch.from_numpy(batch))
        found.append((logits.numpy(), features))
    return np.concatenate([one for one, _ in found]), np.concatenate([one for _, one in found])


def answers(logits: Any, targets: Any, halves: list[Any]) -> dict[str, Any]:
    errors, rows = [], {(kind, level): [] for kind in ("lac", "raps") for level in LEVELS}
    temperatures = []
    for order in halves:
        ours, theirs = order[: len(order) // 2], order[len(order) // 2 :]
        block = fit_block(logits[ours], targets[ours])
        temperatures.append(block.temperature)
        right = logits[theirs].argmax(axis=1) == targets[theirs]
        plain = torch.from_numpy(logits[theirs]).double().softmax(dim=1).numpy()
        odds = block.probabilities(logits[theirs])
        errors.append([expected_calibration_error(one.max(axis=1), right) for one in (plain, odds)])
        for (kind, level), row in rows.items():
            scores, threshold = block.scores(odds, kind), block.threshold(level, kind)
            inside = members(scores, threshold, odds)
            exact = (of_the_class(scores, targets[theirs]) <= threshold + 1e-8).mean()
            row.append((of_the_class(inside, targets[theirs]).mean(), inside.sum(axis=1).mean(), exact))
    return {
        "temperature": {
            "mean": mean(temperatures),
            "calibration_error": [mean(one) for one in zip(*errors, strict=True)],
            "lower_in": sum(after < before for before, after in errors),
        },
        "sets": [
            {
                "kind": kind,
                "level": level,
                **dict(zip(("coverage", "size", "empty"), np.mean(row, axis=0), strict=True)),
            }
            for (kind, level), row in rows.items()
        ],
    }


def familiarity(
    predictor: Any, pictures: list[Any], logits: Any, features: Any, targets: Any, halves: list[Any]
) -> Any:
    rng = np.random.default_rng(1)
    noise = [Image.fromarray(rng.integers(0, 256, (28, 28), dtype=np.uint8)) for _ in pictures[:500]]
    strange = {
        "turned by 90 degrees": [picture.rotate(90) for picture in pictures],
        "inverted": [ImageOps.invert(picture) for picture in pictures],
        "noise": noise,
    }
    given = {name: seen(predictor, some) for name, some in strange.items()}
    rows: dict[str, list[Any]] = {}
    for order in halves:
        ours, theirs = order[: len(order) // 2], order[len(order) // 2 :]
        block, bank = fit_block(logits[ours], targets[ours]), fit_bank(features[ours])
        for name, (other, inner) in {"held-out": (logits[theirs], features[theirs]), **given}.items():
            row = []
            for reference, both in (
                (bank.reference, [distances(one, bank) for one in (features[theirs], inner)]),
                (block.energy, [energy(one) for one in (logits[theirs], other)]),
            ):
                row += [(reference.share_at_least(both[1]) <= UNFAMILIAR).mean(), auroc(*both)]
            rows.setdefault(name, []).append(row)
    columns = ("by_distance", "auroc_distance", "by_energy", "auroc_energy")
    return [{"images": n, **dict(zip(columns, np.mean(r, axis=0), strict=True))} for n, r in rows.items()]


def distances(features: Any, bank: Any) -> Any:
    return neighbour_distance(of_unit_length(features), bank.features, bank.neighbours)


def auroc(usual: Any, strange: Any) -> float:
    ranks = rankdata(np.concatenate([usual, strange]))[len(usual) :]
    return float((ranks.sum() - len(strange) * (len(strange) + 1) / 2) / len(usual) / len(strange))


if __name__ == "__main__":
    main()
