"""The page of a data check: findings with pictures side by side, in one self-contained HTML file.

It loads nothing (its Content-Security-Policy forbids it), every text in it is escaped, and it shows the first examples
of each finding; all of them are in the JSON.
"""

import base64
import io
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from PIL import Image

from cmtvision.data import open_image
from cmtvision.data.listing.index import as_text
from cmtvision.errors import DataError
from cmtvision.files import write_text
from cmtvision.quality.findings import DataCheck, Finding, Item
from cmtvision.quality.listing import Photo

THUMBNAIL = 96
SHOWN = 24
"""Examples of a finding on the page."""
_IN_ITEM = 4  # pictures of one example
_ROWS = 100  # of a finding without pictures
_WITHOUT_PICTURES = frozenset({"unreadable", "one-class", "empty-classes", "tiny-classes", "imbalance"})
_SMALL = 64  # pixels; smaller pictures are shown enlarged, with their pixels visible
_NAME = 90


@dataclass(frozen=True)
class Picture:
    """An image on the page; ``address`` is '' where it could no longer be read."""

    photo: Photo
    name: str
    address: str
    is_small: bool


@dataclass(frozen=True)
class Card:
    """One example of a finding: its pictures, and how many more there are."""

    item: Item
    pictures: list[Picture]
    more: int


@dataclass(frozen=True)
class Section:
    """A finding as the page shows it: cards with pictures, or rows of text."""

    finding: Finding
    cards: list[Card]
    rows: list[tuple[str, str]]
    left_out: int


def write_page(check: DataCheck, file: Path) -> None:
    """Write the page of a check.

    Args:
        check: of ``check_data``.
        file: an .html file; whether it may be replaced is the caller's business.

    Raises:
        CheckpointError: it cannot be written.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(middle=_middle)
    template = environment.from_string(
        resources.files("cmtvision.quality").joinpath("page.html.j2").read_text(encoding="utf-8")
    )
    sections = [_section(finding) for finding in check.findings]
    name = Path(check.source).name or check.source
    write_text(file, template.render(check=check, name=as_text(name), sections=sections))


def _section(finding: Finding) -> Section:
    if finding.kind in _WITHOUT_PICTURES:
        rows = [(as_text(one.photos[0].name) if one.photos else "", as_text(one.text)) for one in finding.items[:_ROWS]]
        return Section(finding, [], rows, max(0, len(finding.items) - _ROWS))
    cards = [
        Card(item, [_picture(photo) for photo in item.photos[:_IN_ITEM]], max(0, len(item.photos) - _IN_ITEM))
        for item in finding.items[:SHOWN]
    ]
    return Section(finding, cards, [], max(0, len(finding.items) - SHOWN))


def _picture(photo: Photo) -> Picture:
    name = as_text(photo.name)
    try:
        picture = open_image(photo.path, short_side=4 * THUMBNAIL)
    except DataError:
        return Picture(photo, name, "", False)
    small = max(picture.size) <= _SMALL
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    if small:
        picture.save(out, "PNG", optimize=True)
    else:
        picture.save(out, "JPEG", quality=85)
    kind = "png" if small else "jpeg"
    return Picture(photo, name, f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode('ascii')}", small)


def _middle(text: str, length: int = _NAME) -> str:
    """Shorten in the middle: what tells names of files apart is at their end."""
    head = length * 2 // 5
    return text if len(text) <= length else f"{text[:head]}…{text[head + 1 - length :]}"
