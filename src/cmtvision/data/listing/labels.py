"""Labels as data has them (names, class numbers, lists of either) become class names."""

import operator
from collections.abc import Sequence
from typing import Any

from cmtvision.errors import DataError

Labels = tuple[str, ...]


def from_text(text: str) -> Labels:
    """Class names joined by '|', sorted and once each; '' is none."""
    return tuple(sorted({part.strip() for part in text.split("|")} - {""}))


def resolve(
    raw: Sequence[Any],
    places: Sequence[str],
    *,
    names: Sequence[str] | None,
    fixed: Sequence[str] | None,
    multi_label: bool,
    source: str,
) -> tuple[list[Labels], list[str] | None]:
    """Turn labels into class names.

    Args:
        raw: for each image a name, a class number, or with multi_label a list of either or text joined by '|'.
        places: for each image, its name in an error message.
        names: the names of class numbers, if the data declares them.
        fixed: a trained model's classes; numbers without names are taken as names among them, else as positions.

    Returns:
        The class names of each image, and the declared order of classes: ``names``, or the numbers that occur, in
        numerical order; None if labels are names.

    Raises:
        DataError: a missing label, a number outside the classes, several labels without multi_label.
    """
    found = [_as_list(value, multi_label, source, place) for value, place in zip(raw, places, strict=True)]
    numbers = {item for items in found for item in items if isinstance(item, int)}
    if not numbers:
        return [tuple(sorted({str(item) for item in items})) for items in found], None if names is None else list(names)
    word = list(names) if names is not None else None
    if word is None and fixed is not None and not {str(number) for number in numbers} <= set(fixed):
        word = list(fixed)
    if word is None:
        text = {number: str(number) for number in numbers}
    else:
        for items, place in zip(found, places, strict=True):
            for item in items:
                if isinstance(item, int) and not 0 <= item < len(word):
                    raise DataError(f"{source}: label {item} of {place} is outside the {len(word)} classes "
                                    f"(0 to {len(word) - 1}); correct the label or the list of classes")  # fmt: skip
        text = {number: word[number] for number in numbers}
    mixed = any(isinstance(item, str) for items in found for item in items)
    order = list(names) if names is not None else None if mixed else [text[number] for number in sorted(numbers)]
    named = [tuple(sorted({text[item] if isinstance(item, int) else item for item in items})) for items in found]
    return named, order


def _as_list(value: Any, multi_label: bool, source: str, place: str) -> list[int | str]:
    if multi_label and isinstance(value, str):
        return list(from_text(value))
    if isinstance(value, (list, tuple)) or (hasattr(value, "tolist") and getattr(value, "ndim", 0) == 1):
        if not multi_label:
            raise DataError(f"{source}: {place} has a list of labels; set data.multi_label=true")
        return [_one(item, source, place) for item in value]
    return [_one(value, source, place)]


def _one(value: Any, source: str, place: str) -> int | str:
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    if isinstance(value, str) and value.strip():
        return value.strip()
    try:
        return operator.index(value)
    except TypeError:
        what = "no label" if value is None or value == "" else f"label {value!r}, neither a name nor a class number"
        raise DataError(f"{source}: {place} has {what}") from None
