"""Pictures for a page: small copies of images as data: addresses, and what a model said of each."""

import base64
import io
from collections.abc import Iterable
from typing import NamedTuple

from PIL import Image

from cmtvision.data import open_image
from cmtvision.data.photos import PhotoPath
from cmtvision.errors import DataError

THUMBNAIL = 104  # pixels, the longer side
SMALL = 64  # pixels; smaller pictures are shown enlarged, with their pixels visible


class Answer(NamedTuple):
    """One image and the model's prediction for it; probabilities are within 0..1.

    Where images have several labels, both are joined by ', ', and ``probability`` is how sure the deciding statement
    is (see ``answers``); ``true_probability`` is then None.
    """

    path: PhotoPath
    true: str
    predicted: str
    probability: float
    true_probability: float | None


class Card(NamedTuple):
    """One image of the page: what the model said, its picture as a data: address ('' where it cannot be read), and
    where the model looked, drawn over what it saw ('' where that is not known).
    """

    answer: Answer
    picture: str
    width: int
    height: int
    looked: str = ""


class Group(NamedTuple):
    """A row of pictures with its heading, and a sentence on why these."""

    title: str
    cards: list[Card]
    why: str = ""


def cards_of(seen: Iterable[Answer], looked: Iterable[str] | None = None) -> list[Card]:
    """The cards of some images, with maps of where the model looked if given, one for each."""
    ones = list(seen)
    maps = list(looked) if looked is not None else [""] * len(ones)
    return [Card(one, *thumbnail(one.path), drawn) for one, drawn in zip(ones, maps, strict=True)]


def thumbnail(path: PhotoPath) -> tuple[str, int, int]:
    """A small copy of an image as (data: address, width, height); the address is '' where it cannot be read."""
    try:
        # a JPEG is decoded at a fraction of its size, still larger than the copy
        picture = open_image(path, short_side=2 * THUMBNAIL)
    except DataError:
        return "", THUMBNAIL, THUMBNAIL
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return address(picture), picture.width, picture.height


def address(picture: Image.Image) -> str:
    """A picture as a data: address: PNG where it is tiny and every pixel counts, else JPEG, which is far smaller."""
    out = io.BytesIO()
    tiny = max(picture.size) <= SMALL
    if tiny or picture.mode not in ("RGB", "L"):
        picture.save(out, "PNG", optimize=True)
    else:
        picture.save(out, "JPEG", quality=82, optimize=True)
    kind = "png" if out.getvalue().startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode('ascii')}"
