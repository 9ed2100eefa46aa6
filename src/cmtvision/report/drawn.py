"""Pictures with what a network found in them: boxes with names, outlined masks, classes of pixels as colours.

Colours are those of Okabe and Ito, which colour-blind people can tell apart; after eight classes they come again,
lighter and then darker. Every box has its name, so that no reader depends on the colour.

H W height and width of the picture in pixels.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from cmtvision.artefact.detections import Detections
from cmtvision.data.annotations.outlines import counts_from_text, decode_counts
from cmtvision.data.annotations.samples import BACKGROUND

COLOURS = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
    (160, 160, 160),
)  # fmt: skip
_TURNS = ((0, 0.0), (255, 0.5), (0, 0.45))  # lighter, darker: towards what, and how far
MOST_COLOURS = 256
"""Of a palette."""
_OPACITY = 0.45  # of a colour over the picture
_LEAST_SIDE = 480  # smaller pictures are enlarged, so that names can be read


def colour_of(label: int) -> tuple[int, int, int]:
    """The colour of a class, 0 to 255."""
    base, turn = COLOURS[label % len(COLOURS)], label // len(COLOURS) % len(_TURNS)
    towards, share = _TURNS[turn]
    red, green, blue = (round(part + (towards - part) * share) for part in base)
    return red, green, blue


def with_boxes(picture: Image.Image, found: Detections, classes: Sequence[str], scores: bool = True) -> Image.Image:
    """A picture with boxes, their names and confidences, and masks where there are some; small ones enlarged."""
    factor = _factor(picture)
    drawn = picture.convert("RGB").resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    if found.masks is not None:
        pixels = np.array(drawn)
        for text, label in zip(reversed(found.masks), reversed(found.labels.tolist()), strict=True):
            mask = decode_counts(counts_from_text(text), *found.size)
            _tint(pixels, mask.repeat(factor, axis=0).repeat(factor, axis=1), colour_of(label))
        drawn = Image.fromarray(pixels)
    canvas = ImageDraw.Draw(drawn)
    font = ImageFont.load_default(max(11, round(max(drawn.size) / 60)))
    width = max(2, round(max(drawn.size) / 400))
    for box, score, label in zip(found.boxes[::-1], found.scores[::-1], found.labels[::-1], strict=True):
        colour = colour_of(int(label))
        left, top, right, bottom = (float(value) * factor for value in box)
        canvas.rectangle((left, top, right, bottom), outline=colour, width=width)
        text = classes[int(label)][:40] + (f" {score:.0%}" if scores else "")
        room = canvas.textbbox((0, 0), text, font=font)
        y = top - room[3] - 2 if top > room[3] + 2 else top
        canvas.rectangle((left, y, left + room[2] + 4, y + room[3] + 2), fill=colour)
        canvas.text((left + 2, y), text, fill=(0, 0, 0), font=font)
    return drawn


def with_classes(picture: Image.Image, classes: npt.NDArray[np.integer], names: Sequence[str] = ()) -> Image.Image:
    """A picture tinted by the class (H, W) of each pixel, but for one named background; small ones enlarged."""
    palette = np.array([colour_of(place) for place in range(int(classes.max(initial=0)) + 1)], np.float32)
    pixels = np.asarray(picture.convert("RGB"), np.float32)
    mixed = pixels * (1 - _OPACITY) + palette[classes] * _OPACITY
    plain = [place for place, name in enumerate(names) if name == BACKGROUND]
    mixed[np.isin(classes, plain)] = pixels[np.isin(classes, plain)]
    factor = _factor(picture)
    tinted = Image.fromarray(mixed.round().astype(np.uint8))
    return tinted.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def as_mask(classes: npt.NDArray[np.integer], names: Sequence[str]) -> Image.Image:
    """Class numbers (H, W) as the pixels of an image: up to 256 classes as a palette of 8 bits, more as 16-bit gray."""
    if len(names) > MOST_COLOURS:
        return Image.fromarray(classes.astype(np.uint16))
    mask = Image.fromarray(classes.astype(np.uint8))
    colours = [colour_of(label) for label in range(MOST_COLOURS)]  # all of them: with few, Pillow would save fewer bits
    for label in [place for place, name in enumerate(names) if name == BACKGROUND]:
        colours[label] = (0, 0, 0)
    mask.putpalette([part for colour in colours for part in colour])
    return mask


def _factor(picture: Image.Image) -> int:
    return max(1, round(_LEAST_SIDE / max(picture.size)))


def _tint(pixels: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_], colour: tuple[int, int, int]) -> None:
    mixed = pixels[mask] * (1 - _OPACITY) + np.array(colour, np.float32) * _OPACITY
    pixels[mask] = mixed.round().astype(np.uint8)
