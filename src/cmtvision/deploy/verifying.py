"""Whether two models agree: bit-equal inputs for an image, and equal logits within a tolerance, at any batch size.

    max |a - b| <= tolerance * max(1, max |a|)

over all images and classes, a and b being the logits of the two, at batches of 1, 2 and 7 images. The tolerance and the
share of images on which both must decide alike are those of the less precise of the two.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from cmtvision.artefact import Predictor, load
from cmtvision.artefact.card import DENSE
from cmtvision.artefact.predictor import read_named_card
from cmtvision.data import ImageSource, Preprocess, open_image
from cmtvision.deploy.answers import Answers, compare_answers, differing_calibration
from cmtvision.deploy.sample_images import DEFAULT_NUM_IMAGES, choose, find_images, of_the_run
from cmtvision.deploy.verifying_dense import DenseVerification, verify_dense
from cmtvision.errors import CheckpointError, ConfigError, DataError, one_line

BATCHES = (1, 2, 7)
Progress = Callable[[int, int], None]
Logits = npt.NDArray[np.float32]


class Criterion(NamedTuple):
    """How far logits may differ, relative to the largest, and the share of images that must be decided alike.

    ``tie``: an image whose two best logits (of a multi-label model: a logit and 0) differ by no more than twice this,
    relative to the largest, is undecided and counts for no decision.
    """

    tolerance: float
    agreement: float
    tie: float = 0.0


CRITERIA = {
    "fp32": Criterion(1e-4, 1.0, tie=1e-4),
    "fp16": Criterion(1e-2, 0.99),
    "bf16": Criterion(5e-2, 0.98),
    "int8": Criterion(0.5, 0.95),  # what rounding to 8 bits may cost is settled by its accuracy, see quantize
}


@dataclass(frozen=True)
class Verification:
    """What a comparison found.

    Attributes:
        passed: the models agree.
        reasons: why they do not, in words.
        max_difference: largest |difference| of the logits; infinite if there is none to measure.
        scale: largest |logit| of the first model.
        tolerance: what was allowed, relative to max(1, scale).
        top1_agreement: share of images on which both decide for the same class (of a multi-label model: the same
            classes), 0 to 1.
        num_images: images compared.
        batches: batch sizes compared.
        arithmetic: the arithmetic of the second model on this machine, see
            ``cmtvision.artefact.runtimes.base.Runtime``.
        probability_difference: largest |difference| of calibrated probabilities; None unless both are calibrated, as
            the next.
        sets_alike: share of images whose prediction sets are equal, see ``cmtvision.deploy.answers``.
    """

    passed: bool
    reasons: list[str]
    max_difference: float
    scale: float
    tolerance: float
    top1_agreement: float
    num_images: int
    batches: tuple[int, ...]
    arithmetic: str = ""
    probability_difference: float | None = None
    sets_alike: float | None = None

    @property
    def relative(self) -> float:
        """max_difference / max(1, scale): what the tolerance is compared with."""
        return self.max_difference / max(1.0, self.scale)

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON; what could not be measured is None."""
        found = {**asdict(self), "batches": list(self.batches), "relative": self.relative}
        return {
            key: None if isinstance(value, float) and not np.isfinite(value) else value for key, value in found.items()
        }

    def rows(self) -> list[list[str]]:
        """The figures for a table, in words."""
        return [
            ["images", str(self.num_images)],
            ["batches", ", ".join(map(str, self.batches))],
            ["largest logit", f"{self.scale:.4g}"],
            ["largest difference", f"{self.max_difference:.3g}"],
            ["relative", f"{self.relative:.2e}"],
            ["allowed", f"{self.tolerance:.0e}"],
            ["decided alike", f"{self.top1_agreement:.2%}"],
            *([["sets equal", f"{self.sets_alike:.2%}"]] if self.sets_alike is not None else []),
            ["computed in", self.arithmetic],
            ["result", "passed" if self.passed else "failed"],
        ]

    def headline(self) -> str:
        """The figures in words."""
        return (
            f"{self.num_images} images in batches of {', '.join(map(str, self.batches))}: largest difference "
            f"{self.max_difference:.2g} of logits up to {self.scale:.3g} (relative {self.relative:.1e}, allowed "
            f"{self.tolerance:.0e}), {self.top1_agreement:.1%} decided alike"
            + (f", {self.sets_alike:.1%} with equal prediction sets" if self.sets_alike is not None else "")
            + f", computed in {self.arithmetic}"
        )


