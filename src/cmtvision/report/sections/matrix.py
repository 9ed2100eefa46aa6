"""The confusion matrix for any number of classes: a table where it can be read, else a map, groups and a close-up.

With many classes, those that are confused with each other stand side by side: average linkage (scipy) on the distance
1 - (share of i taken for j + share of j taken for i) / 2. Then confusion is near the diagonal, in blocks, and a block
can be named. Beyond MAX_CLUSTERED classes the distances would fill the memory; the reverse Cuthill-McKee order of the
sparse matrix brings them together too.

C classes.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from cmtvision.artefact.confusion import Confusion
from cmtvision.report.pictures import address

MAX_TABLE = 30
MAX_CLUSTERED = 2000
MAX_SIDE = 1000  # pixels of a map
MAX_GROUP = 15
_GROUPS = 12
_CUT = 0.97  # of the distance: classes that are mistaken for each other in 3% of their images belong together
# of the page's colours; a map is one picture for light and dark, so it is drawn in tones that stand out on both
_RIGHT, _WRONG = (47, 128, 196), (214, 116, 20)


class Table(NamedTuple):
    """A part of the matrix as a table: rows of (class, [(count, share of the class's images)]), in ``names``' order."""

    names: list[str]
    rows: list[tuple[str, list[tuple[int, float]]]]


class ClassGroup(NamedTuple):
    """Classes that are confused with each other, the mistakes among them, and how many images they have."""

    names: list[str]
    mistakes: int
    images: int


class Matrix(NamedTuple):
    """The section.

    Attributes:
        table: the whole matrix, or a close-up of the group with most mistakes; None where there is neither.
        picture: the map as a data: address, '' where the table is whole.
        side: its pixels.
        groups: the groups with most mistakes, where there is a map.
        within: the share of all mistakes that lie within a group.
    """

    table: Table | None
    picture: str = ""
    side: int = 0
    groups: tuple[ClassGroup, ...] = ()
    within: float = 0.0


def matrix(classes: list[str], confusion: Confusion) -> Matrix:
    """The section of a confusion matrix."""
    if len(classes) <= MAX_TABLE:
        return Matrix(_table(classes, confusion, range(len(classes))))
    order, members = similar_order(confusion)
    side, pixels = _map(confusion, order)
    groups, within = _groups(classes, confusion, members)
    closest = groups[0][0] if groups else []
    return Matrix(
        _table(classes, confusion, closest) if closest else None,
        address(Image.fromarray(pixels, "RGBA")) if side else "",
        side,
        tuple(group for _, group in groups),
        within,
    )


def similar_order(confusion: Confusion) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """An order of the classes in which confused ones are neighbours, (C,), and the number of each class's group, (C,).

    Beyond MAX_CLUSTERED classes there are no groups: each class is one of its own.
    """
    from scipy.cluster.hierarchy import fcluster, leaves_list, linkage
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import reverse_cuthill_mckee

    count = confusion.num_classes
    wrong = confusion.true != confusion.predicted
    places = confusion.true[wrong], confusion.predicted[wrong]
    shares = confusion.count[wrong] / np.maximum(confusion.images[places[0]], 1)
    sparse = coo_matrix((shares, places), (count, count)).tocsr()
    mutual = (sparse + sparse.T) / 2
    if count > MAX_CLUSTERED:
        order = np.asarray(reverse_cuthill_mckee(mutual.tocsr(), symmetric_mode=True), np.int64)
        return order, np.arange(count)
    distance = 1 - mutual.toarray()
    upper = distance[np.triu_indices(count, 1)]
    tree = linkage(upper, "average")
    members = fcluster(tree, _CUT, "distance")
    return np.asarray(leaves_list(tree), np.int64), np.asarray(members, np.int64)


def _table(classes: list[str], confusion: Confusion, chosen: "range | list[int]") -> Table:
    places = {number: place for place, number in enumerate(chosen)}
    counts = np.zeros((len(places), len(places)), np.int64)
    for true, said, count in zip(
        *(c.tolist() for c in (confusion.true, confusion.predicted, confusion.count)), strict=True
    ):
        if true in places and said in places:
            counts[places[true], places[said]] = count
    sums = np.maximum(confusion.images[list(places)], 1)
    names = [classes[number] for number in places]
    rows = [
        (name, [(int(count), float(count / total)) for count in row])
        for name, row, total in zip(names, counts, sums.tolist(), strict=True)
    ]
    return Table(names, rows)


def _map(confusion: Confusion, order: npt.NDArray[np.int64]) -> tuple[int, npt.NDArray[np.uint8]]:
    """The matrix in that order as a picture (side, side, RGBA): a pixel is a class, or several beyond MAX_SIDE."""
    count = confusion.num_classes
    side = min(count, MAX_SIDE)
    rank = np.empty(count, np.int64)
    rank[order] = np.arange(count)
    place = rank * side // count  # of each class
    wrong = np.zeros((side, side))
    right = np.zeros(side)
    share = confusion.count / np.maximum(confusion.images[confusion.true], 1)
    same = confusion.true == confusion.predicted
    np.maximum.at(wrong, (place[confusion.true[~same]], place[confusion.predicted[~same]]), share[~same])
    np.maximum.at(right, place[confusion.true[same]], share[same])
    pixels = np.zeros((side, side, 4), np.uint8)
    # the square root lets a confusion of 1% be seen beside one of 50%
    pixels[..., :3], pixels[..., 3] = _WRONG, np.where(wrong > 0, 110 + 145 * np.sqrt(wrong), 0)
    diagonal = np.arange(side)
    pixels[diagonal, diagonal, :3] = _RIGHT
    pixels[diagonal, diagonal, 3] = np.where(right > 0, 40 + 215 * right, 0)
    return side, pixels


def _groups(
    classes: list[str], confusion: Confusion, members: npt.NDArray[np.int64]
) -> tuple[list[tuple[list[int], ClassGroup]], float]:
    """The groups of at least two classes with most mistakes among them, and the share of all mistakes in any group."""
    wrong = confusion.true != confusion.predicted
    true, said, count = confusion.true[wrong], confusion.predicted[wrong], confusion.count[wrong]
    inside = members[true] == members[said]
    mistakes = np.bincount(members[true[inside]], weights=count[inside], minlength=int(members.max()) + 1)
    images = confusion.images
    found = []
    for number in np.argsort(-mistakes, kind="stable")[:_GROUPS].tolist():
        own = np.flatnonzero(members == number)
        if not mistakes[number] or len(own) < 2:
            break
        involved = np.bincount(
            np.r_[true[inside], said[inside]], weights=np.r_[count[inside], count[inside]], minlength=len(classes)
        )
        chosen = sorted(sorted(own.tolist(), key=lambda one: -involved[one])[:MAX_GROUP])
        total = int(images[own].sum())
        found.append((chosen, ClassGroup([classes[one] for one in own.tolist()], int(mistakes[number]), total)))
    return found, float(count[inside].sum() / max(1, count.sum()))
