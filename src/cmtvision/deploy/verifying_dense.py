"""Whether two detectors or segmenters agree on real images: a network and its export, or two networks.

Both see bit-equal inputs, made as the second one makes them; where one of them is a graph of one size, the other sees
the image padded to it.

- Detectors: what one finds and the other finds too: the same class, boxes that overlap by 99%, scores within the
  tolerance. A finding at the edge of being one (its score at the threshold, its overlap with a better one at that of
  non-maximum suppression) may be there or not after any rounding, so 99% of all findings have to be found by both.
  Two that find nothing do not agree: nothing would be known of them.
- Segmenters: max |a - b| <= tolerance * max(1, max |a|) of all logits, and 99.9% of all pixels of one class.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torchvision.ops import box_iou

from cmtvision.artefact.dense import DetectionPredictor, SegmentationPredictor, open_model
from cmtvision.data import ImageSource
from cmtvision.deploy.sample_images import DEFAULT_NUM_IMAGES, choose, find_images, of_the_run
from cmtvision.errors import ConfigError

DensePredictor = DetectionPredictor | SegmentationPredictor
Progress = Callable[[int, int], None]
SCORE_TOLERANCE, LOGIT_TOLERANCE = 1e-3, 1e-4
_SAME_BOX = 0.99  # overlap (IoU) of two boxes that are one
_ALIKE = {"detection": 0.99, "segmentation": 0.999}
_OF = {"detection": "findings", "segmentation": "pixels"}


@dataclass(frozen=True)
class DenseVerification:
    """What a comparison found.

    Attributes:
        passed: the models agree.
        reasons: why they do not, in words.
        task: 'detection' or 'segmentation'.
        num_images: images compared.
        num_compared: findings of either, or pixels.
        alike: share of them that both have, 0 to 1.
        max_difference: of scores of common findings, or of logits; infinite where there is none to measure.
        scale: largest |logit| of the first; 1 for scores.
        tolerance: what was allowed, relative to max(1, scale).
        box_difference: largest difference of a common box's edges in pixels of the input; None for segmentation.
        arithmetic: of the second model.
    """

    passed: bool
    reasons: list[str]
    task: str
    num_images: int
    num_compared: int
    alike: float
    max_difference: float
    scale: float
    tolerance: float
    box_difference: float | None
    arithmetic: str = "fp32"

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON; what could not be measured is None."""
        found = asdict(self).items()
        return {key: None if isinstance(value, float) and not np.isfinite(value) else value for key, value in found}

    def rows(self) -> list[list[str]]:
        """The figures for a table, in words."""
        what = "score" if self.task == "detection" else "logit"
        boxes = self.box_difference
        return [
            ["images", str(self.num_images)],
            [_OF[self.task], f"{self.num_compared:,}"],
            ["alike", f"{self.alike:.3%}"],
            [f"largest difference of a {what}", f"{self.max_difference:.2g}"],
            *([["largest difference of a box", f"{boxes:.2g} px"]] if boxes is not None else []),
            ["allowed", f"{self.tolerance:.0e}"],
            ["computed in", self.arithmetic],
            ["result", "passed" if self.passed else "failed"],
        ]

    def headline(self) -> str:
        """The figures in a line."""
        if not self.num_compared:
            return f"{self.num_images} images: no {_OF[self.task]} to compare"
        boxes = "" if self.box_difference is None else f", of boxes {self.box_difference:.2g} px"
        what = "scores" if self.task == "detection" else f"logits up to {self.scale:.3g}"
        return (
            f"{self.num_images} images: {self.alike:.2%} of {self.num_compared:,} {_OF[self.task]} alike, largest "
            f"difference of {what} {self.max_difference:.2g} (allowed {self.tolerance:.0e}){boxes}, computed in "
            f"{self.arithmetic}"
        )