def verify(
    a: str | Path | Predictor,
    b: str | Path | Predictor,
    images: Sequence[ImageSource] | str | Path | None = None,
    *,
    batches: Sequence[int] = BATCHES,
    tolerance: float | None = None,
    num_images: int = DEFAULT_NUM_IMAGES,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Verification | DenseVerification:
    """Compare two models on real images: runs, artefacts, exports or bundles, in any runtime.

    Args:
        a: the reference.
        b: the model to check.
        images: images, files or folders of them; by default the held-out images of the run that ``a`` or ``b`` comes
            from.
        batches: images at a time; each image is compared at each size. Detectors and segmenters look at one.
        tolerance: largest difference of the logits relative to max(1, largest logit); by default that of the precision.
        num_images: the most to compare; a larger set is sampled, the same images each time.
        device: where both run, unless they are opened already.
        progress: called as progress(done, total) with the images computed.

    Raises:
        CheckpointError: a model that cannot be opened.
        ConfigError: no images given, and no run says where its are; an invalid tolerance or batch size.
        DataError: an image that cannot be read, by name.
    """
    if isinstance(a, str | Path) and isinstance(b, str | Path) and read_named_card(a).task in DENSE:
        check_tolerance(tolerance)
        return verify_dense(a, b, images, tolerance=tolerance, num_images=num_images, device=device, progress=progress)
    return verify_classifiers(
        a, b, images, batches=batches, tolerance=tolerance, num_images=num_images, device=device, progress=progress
    )


def verify_classifiers(
    a: str | Path | Predictor,
    b: str | Path | Predictor,
    images: Sequence[ImageSource] | str | Path | None = None,
    *,
    batches: Sequence[int] = BATCHES,
    tolerance: float | None = None,
    num_images: int = DEFAULT_NUM_IMAGES,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Verification:
    """Compare two classifiers; see ``verify``."""
    if not batches or min(batches) < 1:
        raise ConfigError(f"batches {list(batches)}: expected sizes of 1 and more")
    check_tolerance(tolerance)
    first, second = (one if isinstance(one, Predictor) else load(one, device, plain=True) for one in (a, b))
    if images is not None:
        chosen: Sequence[ImageSource] = choose(find_images(images), num_images)
    else:
        chosen = _of_either(a, b, num_images, multi_label=first.task == "multi-label")
    reasons = _different_cards(first, second)
    uncalibrated = differing_calibration(first, second)
    reasons += [uncalibrated] if uncalibrated else []
    if first.classes != second.classes:
        allowed = _criterion(first, second, tolerance).tolerance
        return Verification(False, reasons, np.inf, 0.0, allowed, 0.0, 0, tuple(batches), second.runtime.arithmetic)
    inputs, different = _inputs(first, second, chosen)
    found = _compare(
        first, second, inputs, tuple(batches), _criterion(first, second, tolerance), [*reasons, *different], progress
    )
    return replace(found, arithmetic=second.runtime.arithmetic)


def check_tolerance(tolerance: float | None) -> None:
    """Raises ConfigError for an invalid tolerance."""
    if tolerance is not None and not 0 < tolerance < np.inf:
        raise ConfigError(f"tolerance {tolerance}: expected a positive number")


def _of_either(a: object, b: object, num_images: int, multi_label: bool) -> list[ImageSource]:
    for model in (a, b):
        if isinstance(model, str | Path):
            images = of_the_run(model, num_images, multi_label=multi_label)
            if images is not None:
                return images
    raise ConfigError("neither model says which photos its run held out; name some with --images")


def _different_cards(a: Predictor, b: Predictor) -> list[str]:
    reasons = []
    if a.task != b.task:
        reasons.append(f"the task differs: {a.task} and {b.task}")
    if a.classes != b.classes:
        if len(a.classes) != len(b.classes):
            what = f"{len(a.classes)} and {len(b.classes)} of them"
        else:
            place = next(i for i, pair in enumerate(zip(a.classes, b.classes, strict=True)) if pair[0] != pair[1])
            what = f"number {place} is {a.classes[place]!r} and {b.classes[place]!r}"
        reasons.append(f"the classes differ: {what}")
    return reasons


def _criterion(a: Predictor, b: Predictor, tolerance: float | None) -> Criterion:
    parts = [*kinds(a), *kinds(b)]
    loosest = max((CRITERIA[part] for part in ("fp32", *parts) if part in CRITERIA), key=lambda one: one.tolerance)
    return loosest if tolerance is None else loosest._replace(tolerance=tolerance)


def kinds(model: Predictor) -> list[str]:
    """The parts of a model's precision: 'int8-weights-bf16' is three."""
    return model.runtime.precision.split("-")


class _Input(NamedTuple):
    """The input that each model makes from an image: one array if both are equal."""

    a: npt.NDArray[Any]
    b: npt.NDArray[Any]


def _inputs(a: Predictor, b: Predictor, images: Sequence[ImageSource]) -> tuple[list[_Input], list[str]]:
    found: list[_Input] = []
    reasons: list[str] = []
    for image in images:
        planes = a.preprocess.channels not in (1, 3) or isinstance(image, np.ndarray)
        source = image if planes else open_image(image)  # decoded once for both
        name = str(image) if isinstance(image, str | Path) else f"image {len(found)}"
        contracts = a.preprocess(source), b.preprocess(source)
        if not reasons and not np.array_equal(contracts[0].view(np.uint32), contracts[1].view(np.uint32)):
            reasons.append(f"preprocessing differs ({_differing(a.preprocess, b.preprocess)}), first on {name}")
        one, other = a.inputs(source), b.inputs(source)
        same = one.dtype == other.dtype and np.array_equal(one, other)
        found.append(_Input(one, one if same else other))
    return found, reasons


def _differing(a: Preprocess, b: Preprocess) -> str:
    one, other = a.to_dict(), b.to_dict()
    keys = [key for key in one if one[key] != other[key]]
    return ", ".join(f"{key} {one[key]} and {other[key]}" for key in keys) or "the same contract, other numbers"


def _compare(
    a: Predictor,
    b: Predictor,
    inputs: list[_Input],
    batches: tuple[int, ...],
    criterion: Criterion,
    reasons: list[str],
    progress: Progress | None,
) -> Verification:
    """The logits of the reference once, in the largest batch, against those of the other in every batch size."""
    step = _steps(len(inputs) * (1 + len(batches)), progress)
    reference, fault = _logits(a, [one.a for one in inputs], max(batches), step)
    if reference is None:
        reasons = [*reasons, f"the first {fault}"]
        return Verification(False, reasons, np.inf, 0.0, criterion.tolerance, 0.0, len(inputs), batches)
    scale = float(np.abs(reference).max())
    allowed = criterion.tolerance * max(1.0, scale)
    reasons = [*reasons]
    answers: Answers | None = None
    last: Logits | None = None
    largest, alike, counted = 0.0, np.ones(len(inputs), dtype=bool), np.zeros(len(inputs), dtype=bool)
    for size in sorted(batches):
        logits, fault = _logits(b, [one.b for one in inputs], size, step)
        if logits is None:
            reasons.append(f"in batches of {size} it {fault}")
            largest = np.inf
            continue
        difference = float(np.abs(logits - reference).max())
        if difference > allowed:
            reasons.append(f"in batches of {size} logits differ by {difference:.3g}, allowed {allowed:.3g}")
        largest = max(largest, difference)
        same, margin = _decisions(reference, logits, multi_label=a.task == "multi-label")
        alike &= same
        counted |= ~same & (margin > 2 * criterion.tie * max(1.0, scale))
        last = logits
    unlike = int(counted.sum())
    if unlike > _may_differ(criterion, len(inputs)):
        reasons.append(f"{unlike} of {len(inputs)} images are decided differently")
    if last is not None and a.trust is not None and b.trust is not None:
        answers = compare_answers(a.trust, b.trust, reference, last, allowed)
    # 8 bits are calibrated for themselves, on logits of their own
    own = "int8" in (*kinds(a), *kinds(b))
    if answers is not None and not own and answers.differing > _may_differ(criterion, len(inputs)):
        reasons.append(f"{answers.differing} of {len(inputs)} images have other prediction sets")
    agreement = float(alike.mean()) if np.isfinite(largest) else 0.0
    found = Verification(not reasons, reasons, largest, scale, criterion.tolerance, agreement, len(inputs), batches)
    if answers is None:
        return found
    return replace(found, probability_difference=answers.probability, sets_alike=answers.sets_alike)


def _steps(total: int, progress: Progress | None) -> Callable[[int], None]:
    done = 0

    def step(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    return step


def _may_differ(criterion: Criterion, num_images: int) -> int:
    """How many images may be decided differently; at least one (a possible tie) if the tolerance allows rounding."""
    return 0 if criterion.agreement == 1.0 else max(1, round((1 - criterion.agreement) * num_images))


def _decisions(
    reference: Logits, logits: Logits, multi_label: bool
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float32]]:
    """Images (N,) on which both decide alike, and the reference's margin where the other decides differently (N,)."""
    if multi_label:
        flipped = (reference >= 0) != (logits >= 0)  # sigmoid 0.5
        return ~flipped.any(axis=1), 2 * np.where(flipped, np.abs(reference), 0).max(axis=1)
    rows = np.arange(len(reference))
    chosen = logits.argmax(axis=1)
    return reference.argmax(axis=1) == chosen, reference.max(axis=1) - reference[rows, chosen]


def _logits(
    predictor: Predictor, inputs: list[npt.NDArray[Any]], size: int, step: Callable[[int], None]
) -> tuple[Logits | None, str]:
    """Logits (N, classes) of all inputs, or None and what is wrong with the model, in words."""
    try:
        logits = np.concatenate(list(_run(predictor, inputs, size, step)))
    except DataError:
        raise
    except Exception as error:  # each runtime has kinds of its own; onnxruntime's derive from Exception only
        return None, f"fails: {one_line(error)}"
    return (logits, "") if np.isfinite(logits).all() else (None, "gives logits that are not numbers")


def _run(
    predictor: Predictor, inputs: list[npt.NDArray[Any]], size: int, step: Callable[[int], None]
) -> Iterator[Logits]:
    """Logits of all inputs in batches of exactly ``size``; the last batch is padded with the first images."""
    for start in range(0, len(inputs), size):
        batch = inputs[start : start + size]
        filled = [*batch, *(inputs[i % len(inputs)] for i in range(size - len(batch)))]
        logits = predictor.forward(torch.from_numpy(np.stack(filled))).numpy()
        if logits.shape != (size, len(predictor.classes)):
            raise CheckpointError(f"logits of shape {logits.shape} for {size} images")
        step(len(batch))
        yield logits[: len(batch)]
