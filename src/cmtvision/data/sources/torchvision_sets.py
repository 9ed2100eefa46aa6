"""torchvision's classification sets: ``torchvision:NAME``, downloaded into the user's cache folder, or
``torchvision:NAME:FOLDER`` where they are already. Parts are those that the sets come with.
"""

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from os.path import relpath
from pathlib import Path
from typing import Any, TypeAlias

from PIL import Image

from cmtvision.data.listing.class_folders import Entry, Listing
from cmtvision.data.listing.labels import resolve
from cmtvision.data.photos import PhotoPath, StoredPhoto
from cmtvision.data.user_cache import cache_folder
from cmtvision.errors import DataError

_Arguments: TypeAlias = tuple[tuple[str, Any], ...]
_Choice: TypeAlias = tuple[_Arguments, ...]


def _splits(train: str, val: str | None = None, test: str | None = None) -> tuple[_Choice, _Choice, _Choice]:
    return tuple(() if word is None else ((("split", word),),) for word in (train, val, test))  # type: ignore[return-value]


SETS: dict[str, tuple[_Choice, _Choice, _Choice]] = {
    **dict.fromkeys(
        ("MNIST", "FashionMNIST", "KMNIST", "QMNIST", "USPS", "CIFAR10", "CIFAR100"),
        (((("train", True),),), (), ((("train", False),),)),
    ),
    **dict.fromkeys(("SVHN", "STL10", "Food101", "StanfordCars", "GTSRB"), _splits("train", test="test")),
    "OxfordIIITPet": _splits("trainval", test="test"),
    **dict.fromkeys(
        ("Flowers102", "DTD", "FGVCAircraft", "RenderedSST2", "PCAM"), _splits("train", val="val", test="test")
    ),
    "Country211": _splits("train", val="valid", test="test"),
    **dict.fromkeys(("ImageNet", "Imagenette"), _splits("train", val="val")),  # what is published is measured on val
    **dict.fromkeys(("EuroSAT", "Caltech101", "Caltech256", "SUN397"), (((),), (), ())),
}
"""Name -> the arguments that give the photos of train, val and test; none for a part that a set does not have."""
_NO_DOWNLOAD = ("ImageNet", "StanfordCars")  # torchvision cannot fetch these any more
_FILE_LISTS = ("_image_files", "_images", "_samples", "samples")
_LABEL_LISTS = ("targets", "labels", "_labels", "y")


@dataclass(frozen=True)
class TorchvisionStore:
    """A set that holds its images in memory; loaded again in each process that is not a fork."""

    name: str
    root: str
    arguments: _Arguments

    def read(self, place: int, size: int) -> Image.Image:
        """The image of a row."""
        picture: Image.Image = _load(self.name, self.root, self.arguments)[place][0]
        return picture

    def __str__(self) -> str:
        return f"torchvision:{self.name}"


def list_torchvision(source: str, *, fixed: Sequence[str] | None) -> Listing:
    """The images of a set, as files where it has files.

    Raises:
        DataError: no such set, or it can be neither found nor downloaded.
    """
    name, _, folder = source.removeprefix("torchvision:").partition(":")
    if name not in SETS:
        lower = {known.lower(): known for known in SETS}
        close = get_close_matches(name.lower(), lower, n=1, cutoff=0.5)
        hint = f"did you mean {lower[close[0]]}?" if close else f"known are {', '.join(sorted(SETS))}"
        raise DataError(f"{source}: no classification set of torchvision; {hint}")
    root = str(Path(folder).resolve()) if folder else str(cache_folder())
    parts = dict(zip(("train", "val", "test"), SETS[name], strict=True))
    listing = Listing(split_source="folders" if parts["val"] or parts["test"] else "none", trusted=True)
    raw: list[Any] = []
    classes: Any = None
    for part, choices in parts.items():
        for arguments in choices:
            found = _load(name, root, arguments)
            classes = classes or getattr(found, "classes", None)
            raw += _labels(found)
            word = "-".join(str(value) for _, value in arguments) or "all"
            for photo in _photos(found, TorchvisionStore(name, root, arguments), f"{name}-{word}"):
                relative = photo.name if isinstance(photo, StoredPhoto) else Path(relpath(photo, root)).as_posix()
                listing.entries.append(Entry(photo, relative, (), part))
    places = [f"photo {entry.relative}" for entry in listing.entries]
    labels, listing.names = resolve(raw, places, names=_names(classes), fixed=fixed, multi_label=False, source=source)
    listing.entries = [entry._replace(labels=one) for entry, one in zip(listing.entries, labels, strict=True)]
    return listing


@lru_cache(maxsize=4)
def _load(name: str, root: str, arguments: _Arguments) -> Any:
    from torchvision import datasets

    kind = getattr(datasets, name)
    try:
        with redirect_stdout(sys.stderr):  # stdout is for results, and some sets greet there
            return kind(root, **dict(arguments), **({} if name in _NO_DOWNLOAD else {"download": True}))
    except Exception as error:  # whatever the network does, and each set's own checks
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"torchvision:{name}: not in {root}, and cannot be downloaded ({reason[:300]}); connect to the "
                        f"internet, or give its folder: torchvision:{name}:FOLDER") from None  # fmt: skip


def _photos(found: Any, store: TorchvisionStore, prefix: str) -> list[PhotoPath]:
    """Files where the set is made of files, else rows of it."""
    for attribute in _FILE_LISTS:
        rows = getattr(found, attribute, None)
        if isinstance(rows, (list, tuple)) and rows and len(rows) == len(found):
            first = rows[0][0] if isinstance(rows[0], tuple) else rows[0]
            if isinstance(first, (str, Path)):
                return [Path(row[0] if isinstance(row, tuple) else row) for row in rows]
    return [StoredPhoto(store, f"{prefix}/{row:08d}", row) for row in range(len(found))]


def _labels(found: Any) -> list[Any]:
    for attribute in _LABEL_LISTS:
        labels = getattr(found, attribute, None)
        if labels is not None and len(labels) == len(found):
            return list(labels.tolist() if hasattr(labels, "tolist") else labels)
    for attribute in _FILE_LISTS:
        rows = getattr(found, attribute, None)
        if isinstance(rows, (list, tuple)) and rows and isinstance(rows[0], tuple):
            return [row[1] for row in rows]
    return [found[row][1] for row in range(len(found))]


def _names(classes: Any) -> list[str] | None:
    """Class names in the order of their numbers; ImageNet gives several words for one class."""
    if not classes:
        return None
    return [name if isinstance(name, str) else ", ".join(name) for name in classes]
