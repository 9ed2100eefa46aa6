"""What class sizes alone tell: no image to train on, very few, or many more of one class than of another."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from cmtvision.quality.findings import Finding, Item
from cmtvision.quality.listing import Photo

TINY = 10
"""Training images of a class, below which it is called tiny."""
IMBALANCE = 10.0
"""How many times as many training images the largest class has as the smallest, from which on it is said."""
_NAMED = 3


def class_findings(photos: Sequence[Photo], classes: Sequence[str]) -> Iterator[Finding]:
    """Findings about class sizes.

    Args:
        photos: those that can be read.
        classes: class names, also of classes without an image.
    """
    counts = Counter(name for photo in photos if photo.part == "train" for name in photo.labels)
    if len(classes) < 2:
        only = f"the only class is {classes[0]!r}" if classes else "no image has a class"
        yield Finding("one-class", "serious", "a single class", only, "A classifier needs at least two classes.",
                      [Item((), name) for name in classes])  # fmt: skip
    empty = [name for name in classes if not counts[name]]
    if empty:
        yield Finding(
            "empty-classes",
            "serious",
            "classes without a training image",
            f"{_counted(len(empty), 'class', 'classes')} without a readable training image: {named(empty)}",
            "Add training images, or remove the class.",
            [Item((), name) for name in empty],
        )
    tiny = tiny_classes({name: counts[name] for name in classes})
    if tiny:
        yield Finding(
            "tiny-classes",
            "warning",
            "tiny classes",
            tiny_summary(tiny),
            "Such classes are hardly learned, and their accuracy is hardly known; add images.",
            [Item((), f"{name}: {_counted(number, 'training image')}", -number) for name, number in tiny],
        )
    ratio = imbalance(counts)
    if ratio >= IMBALANCE:
        yield Finding(
            "imbalance",
            "warning",
            "class imbalance",
            imbalance_summary(counts),
            "Consider --set data.class_balance=sampling or loss, and look at recall per class rather than at accuracy.",
            [Item((), f"{name}: {number:,}", -number) for name, number in counts.most_common()],
        )


def tiny_classes(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Classes with some training images, but fewer than ``TINY``; the smallest first."""
    return sorted(((name, number) for name, number in counts.items() if 0 < number < TINY), key=lambda one: one[1])


def tiny_summary(tiny: Sequence[tuple[str, int]]) -> str:
    """Tiny classes in one sentence."""
    shown = named([f"{name} ({number})" for name, number in tiny])
    return f"{_counted(len(tiny), 'class', 'classes')} with fewer than {TINY} training images: {shown}"


def imbalance(counts: Mapping[str, int]) -> float:
    """The largest class's images by the smallest's; 1 without any."""
    sizes = [number for number in counts.values() if number]
    return max(sizes) / min(sizes) if sizes else 1.0


def imbalance_summary(counts: Mapping[str, int]) -> str:
    """An imbalance in one sentence."""
    sizes = {name: number for name, number in counts.items() if number}
    most, least = max(sizes, key=sizes.__getitem__), min(sizes, key=sizes.__getitem__)
    return (
        f"{most} has {imbalance(sizes):.0f} times as many training images as {least} "
        f"({sizes[most]:,} and {sizes[least]:,})"
    )


def named(names: Sequence[str], most: int = _NAMED) -> str:
    """The first names of a list."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _counted(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"