def verify_dense(
    a: str | Path | DensePredictor,
    b: str | Path | DensePredictor,
    images: Sequence[ImageSource] | str | Path | None = None,
    *,
    tolerance: float | None = None,
    num_images: int = DEFAULT_NUM_IMAGES,
    device: str = "cpu",
    progress: Progress | None = None,
) -> DenseVerification:
    """Compare two detectors or segmenters; arguments and errors as of ``cmtvision.deploy.verify``."""
    first, second = (one if isinstance(one, DensePredictor) else _opened(one, device) for one in (a, b))
    chosen = choose(find_images(images), num_images) if images is not None else _of_either((a, b), num_images)
    task = first.task
    allowed = tolerance if tolerance is not None else {"detection": SCORE_TOLERANCE}.get(task, LOGIT_TOLERANCE)
    reasons = _different_cards(first, second)
    if first.task != second.task or first.classes != second.classes:
        return DenseVerification(False, reasons, task, 0, 0, 0.0, np.inf, 1.0, allowed, None)
    size = next((one.card.export.img_size for one in (second, first) if one.card.export is not None), None)
    inputs = (second if second.card.export is not None else first).inputs
    tally = _Tally()
    for place, source in enumerate(chosen):
        image = torch.from_numpy(inputs(source).image)
        if size is not None:
            image = F.pad(image, (0, size[1] - image.shape[2], 0, size[0] - image.shape[1]))
        with torch.inference_mode():
            if task == "detection":
                left, right = (one.network([image.to(one.device)])[0] for one in (first, second))
                tally.findings(left, right, allowed)
            else:
                left, right = (one.network(image[None].to(one.device)).float().cpu() for one in (first, second))
                tally.pixels(left, right)
        if progress is not None:
            progress(place + 1, len(chosen))
    alike = tally.alike / tally.compared if tally.compared else 0.0
    if not tally.compared:
        where = "the one image" if len(chosen) == 1 else f"any of {len(chosen)} images"
        reasons.append(
            f"nothing was found in {where}, so there is nothing to compare; name images of its objects with --images, "
            "or train the detector for longer"
        )
    if task == "segmentation" and not tally.difference <= allowed * max(1.0, tally.scale):
        reasons.append(f"logits differ by {tally.difference:.2g} of {tally.scale:.3g}, {allowed:.0e} allowed")
    if tally.compared and alike < _ALIKE[task]:
        reasons.append(f"{alike:.2%} of {tally.compared:,} {_OF[task]} are alike, expected {_ALIKE[task]:.1%}")
    boxes = tally.edges if task == "detection" else None
    return DenseVerification(
        not reasons, reasons, task, len(chosen), tally.compared, alike, tally.difference, tally.scale, allowed, boxes
    )


class _Tally:
    """What was compared, and how far it was off."""

    def __init__(self) -> None:
        self.compared = self.alike = 0
        self.difference, self.edges, self.scale = 0.0, 0.0, 1.0

    def findings(self, one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], allowed: float) -> None:
        """Pair what both found in an image, the surest first."""
        left, right = ({key: value.float().cpu() for key, value in found.items()} for found in (one, other))
        overlap = box_iou(left["boxes"], right["boxes"])
        same = left["labels"][:, None] == right["labels"][None]
        apart = (left["scores"][:, None] - right["scores"][None]).abs()
        possible = (overlap >= _SAME_BOX) & same & (apart <= allowed)
        taken: set[int] = set()
        for place in range(len(left["boxes"])):
            partners = [int(other) for other in possible[place].nonzero()[:, 0] if int(other) not in taken]
            if not partners:
                continue
            best = max(partners, key=lambda other: float(overlap[place, other]))
            taken.add(best)
            self.difference = max(self.difference, float(apart[place, best]))
            self.edges = max(self.edges, float((left["boxes"][place] - right["boxes"][best]).abs().max()))
        self.alike += len(taken)
        self.compared += max(len(left["boxes"]), len(right["boxes"]))

    def pixels(self, one: torch.Tensor, other: torch.Tensor) -> None:
        """Compare logits (1, K, H, W) of an image."""
        self.scale = max(self.scale, float(one.abs().max()))
        difference = float((one - other).abs().max())
        self.difference = max(self.difference, difference) if np.isfinite(difference) else np.inf
        self.compared += one.shape[2] * one.shape[3]
        self.alike += int((one.argmax(dim=1) == other.argmax(dim=1)).sum())


def _opened(path: str | Path, device: str) -> DensePredictor:
    found = open_model(path, device)
    if not isinstance(found, DensePredictor):
        raise ConfigError(f"{path}: a classifier, which finds no places in an image; compare it with another one")
    return found


def _of_either(models: Sequence[str | Path | DensePredictor], count: int) -> list[ImageSource]:
    for model in models:
        if isinstance(model, str | Path):
            found = of_the_run(model, count)
            if found is not None:
                return found
    raise ConfigError("neither model says which photos its run held out; name some with --images")


def _different_cards(first: DensePredictor, second: DensePredictor) -> list[str]:
    reasons = []
    if first.task != second.task:
        reasons.append(f"the task differs: {first.task} and {second.task}")
    if first.classes != second.classes:
        reasons.append("the classes differ")
    own, other = ({**one.card.preprocess.to_dict(), "size": None} for one in (first, second))
    if own != other or first.card.sides != second.card.sides:
        reasons.append("the preprocessing differs: see model.json of both")
    return reasons
