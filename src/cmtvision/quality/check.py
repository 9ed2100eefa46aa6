"""``check_data``: everything that can be found wrong with a data set before anybody trains on it.

Each image is decoded once (``scan``); all that follows works on thumbnails and embeddings in memory.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cmtvision.errors import ConfigError
from cmtvision.quality import copies, duplicates
from cmtvision.quality.classes import class_findings
from cmtvision.quality.findings import SEVERITIES, DataCheck, Finding, Item
from cmtvision.quality.label_errors import LEAST_PER_CLASS, NEEDS_CLEANLAB, LabelErrors, find_label_errors
from cmtvision.quality.listing import Listed, list_photos, with_split
from cmtvision.quality.oddities import odd_findings
from cmtvision.quality.outliers import reduced, unlike_their_class
from cmtvision.quality.scan import Scan, scan_photos

Progress = Callable[[int, int], None]
Phase = Callable[[str], AbstractContextManager[Progress]]
TITLES = {
    "unreadable": "unreadable images",
    "leakage": "leakage between training and held-out images",
    "contradictory-labels": "contradictory labels of copies",
    "one-class": "a single class",
    "empty-classes": "classes without a training image",
    "exact-duplicates": "exact duplicates",
    "near-duplicates": "near duplicates",
    "label-errors": "probable label errors",
    "unlike-class": "images unlike their class",
    "tiny-classes": "tiny classes",
    "imbalance": "class imbalance",
    "odd-modes": "odd modes",
    "odd-sizes": "odd sizes",
    "blank": "blank images",
}
"""Every check by its name, the most serious first."""
_SURE = 0.8  # share of labels that the predictions must agree with, for the list of label errors to be believed
_DOUBTFUL = 100  # labels that are listed otherwise
_EMBEDDED = 64  # numbers of an embedding for distances


@dataclass(frozen=True)
class CheckOptions:
    """How a data set is read and checked.

    Attributes:
        multi_label, image_column, label_column: see ``cmtvision.data.read_dataset``.
        model: a run folder; its network's pooled features are the embeddings then.
        device: that it runs on.
        seed: of everything random.
    """

    multi_label: bool = False
    image_column: str | None = None
    label_column: str | None = None
    model: str | None = None
    device: str = "auto"
    seed: int = 0


@dataclass(frozen=True)
class Checked:
    """A result, and what a cleaned copy and a page need besides."""

    result: DataCheck
    listed: Listed


@dataclass
class _Found:
    findings: list[Finding] = field(default_factory=list)
    not_checked: dict[str, str] = field(default_factory=dict)
    label_accuracy: float | None = None


def check_data(source: str, options: CheckOptions | None = None, phase: Phase | None = None) -> Checked:
    """Check a data set.

    Args:
        source: whatever ``cmtvision.data.read_dataset`` takes.
        options: how to read and check it.
        phase: gives a progress callback for each named phase.

    Raises:
        DataError: no such data, or no image in it.
        CheckpointError: a model that cannot be opened.
    """
    options = options or CheckOptions()
    begun = time.monotonic()
    phases = phase or (lambda name: nullcontext(lambda done, total: None))
    embed = _embedder(options)  # a wrong model is said before minutes are spent
    with phases("listing photos") as progress:
        listed = list_photos(
            source,
            multi_label=options.multi_label,
            image_column=options.image_column,
            label_column=options.label_column,
            progress=progress,
        )
    with phases("reading photos") as progress:
        scan = scan_photos(listed.photos, progress)
    photos, seeded = with_split(scan.photos)
    scan = Scan(photos, scan.facts, scan.thumbnails, scan.unreadable)
    found = _Found()
    if scan.unreadable:
        found.findings.append(_unreadable(scan))
    found.findings += class_findings(photos, listed.classes)
    found.findings += odd_findings(scan)
    with phases("comparing photos") as progress:
        groups = _copies(scan, found, seeded, progress)
    _by_embedding(scan, groups, embed, options, found, phases)
    order = list(TITLES)
    findings = sorted(found.findings, key=lambda one: (SEVERITIES.index(one.severity), order.index(one.kind)))
    kinds = {one.kind for one in findings}
    result = DataCheck(
        source=source,
        photos=photos,
        unreadable=scan.unreadable,
        classes=listed.classes,
        split_source="seeded" if seeded else listed.split_source,
        multi_label=options.multi_label,
        findings=findings,
        passed=[title for kind, title in TITLES.items() if kind not in kinds and kind not in found.not_checked],
        not_checked=[(TITLES[kind], reason) for kind, reason in found.not_checked.items()],
        seconds=time.monotonic() - begun,
        label_accuracy=found.label_accuracy,
    )
    return Checked(result, listed)


def _unreadable(scan: Scan) -> Finding:
    items = [Item((photo,), reason) for photo, reason in scan.unreadable]
    plural = "image that cannot" if len(items) == 1 else "images that cannot"
    summary = f"{len(items):,} {plural} be read"
    return Finding("unreadable", "serious", TITLES["unreadable"], summary, "Get them anew, or remove them.", items)


def _copies(scan: Scan, found: _Found, seeded: bool, progress: Progress) -> npt.NDArray[np.int64]:
    """Find copies of all kinds; returns the group of each image, copies in one."""
    count = len(scan.photos)
    exact = duplicates.same_content([one.checksum for one in scan.facts])
    same = duplicates.group_numbers(count, exact)
    pairs = duplicates.near_pairs(scan.thumbnails, same, progress)
    found.findings += copies.copy_findings(scan.photos, same, pairs, seeded)
    return duplicates.group_numbers(count, [*exact, *((one.first, one.second) for one in pairs)])


Embed = Callable[[Scan, Progress], npt.NDArray[np.float16]]


def _embedder(options: CheckOptions) -> Embed:
    if options.model is None:
        from cmtvision.quality.patches import patch_features

        return lambda scan, progress: patch_features(scan.thumbnails, options.seed, progress)
    from cmtvision.quality.model_features import ModelFeatures

    network = ModelFeatures(options.model, options.device)
    return lambda scan, progress: network([photo.path for photo in scan.photos], progress)


def _by_embedding(
    scan: Scan,
    groups: npt.NDArray[np.int64],
    embed: Embed,
    options: CheckOptions,
    found: _Found,
    phases: Phase,
) -> None:
    """Label errors, and images unlike their class."""
    names = sorted({photo.label for photo in scan.photos})
    number = {name: place for place, name in enumerate(names)}
    labels = np.array([number[photo.label] for photo in scan.photos], dtype=np.int64)
    large = np.flatnonzero(np.bincount(labels, minlength=len(names)) >= LEAST_PER_CLASS)
    reason = "an image may have several classes here" if options.multi_label else ""
    if not reason and len(large) < 2:
        reason = f"needs two classes of at least {LEAST_PER_CLASS} images"
    if reason:
        found.not_checked |= {"label-errors": reason, "unlike-class": reason}
        return
    usable = np.flatnonzero(np.isin(labels, large))
    chosen = Scan([scan.photos[i] for i in usable], [scan.facts[i] for i in usable], scan.thumbnails[usable], [])
    numbers = np.searchsorted(large, labels[usable])
    with phases("embedding photos") as progress:
        features = embed(chosen, progress)
    with phases("judging labels"):
        embeddings = reduced(features, _EMBEDDED, options.seed)
        unlike = unlike_their_class(embeddings, numbers, groups[usable])
        try:
            errors = find_label_errors(features, numbers, groups[usable], options.seed)
        except ConfigError:
            found.not_checked["label-errors"] = NEEDS_CLEANLAB
            errors = None
    shown: set[int] = set()
    if errors is not None:
        found.label_accuracy = errors.accuracy
        if len(errors.wrong):
            class_names = [names[number] for number in large]
            doubted = _label_errors(chosen, errors, class_names)
            shown = set(errors.wrong[: len(doubted.items)].tolist())
            found.findings.append(doubted)
    items = [
        Item((chosen.photos[place],), f"{score:.0f} deviations from the middle of its class", score)
        for place, score in unlike
        if place not in shown
    ]
    if items:
        plural = "image" if len(items) == 1 else "images"
        found.findings.append(
            Finding(
                "unlike-class",
                "note",
                TITLES["unlike-class"],
                f"{len(items):,} {plural} unlike the others of the class",
                "Look whether they belong here; rare views do.",
                items,
            )
        )


def _label_errors(scan: Scan, errors: LabelErrors, names: list[str]) -> Finding:
    items = []
    sure = errors.accuracy >= _SURE
    for place in errors.wrong[: None if sure else _DOUBTFUL].tolist():
        photo, suggested = scan.photos[place], names[int(errors.suggested[place])]
        text = f"labelled {photo.label} ({errors.given[place]:.1%} probable), looks like {suggested}"
        items.append(Item((photo,), text, float(1 - errors.given[place]), suggested))
    agrees = f"a classifier that agrees with {errors.accuracy:.0%} of all labels"
    if sure:
        summary = f"about {len(items):,} of {len(scan.photos):,} labels are probably wrong, to {agrees}"
        return Finding("label-errors", "warning", TITLES["label-errors"], summary, "Look at the first ones.", items)
    summary = f"the {len(items):,} most doubtful labels, to {agrees}, which is too few to believe it"
    advice = "Few of these are wrong; a trained run given with --model judges better."
    return Finding("label-errors", "note", TITLES["label-errors"], summary, advice, items)
