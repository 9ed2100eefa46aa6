"""What the products lie on: plain, wooden, tiled or woven ground in muted colours, with light from one corner."""

import numpy as np
import numpy.typing as npt
from PIL import Image

from cmtvision.data.scenes.draws import Draws

_GROUNDS = (
    (196, 188, 176), (168, 176, 180), (150, 140, 128), (120, 128, 124), (206, 200, 192), (92, 98, 108), (178, 160, 138),
    (140, 156, 146), (186, 170, 178), (72, 74, 78), (154, 166, 186), (222, 214, 200),
)  # fmt: skip
_WOODS = ((156, 118, 84), (124, 90, 62), (184, 148, 110), (96, 72, 54), (172, 150, 128))
_KINDS = ("plain", "wood", "tiles", "cloth", "patches")
Ground = npt.NDArray[np.int64]  # (H, W, 3), values around 0..255


def background(size: int, draws: Draws) -> npt.NDArray[np.uint8]:
    """A ground (size, size, 3)."""
    kind = draws.one_of(_KINDS)
    colour = np.array(draws.one_of(_WOODS if kind == "wood" else _GROUNDS), dtype=np.int64)
    shade = {"plain": _plain, "wood": _wood, "tiles": _tiles, "cloth": _cloth, "patches": _patches}[kind](size, draws)
    ground = colour + shade[..., None] + _light(size, draws)[..., None] + draws.array(-3, 3, size, size)[..., None]
    pixels: npt.NDArray[np.uint8] = np.clip(ground, 0, 255).astype(np.uint8)
    return pixels


def _light(size: int, draws: Draws) -> npt.NDArray[np.int64]:
    """Brighter towards one side."""
    rows, columns = np.mgrid[0:size, 0:size]
    right, down = draws.between(-18, 18), draws.between(-18, 18)
    light: npt.NDArray[np.int64] = (columns * 2 - size) * right // size + (rows * 2 - size) * down // size
    return light


def _smooth(size: int, cells: tuple[int, int], reach: int, draws: Draws) -> npt.NDArray[np.int64]:
    """Blotches: (rows, columns) random values, enlarged smoothly."""
    small = Image.fromarray(draws.array(0, 255, *cells).astype(np.uint8))
    return (np.asarray(small.resize((size, size), Image.Resampling.BICUBIC)).astype(np.int64) - 128) * reach // 128


def _plain(size: int, draws: Draws) -> npt.NDArray[np.int64]:
    return _smooth(size, (4, 4), 10, draws)


def _patches(size: int, draws: Draws) -> npt.NDArray[np.int64]:
    return _smooth(size, (9, 9), 26, draws) + _smooth(size, (28, 28), 10, draws)


def _wood(size: int, draws: Draws) -> npt.NDArray[np.int64]:
    """Boards with grain along them."""
    shade = _smooth(size, (size // 2, 4), 14, draws)
    board = draws.between(size // 6, size // 3)
    starts = np.arange(draws.between(-board + 1, 0), size, board)
    for start in starts.tolist():
        shade[max(0, start) : start + board] += draws.between(-16, 16)
        if start >= 0:
            shade[start] -= 34  # the gap between two boards
    return shade.T if draws.chance(50) else shade


def _tiles(size: int, draws: Draws) -> npt.NDArray[np.int64]:
    edge = draws.between(size // 8, size // 4)
    rows, columns = np.mgrid[0:size, 0:size] + draws.between(0, edge - 1)
    across = (columns.max() // edge) + 1
    tone = draws.array(-10, 10, int((rows.max() // edge + 1) * across))
    shade = tone[rows // edge * across + columns // edge]
    return np.where((rows % edge == 0) | (columns % edge == 0), -28, shade) + _smooth(size, (6, 6), 6, draws)


def _cloth(size: int, draws: Draws) -> npt.NDArray[np.int64]:
    """Threads both ways, and stripes of one or two widths."""
    rows, columns = np.mgrid[0:size, 0:size]
    width, depth = draws.between(5, 16), draws.between(6, 22)
    along = columns if draws.chance(50) else rows
    stripes = np.where(along // width % draws.between(2, 3) == 0, depth, -depth // 2)
    return stripes + np.where((rows + columns) % 2 == 0, 4, -4) + _smooth(size, (5, 5), 8, draws)
