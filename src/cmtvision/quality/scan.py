"""One look at every image: is it whole, what is its format, and a thumbnail of 32 x 32 pixels for all later checks.

Each file is read and decoded once. What stays in memory of an image is a thumbnail of 3 KB, a checksum and a few facts,
so that 60,000 images need about 200 MB.
"""

import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from cmtvision.data import MAX_BYTES, StoredPhoto, open_image
from cmtvision.data.decode import readable_formats
from cmtvision.errors import DataError
from cmtvision.machine import usable_processors
from cmtvision.quality.listing import Photo

SIDE = 32
"""Side of the thumbnails in pixels."""
_DECODED = 4 * SIDE  # JPEG files are decoded at a fraction of their size, at least this
_AHEAD = 256  # images that are read before they are asked for
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Facts:
    """What a file says of itself.

    Attributes:
        format: 'JPEG', 'PNG' ...; '' where the store gave pixels instead of a file.
        mode: Pillow's word for the pixels: 'RGB', 'L', 'I;16', 'CMYK' ...
        width, height: in pixels as stored, before any rotation by EXIF.
        frames: 1, or more for an animation.
        checksum: BLAKE2b of the file's bytes, 16 bytes.
    """

    format: str
    mode: str
    width: int
    height: int
    frames: int
    checksum: bytes


@dataclass(frozen=True)
class Scan:
    """All images that can be read.

    Attributes:
        photos: N of them, in the order in which they were listed.
        facts: of each.
        thumbnails: (N, 32, 32, 3) uint8 RGB, upright, squeezed to a square.
        unreadable: the others, each with the reason.
    """

    photos: list[Photo]
    facts: list[Facts]
    thumbnails: npt.NDArray[np.uint8]
    unreadable: list[tuple[Photo, str]]


def scan_photos(photos: Sequence[Photo], progress: Progress | None = None) -> Scan:
    """Read and decode every image once.

    Args:
        photos: to look at.
        progress: called as progress(done, total).
    """
    good: list[Photo] = []
    facts: list[Facts] = []
    unreadable: list[tuple[Photo, str]] = []
    thumbnails = np.empty((len(photos), SIDE, SIDE, 3), dtype=np.uint8)
    with warnings.catch_warnings():  # Pillow's, about oddities of files that decode
        warnings.simplefilter("ignore")
        for done, (photo, found) in enumerate(zip(photos, _each(photos), strict=True), start=1):
            if isinstance(found, str):
                unreadable.append((photo, found))
            else:
                thumbnails[len(good)] = found[1]
                good.append(photo)
                facts.append(found[0])
            if progress is not None and (done % 100 == 0 or done == len(photos)):
                progress(done, len(photos))
    return Scan(good, facts, thumbnails[: len(good)], unreadable)


def _each(photos: Sequence[Photo]) -> Iterator[tuple[Facts, npt.NDArray[np.uint8]] | str]:
    """What is seen of each image, in order; only a few images are read ahead."""
    waiting = iter(photos)
    with ThreadPoolExecutor(min(8, usable_processors())) as pool:
        while chunk := list(islice(waiting, _AHEAD)):
            yield from pool.map(_look, chunk)


def _look(photo: Photo) -> tuple[Facts, npt.NDArray[np.uint8]] | str:
    """One image's facts and thumbnail, or why it cannot be read."""
    try:
        content = _content(photo)
        picture = open_image(content, name=str(photo.path), short_side=_DECODED)
        facts = _facts(content)
    except DataError as error:
        return str(error).removeprefix(f"{photo.path}: ")
    small = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return facts, np.asarray(small)


def _content(photo: Photo) -> bytes | Image.Image:
    """The bytes of a file, or an image of a store that has no files.

    Raises:
        DataError: it cannot be read, or is too large.
    """
    path = photo.path
    if isinstance(path, StoredPhoto):
        return path.read(MAX_BYTES)
    if not Path(path).is_file() or path.stat().st_size > MAX_BYTES:
        open_image(path)  # says what is the matter
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None


def _facts(content: bytes | Image.Image) -> Facts:
    if isinstance(content, Image.Image):
        pixels = blake2b(content.tobytes(), digest_size=16).digest()
        return Facts("", content.mode, *content.size, 1, pixels)
    checksum = blake2b(content, digest_size=16).digest()
    with Image.open(io.BytesIO(content), formats=readable_formats()) as picture:
        mode = "16-bit" if picture.mode.startswith("I") else picture.mode
        frames = getattr(picture, "n_frames", 1) if picture.format != "MPO" else 1  # a camera's preview is no animation
        return Facts(picture.format or "", mode, *picture.size, frames, checksum)
