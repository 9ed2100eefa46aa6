"""Real images to start with: Fashion-MNIST (Zalando SE, MIT licence), written as a folder data set of PNG files.

The package carries the 10,000 test images, 28 x 28 pixels, ten classes. They are split 8,000/2,000 by a fixed seed;
with ``full`` the 60,000 training images are fetched and the 10,000 are held out, as the data set's authors intended.
"""

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from cmtvision.data.idx import read_idx
from cmtvision.data.user_cache import cache_folder
from cmtvision.data.whole_folder import below, check_target, move_into_place, partial_folder
from cmtvision.errors import DataError

CLASSES = (
    "t-shirt_top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle_boot",
)  # fmt: skip
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_SPLIT_SEED = 2017
_VAL_PER_CLASS = 200
MARK = "FASHION-MNIST-LICENSE.txt"
"""The file by which a folder of sample data is known as ours."""
_PNG_HEADER = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x1c\0\0\0\x1c\x08\0"  # 28 x 28 pixels, 8 bits, gray
Progress = Callable[[int, int], None]
Photos = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]  # (N, 28, 28) pixels, (N,) labels


@dataclass(frozen=True)
class SampleSummary:
    """What was written: the folder, images in each part, class names, and where the images came from."""

    directory: Path
    num_train: int
    num_val: int
    classes: tuple[str, ...]
    source: str


def write_sample_data(
    directory: str | os.PathLike[str],
    full: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    *,
    source: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> SampleSummary:
    """Write the images as train/<class>/NNNNN.png and val/<class>/NNNNN.png (the number is the place in the original).

    Args:
        directory: where to; it appears only when everything is written.
        full: 60,000 and 10,000 images instead of 8,000 and 2,000.
        overwrite: replace sample data written here before (never other files).
        progress: called as progress(done, total).
        source: for ``full``, the folder of the original .gz files; by default the Debian package
            dataset-fashion-mnist where it is installed, else torchvision's downloader.
        cache_dir: where a download is kept; by default cmtvision in the user's cache folder.

    Raises:
        DataError: the directory is not empty, the images cannot be fetched, the disk is full.
    """
    target = Path(directory)
    check_target(target, overwrite, "photos", _foreign)
    parts, origin = photos_in_parts(full, source, cache_dir)
    partial = partial_folder(target)
    try:
        _write(partial, parts, progress)
        (partial / MARK).write_bytes(licence())
        move_into_place(partial, target, _foreign)
    except OSError as error:
        raise DataError(f"{target}: the photos cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return SampleSummary(target, len(parts["train"][1]), len(parts["val"][1]), CLASSES, origin)


def photos_in_parts(
    full: bool = False,
    source: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> tuple[dict[str, tuple[Photos, npt.NDArray[np.int64]]], str]:
    """For 'train' and 'val' the images and the positions of those in the part; and where they came from.

    Raises:
        DataError: the images of ``full`` cannot be fetched.
    """
    test = _test_photos()
    if not full:
        return {part: (test, places) for part, places in _split(test[1]).items()}, "bundled"
    folder = Path(source) if source is not None else _originals(cache_dir)
    train = _photos(folder, "train", 60_000)
    return {"train": (train, np.arange(60_000)), "val": (test, np.arange(10_000))}, str(folder)


def licence() -> bytes:
    """The licence under which the images are published; it goes wherever they go."""
    return (resources.files("cmtvision.data") / "fashion_mnist" / "LICENSE").read_bytes()


def _split(labels: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.int64]]:
    """The positions of the bundled images in each part, sorted: the same number of each class is held out."""
    generator = np.random.Generator(np.random.PCG64(_SPLIT_SEED))
    chosen = [generator.permutation(np.flatnonzero(labels == label))[:_VAL_PER_CLASS] for label in range(len(CLASSES))]
    held_out = np.sort(np.concatenate(chosen))
    return {"train": np.setdiff1d(np.arange(len(labels)), held_out), "val": held_out}


def _foreign(folder: Path) -> str | None:
    """What ``write_sample_data`` did not write there: another name, a link, or a file that is not such an image."""
    labels = _test_photos()[1]
    files = {_name(part, labels[place], place) for part, places in _split(labels).items() for place in places.tolist()}
    full = any(int(file.stem) >= len(labels) for file in folder.glob(f"train/*/{'[0-9]' * 5}.png"))
    if full:
        files = {_name("val", label, place) for place, label in enumerate(labels)}
    folders = {"train", "val", *(f"{part}/{name}" for part in ("train", "val") for name in CLASSES)}
    classes = "|".join(map(re.escape, CLASSES))
    for name, item in below(folder):
        if item.is_symlink() or item.is_dir():
            ours = name in folders and not item.is_symlink()
        elif name == MARK:
            ours = True
        else:  # the labels of the original training images are not at hand: their names must be of the kind
            kind = full and re.fullmatch(rf"train/({classes})/[0-5][0-9]{{4}}\.png", name)
            ours = bool(name in files or kind) and _is_photo(item)
        if not ours:
            return f"it holds {name}"
    return None if (folder / MARK).is_file() else f"it has no {MARK}"


def _is_photo(file: Path) -> bool:
    if not file.is_file():
        return False
    with file.open("rb") as opened:
        return opened.read(len(_PNG_HEADER)) == _PNG_HEADER


def _name(part: str, label: int, place: int) -> str:
    return f"{part}/{CLASSES[label]}/{place:05d}.png"


def _write(folder: Path, parts: dict[str, tuple[Photos, npt.NDArray[np.int64]]], progress: Progress | None) -> None:
    total = sum(len(places) for _, places in parts.values())
    done = 0
    for part, ((images, labels), places) in parts.items():
        for name in CLASSES:
            (folder / part / name).mkdir(parents=True)
        for place in places.tolist():
            file = folder / _name(part, labels[place], place)
            Image.fromarray(images[place]).save(file, format="PNG", compress_level=1)
            done += 1
            if progress is not None and (done % 500 == 0 or done == total):
                progress(done, total)


def _test_photos() -> Photos:
    return _photos(resources.files("cmtvision.data") / "fashion_mnist", "t10k", 10_000)


def _photos(folder: Path | Traversable, part: str, count: int) -> Photos:
    images = read_idx(folder / f"{part}-images-idx3-ubyte.gz", (count, 28, 28))
    labels = read_idx(folder / f"{part}-labels-idx1-ubyte.gz", (count,))
    if labels.max() >= len(CLASSES):
        raise DataError(f"{folder}: a label of {part} is {labels.max()}, expected 0 to {len(CLASSES) - 1}")
    return images, labels


def _originals(cache_dir: str | os.PathLike[str] | None) -> Path:
    """The folder of the original files, downloaded where the Debian package is not installed."""
    if (DEBIAN_FOLDER / "train-images-idx3-ubyte.gz").is_file():
        return DEBIAN_FOLDER
    cache = Path(cache_dir) if cache_dir is not None else cache_folder()
    folder = cache / "FashionMNIST" / "raw"
    if (folder / "train-images-idx3-ubyte.gz").is_file() and (folder / "train-labels-idx1-ubyte.gz").is_file():
        return folder
    from torchvision.datasets import FashionMNIST

    try:
        FashionMNIST(str(cache), train=True, download=True)
    except Exception as error:  # whatever the network does: urllib, sockets, torchvision's own checks
        raise DataError(
            f"Fashion-MNIST cannot be downloaded ({' '.join(str(error).split())}); connect to the internet, or install "
            "the Debian package dataset-fashion-mnist"
        ) from None
    return folder
