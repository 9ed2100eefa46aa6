"""EXIF rotation of annotations: which way up boxes and masks are, and turning those that are as the camera stored them.

Images are read upright, as the camera intended (see ``decode``). Boxes and masks are taken as upright too, because the
tools that people annotate with show images so. Where the annotations state the size of the image, or a mask has one,
and it is that of the image as stored and not of the upright one, they were made on the stored image, and are turned.
Only rotations by 90 degrees change the size; for the others, and for square images, nothing can tell.
"""

from typing import TypeVar

import numpy as np
import numpy.typing as npt

_Value = TypeVar("_Value", bound=np.generic)

UPRIGHT = 1
QUARTER_TURNS = (5, 6, 7, 8)
"""The orientations that exchange height and width."""
Size = tuple[int, int]
"""(height, width) in pixels."""


def upright_size(stored: Size, orientation: int) -> Size:
    """The size of an image after its EXIF rotation."""
    return (stored[1], stored[0]) if orientation in QUARTER_TURNS else stored


def turn_needed(annotated: Size, stored: Size, orientation: int) -> int | None:
    """The orientation by which annotations of an image of that size become upright; None if it is another image's."""
    if annotated == upright_size(stored, orientation):
        return UPRIGHT
    return orientation if annotated == stored else None


def turned_box(
    box: tuple[float, float, float, float], stored: Size, orientation: int
) -> tuple[float, float, float, float]:
    """A box x, y, x, y of the stored image as one of the upright image; for 1 and the quarter turns."""
    x0, y0, x1, y1 = box
    height, width = stored
    match orientation:
        case 5:
            return (y0, x0, y1, x1)
        case 6:
            return (height - y1, x0, height - y0, x1)
        case 7:
            return (height - y1, width - x1, height - y0, width - x0)
        case 8:
            return (y0, width - x1, y1, width - x0)
    return box


def turned_mask(mask: npt.NDArray[_Value], orientation: int) -> npt.NDArray[_Value]:
    """A mask (H, W) of the stored image as one of the upright image; for 1 and the quarter turns."""
    match orientation:
        case 5:
            return mask.T
        case 6:
            return np.rot90(mask, -1)
        case 7:
            return np.rot90(mask, 2).T
        case 8:
            return np.rot90(mask)
    return mask
