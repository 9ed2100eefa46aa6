"""Images that are readable but unlike the others as files: rare pixel modes, odd sizes, animations, blank pictures."""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from cmtvision.quality.classes import named
from cmtvision.quality.findings import Finding, Item
from cmtvision.quality.scan import Facts, Scan

_RARE = 0.02  # share of the images up to which a mode counts as rare
_UNUSUAL_MODES = frozenset({"CMYK", "16-bit", "F", "LAB", "YCbCr", "HSV", "1"})
_SMALL, _LARGE = 1 / 16, 16.0  # of the median number of pixels
_LONG = 4.0  # times the median ratio of the longer side to the shorter
_BLANK = 2.0  # standard deviation of the pixels (of 0..255), below which nothing can be seen


def odd_findings(scan: Scan) -> Iterator[Finding]:
    """Findings about formats, sizes and blank pictures."""
    if not scan.photos:
        return
    modes = _odd_modes(scan.facts)
    if modes:
        kinds = Counter(text for _, text in modes).most_common()
        yield _finding(
            scan, "odd-modes", "odd modes", modes, named([f"{number:,} {text}" for text, number in kinds]),
            "cmtvision converts them to RGB or gray; see that nothing is lost, such as the depth of 16-bit images.",
        )  # fmt: skip
    sizes = _odd_sizes(scan.facts)
    if sizes:
        yield _finding(
            scan, "odd-sizes", "odd sizes", sizes, f"{_images(len(sizes))} of unusual size or shape",
            "Look whether they are thumbnails, banners or screenshots that do not belong here.",
        )  # fmt: skip
    deviation = scan.thumbnails.reshape(len(scan.photos), -1).astype(np.float32).std(axis=1)
    blank = [(int(place), "of one colour") for place in np.flatnonzero(deviation < _BLANK)]
    if blank:
        yield _finding(
            scan, "blank", "blank images", blank, f"{_images(len(blank))} of one colour",
            "They show nothing; remove them.",
        )  # fmt: skip


def _odd_modes(facts: Sequence[Facts]) -> list[tuple[int, str]]:
    counts = Counter(one.mode for one in facts)
    common, _ = counts.most_common(1)[0]
    found = []
    for place, one in enumerate(facts):
        if one.frames > 1:
            found.append((place, "animated (only the first frame is used)"))
        elif one.mode != common and (one.mode in _UNUSUAL_MODES or counts[one.mode] <= _RARE * len(facts)):
            found.append((place, f"{one.mode} among {common}"))
    return found


def _odd_sizes(facts: Sequence[Facts]) -> list[tuple[int, str]]:
    width, height = (np.array([getattr(one, side) for one in facts], dtype=np.float64) for side in ("width", "height"))
    area, shape = width * height, np.maximum(width, height) / np.minimum(width, height)
    usual_area, usual_shape = float(np.median(area)), float(np.median(shape))
    found = []
    for place in range(len(facts)):
        size = f"{facts[place].width} x {facts[place].height} px"
        if area[place] < _SMALL * usual_area or area[place] > _LARGE * usual_area:
            found.append((place, f"{size}, half of the images have {usual_area:,.0f} pixels or fewer"))
        elif shape[place] > _LONG * usual_shape:
            found.append((place, f"{size}, far from square"))
    return found


def _finding(scan: Scan, kind: str, title: str, found: Sequence[tuple[int, str]], summary: str, advice: str) -> Finding:
    return Finding(kind, "note", title, summary, advice, [Item((scan.photos[place],), text) for place, text in found])


def _images(number: int) -> str:
    return f"{number:,} image{'' if number == 1 else 's'}"
