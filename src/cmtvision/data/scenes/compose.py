"""Composing a scene: products laid on a ground one after another, each with a soft shadow, some over others.

What is annotated is what can be seen: an object's mask is its silhouette without what lies on it. An object is placed
only where at least a third of each one below stays visible and most of it is within the picture.

S the scene's edge in pixels, N its objects.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from cmtvision.data.scenes.backgrounds import background
from cmtvision.data.scenes.draws import Draws
from cmtvision.data.scenes.items import Item

Masks = npt.NDArray[np.bool_]  # (N, S, S)
_VISIBLE, _WITHIN = 35, 72  # percent of an object's pixels
_LEAST_PIXELS = 24
_TRIES = 14
_SMALLEST, _LARGEST = 24, 56  # percent of the scene's edge that an object is long
_SHADOW = 30  # percent that a shadow takes of the light


class Scene(NamedTuple):
    """A picture (S, S, 3), its objects' classes and the masks (N, S, S) of what can be seen of each."""

    pixels: npt.NDArray[np.uint8]
    labels: list[int]
    masks: Masks


def compose(size: int, draws: Draws, next_item: Callable[[int, Draws], tuple[Item, int]]) -> Scene:
    """A scene of one to seven objects.

    Args:
        size: its edge in pixels.
        draws: decide everything.
        next_item: gives a product of that many pixels on its long side, and its class.
    """
    canvas = background(size, draws)
    masks: list[npt.NDArray[np.bool_]] = []
    areas: list[int] = []
    labels: list[int] = []
    crowded = draws.chance(30)  # some scenes are heaps, most are not
    for _ in range(draws.between(4, 7) if crowded else draws.between(2, 5)):
        # The square of an even draw: more small objects than large ones.
        share = _SMALLEST + (_LARGEST - _SMALLEST) * draws.between(0, 100) ** 2 // 10_000
        item, label = next_item(max(8, size * share // 100), draws)
        place = _free_place(item, masks, areas, size, draws, near=crowded)
        if place is None:
            continue
        cover = _in_frame(item.mask, place, size)
        masks = [below & ~cover for below in masks]
        canvas = _laid(canvas, item, place, draws)
        masks.append(cover)
        areas.append(int(item.mask.sum()))
        labels.append(label)
    return Scene(canvas, labels, np.stack(masks) if masks else np.zeros((0, size, size), dtype=np.bool_))


def _free_place(
    item: Item, masks: list[npt.NDArray[np.bool_]], areas: list[int], size: int, draws: Draws, near: bool
) -> tuple[int, int] | None:
    """A place (top, left) where the item hides none of the others too much; None if none was found."""
    height, width = item.mask.shape
    area = int(item.mask.sum())
    reach = size // 4 if near else 0  # a heap has its middle in the picture's
    for _ in range(_TRIES):
        top = draws.between(reach - height // 3, size - reach - 2 * height // 3)
        left = draws.between(reach - width // 3, size - reach - 2 * width // 3)
        cover = _in_frame(item.mask, (top, left), size)
        seen = int(cover.sum())
        if seen < _LEAST_PIXELS or 100 * seen < _WITHIN * area:
            continue
        left_over = [(int((mask & ~cover).sum()), whole) for mask, whole in zip(masks, areas, strict=True)]
        if all(rest >= _LEAST_PIXELS and 100 * rest >= _VISIBLE * whole for rest, whole in left_over):
            return top, left
    return None


def _in_frame(part: npt.NDArray[np.bool_], place: tuple[int, int], size: int) -> npt.NDArray[np.bool_]:
    whole = Image.new("L", (size, size))
    whole.paste(Image.fromarray(part.astype(np.uint8) * np.uint8(255)), (place[1], place[0]))
    return np.asarray(whole) > 0


def _laid(canvas: npt.NDArray[np.uint8], item: Item, place: tuple[int, int], draws: Draws) -> npt.NDArray[np.uint8]:
    """The picture with the item and its shadow on it."""
    size = canvas.shape[0]
    top, left = place
    opacity = Image.new("L", (size, size))
    opacity.paste(Image.fromarray(item.opacity), (left, top))
    shadow = Image.new("L", (size, size))
    offset = max(1, size // 64)
    shadow.paste(
        Image.fromarray(item.opacity), (left + draws.between(0, offset), top + draws.between(offset, 2 * offset))
    )
    dark = np.asarray(shadow.filter(ImageFilter.BoxBlur(offset))).astype(np.int64)
    colours = Image.new("RGB", (size, size))
    colours.paste(Image.fromarray(item.pixels), (left, top))
    cover = np.asarray(opacity).astype(np.int64)[..., None]
    ground = canvas.astype(np.int64) * (25_500 - _SHADOW * dark)[..., None] // 25_500
    mixed = (ground * (255 - cover) + np.asarray(colours).astype(np.int64) * cover + 127) // 255
    return mixed.astype(np.uint8)
