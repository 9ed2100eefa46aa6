"""What copies mean: leakage where they are in two parts, contradiction where their labels differ, else waste.

A pair of near copies is an item of its own, since the similarity of copies of copies may wear thin; exact copies are
one item a group.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from cmtvision.quality.classes import named
from cmtvision.quality.duplicates import Pair
from cmtvision.quality.findings import Finding, Item
from cmtvision.quality.listing import Photo

EXACT, NEAR = "the same file", "nearly the same picture"
_SURE = 0.97
"""Likeness of a near copy, from which the picture itself is hardly another one: below, two products may look alike."""


def copy_findings(
    photos: Sequence[Photo], same: npt.NDArray[np.int64], pairs: Sequence[Pair], seeded: bool
) -> Iterator[Finding]:
    """Findings about copies, each group or pair in one of them: contradictory labels, then leakage, then duplicates.

    Args:
        photos: N images.
        same: (N,), the group of each by its file's content.
        pairs: of images that show the same, with different content.
        seeded: the parts are what training would make of data without any.
    """
    groups = _groups(same)
    exact = [Item(tuple(photos[i] for i in places), EXACT, 1.0) for places in groups]
    members = {int(same[places[0]]): [photos[i] for i in places] for places in groups}
    near = []
    for one in pairs:
        alternatives = [members.get(place, [photos[place]]) for place in (one.first, one.second)]
        near.append(Item(_told(*alternatives), f"{NEAR} ({1 - one.remainder:.0%} alike)", 1 - one.remainder))
    contradictory = [item for item in [*exact, *near] if len({one.labels for one in item.photos}) > 1]
    agreed = [[item for item in items if len({one.labels for one in item.photos}) == 1] for items in (exact, near)]
    leaking = [item for items in (exact, near) for item in items if _leaks(item)]
    if leaking:
        yield _leakage(leaking, seeded)
    if contradictory:
        images = {photo for item in contradictory for photo in item.photos}
        yield Finding(
            "contradictory-labels",
            "serious" if any(item.score >= _SURE for item in contradictory) else "warning",
            "contradictory labels of copies",
            f"{len(images):,} images look the same as another with a different label",
            "Decide on one label for each, if they are copies; --fix sets them aside.",
            contradictory,
        )
    for kind, title, items in zip(
        ("exact-duplicates", "near-duplicates"), ("exact duplicates", "near duplicates"), agreed, strict=True
    ):
        inside = [item for item in items if not _leaks(item)]
        if inside:
            extra = sum(len(item.photos) - 1 for item in inside)
            what = "are the same file as another" if kind == "exact-duplicates" else "show the same as another"
            verb = what if extra != 1 else what.replace("are ", "is ", 1).replace("show ", "shows ", 1)
            yield Finding(
                kind,
                "warning",
                title,
                f"{extra:,} {'image' if extra == 1 else 'images'} {verb} in the same part",
                "They count double in training and in figures; keep one of each.",
                inside,
            )


def _told(first: Sequence[Photo], second: Sequence[Photo]) -> tuple[Photo, Photo]:
    """Of two groups of the same files that show the same, an image each: of different parts where there are such."""
    for part in ("test", "val", "train"):
        here, there = (next((one for one in group if one.part == part), None) for group in (first, second))
        other_here = next((one for one in first if one.part != part), None)
        other_there = next((one for one in second if one.part != part), None)
        if here is not None and other_there is not None:
            return here, other_there
        if there is not None and other_here is not None:
            return other_here, there
    return first[0], second[0]


def _leaks(item: Item) -> bool:
    return len({photo.part for photo in item.photos}) > 1


def _leakage(items: list[Item], seeded: bool) -> Finding:
    held_out = {photo for item in items for photo in item.photos if photo.part != "train"}
    trained = {photo for item in items for photo in item.photos if photo.part == "train"}
    number = len(trained) or len(held_out)
    who = "training" if trained else "validation"
    plural, verb = ("image", "is") if number == 1 else ("images", "are")
    where = "would also be held out, as training splits this data by seed" if seeded else f"{verb} also held out"
    kinds = [f"{sum(item.text.startswith(text) for item in items):,} {text}" for text in (EXACT, NEAR)]
    return Finding(
        "leakage",
        "serious",
        "leakage between training and held-out images",
        f"{number:,} {who} {plural} {where} ({named([one for one in kinds if not one.startswith('0 ')])})",
        "Figures on such images are worthless; --fix leaves the training ones out.",
        items,
    )


def _groups(same: npt.NDArray[np.int64]) -> list[list[int]]:
    """Positions of the members of every group of more than one."""
    members: dict[int, list[int]] = defaultdict(list)
    for place, number in enumerate(same.tolist()):
        members[number].append(place)
    return [places for places in members.values() if len(places) > 1]
