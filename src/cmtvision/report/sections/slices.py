"""Accuracy on parts of the images: by size, by brightness, by any column of a table.

A column of numbers is cut into quarters of equal number of images, one of words into its values. A part is called
worse (or better) than the rest where Fisher's exact test says so at 5%, divided by the number of parts looked at:
among twenty parts, one would look odd by chance.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cmtvision.report.answers import Flags
from cmtvision.report.intervals import wilson_interval

FEW_IMAGES = 30
_MAX_VALUES = 12
_NUMBER_VALUES = 8  # a column with fewer different numbers is one of names: of cameras, years, folds
_QUARTERS = 4
_LEVEL = 0.05


class Column(NamedTuple):
    """A property of images: its name, its value for each image (None where unknown), and its unit ('' for none)."""

    name: str
    values: Sequence[str | float | None]
    unit: str = ""


class Slice(NamedTuple):
    """A part of the images: how many, how many were recognised, the share with its interval, and a remark."""

    name: str
    images: int
    correct: int
    share: float
    low: float
    high: float
    remark: str


class Slices(NamedTuple):
    """A property's parts, or a sentence on why there are none."""

    name: str
    rows: list[Slice]
    note: str


def slices_of(columns: Sequence[Column], right: Flags) -> list[Slices]:
    """The parts of each column, of answers that were right or not, (N,)."""
    cut = [(column, _parts(column)) for column in columns]
    tests = max(1, sum(len(parts) for _, parts in cut if len(parts) > 1))
    return [_section(column, parts, right, _LEVEL / tests) for column, parts in cut]


def _section(column: Column, parts: list[tuple[str, npt.NDArray[np.bool_]]], right: Flags, level: float) -> Slices:
    unknown = sum(value is None for value in column.values)
    notes = [f"{unknown:,} of the images have no value."] if unknown and parts else []
    if not parts:
        return Slices(column.name, [], "no image has a value.")
    if len(parts) == 1:
        return Slices(column.name, [], " ".join([f"the same for all images ({parts[0][0]}).", *notes]))
    rows = []
    known = np.logical_or.reduce([inside for _, inside in parts])
    for name, inside in parts:
        images, correct = int(inside.sum()), int(right[inside].sum())
        low, high = wilson_interval(correct, images)
        others = known & ~inside
        remark = _remark(images, correct, int(others.sum()), int(right[others].sum()), level)
        rows.append(Slice(name, images, correct, correct / images, low, high, remark))
    return Slices(column.name, rows, " ".join(notes))


def _remark(images: int, correct: int, others: int, others_correct: int, level: float) -> str:
    from scipy.stats import fisher_exact

    said = []
    table = [[correct, images - correct], [others_correct, others - others_correct]]
    if others and float(fisher_exact(table).pvalue) < level:
        said.append("worse than the rest" if correct / images < others_correct / others else "better than the rest")
    if images < FEW_IMAGES:
        said.append("few images")
    return ", ".join(said)


def _parts(column: Column) -> list[tuple[str, npt.NDArray[np.bool_]]]:
    """The parts of a column that hold an image: a name, and which images are in it, (N,)."""
    numbers = [_number(value) for value in column.values]
    known = [value for value in column.values if value is not None]
    are_numbers = all(
        number is not None for number, value in zip(numbers, column.values, strict=True) if value is not None
    )
    if known and are_numbers and len(set(known)) > _NUMBER_VALUES:
        return _quarters(np.array([np.nan if one is None else one for one in numbers], np.float64), column.unit)
    words = np.array(["" if value is None else _as_word(value) for value in column.values], dtype=object)
    there = np.array([value is not None for value in column.values])
    counts = Counter(words[there].tolist())
    common = [word for word, _ in counts.most_common(_MAX_VALUES)]
    order = sorted(common, key=_sorting) if are_numbers else common
    parts = [(f"{word}{column.unit}", there & (words == word)) for word in order]
    rest = there & ~np.isin(words.astype(str), common)
    return [*parts, *([(f"{len(counts) - len(common):,} other values", rest)] if rest.any() else [])]


def _quarters(numbers: npt.NDArray[np.float64], unit: str) -> list[tuple[str, npt.NDArray[np.bool_]]]:
    known = ~np.isnan(numbers)
    cuts = np.unique(np.quantile(numbers[known], np.linspace(0, 1, _QUARTERS + 1)[1:-1]))
    whole = bool((numbers[known] == np.round(numbers[known])).all())
    place = np.searchsorted(cuts, numbers, side="left")  # of equal values all are in the part that ends with them
    parts = []
    for part in range(len(cuts) + 1):
        inside = known & (place == part)
        if inside.any():
            low, high = (_shown(float(end), whole) for end in (numbers[inside].min(), numbers[inside].max()))
            parts.append((f"{low} to {high}{unit}" if low != high else f"{low}{unit}", inside))
    return parts


def _number(value: str | float | None) -> float | None:
    try:
        number = float(value) if value is not None else None
    except ValueError:
        return None
    return number if number is not None and np.isfinite(number) else None


def _as_word(value: str | float) -> str:
    return value if isinstance(value, str) else _shown(value, value == round(value))


def _sorting(word: str) -> float:
    return float(word.replace(",", ""))


def _shown(value: float, whole: bool) -> str:
    return f"{value:,.0f}" if whole else f"{value:.3g}"
