"""The items that scenes are composed of: one product photo each, cut out along its own silhouette.

The photos show one product on black. The silhouette is what is not black: its largest connected part, with small holes
filled (black letters on a shirt) and large ones kept (the handle of a bag). Photos that are mostly black, or fall into
pieces, are not used.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from cmtvision.data.scenes.draws import Draws

Gray = npt.NDArray[np.uint8]  # (H, W)
_BLACK = 8  # the photos' black has a grain around the product
_SMALL_HOLE = 12  # pixels of the original 28 x 28
_LEAST_AREA = 60
_LEAST_SHARE = 85  # percent of what is not black that the largest part must have
_LEAST_BRIGHTNESS = 45
_FADED = 60
_TILT = 24  # degrees to either side
TINTS = (
    (255, 255, 255), (255, 255, 255), (250, 240, 225), (214, 92, 84), (226, 146, 74), (238, 205, 110), (128, 178, 108),
    (90, 176, 168), (104, 156, 216), (98, 112, 190), (166, 118, 186), (222, 140, 170), (170, 128, 98),
)  # fmt: skip


class Item(NamedTuple):
    """A cut-out product at its final size: pixels (h, w, 3), opacity (h, w) and the mask (h, w) of what it covers."""

    pixels: npt.NDArray[np.uint8]
    opacity: Gray
    mask: npt.NDArray[np.bool_]


def silhouette(photo: Gray) -> npt.NDArray[np.bool_] | None:
    """The product's pixels (28, 28) in a photo; None where the photo is not fit to be cut out."""
    from scipy import ndimage

    bright = photo > _BLACK
    labels, count = ndimage.label(bright, np.ones((3, 3)))  # straps may run diagonally
    if not count:
        return None
    areas = np.bincount(labels.reshape(-1))[1:]
    mask = labels == 1 + int(areas.argmax())
    if areas.max() < _LEAST_AREA or 100 * int(areas.max()) < _LEAST_SHARE * int(areas.sum()):
        return None
    holes, _ = ndimage.label(~mask)
    sizes = np.bincount(holes.reshape(-1))
    sizes[0] = 0
    filled = mask | ((sizes[holes] > 0) & (sizes[holes] <= _SMALL_HOLE))
    return filled if int(photo[filled].sum()) >= _LEAST_BRIGHTNESS * int(filled.sum()) else None


def cut_out(photo: Gray, mask: npt.NDArray[np.bool_], long_side: int, draws: Draws) -> Item:
    """The product with that many pixels on its long side; turned, mirrored, and tinted as the draws decide."""
    from scipy import ndimage

    # At the rim the photo fades into the black around it. Those pixels, and all outside, become like the nearest
    # others, so that neither a dark seam nor smoothing shows where the product was cut out.
    faded = mask & ~ndimage.binary_erosion(mask) & (photo < _FADED)
    nearest = ndimage.distance_transform_edt(~mask | faded, return_distances=False, return_indices=True)
    spread = photo[tuple(nearest)]
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = (int(columns[0]) - 1, int(rows[0]) - 1, int(columns[-1]) + 2, int(rows[-1]) + 2)
    gray = Image.fromarray(spread).crop(box)
    cover = Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).crop(box)
    longest = max(gray.size)
    size = tuple(max(4, edge * long_side // longest) for edge in gray.size)
    gray, cover = (picture.resize((size[0], size[1]), Image.Resampling.BICUBIC) for picture in (gray, cover))
    if draws.chance(50):
        gray, cover = ImageOps.mirror(gray), ImageOps.mirror(cover)
    angle = draws.between(-_TILT, _TILT)
    gray, cover = (picture.rotate(angle, Image.Resampling.BICUBIC, expand=True) for picture in (gray, cover))
    opacity = np.asarray(cover)
    value = 34 + np.asarray(gray).astype(np.int64) * 212 // 255  # the darkest cloth still shows its folds
    tint = np.array(draws.one_of(TINTS), dtype=np.int64)
    pixels = (value[..., None] * tint // 255).astype(np.uint8)
    return Item(pixels, opacity, opacity >= 128)
