"""Copies among images: the same file, and the same picture resized, re-encoded or slightly cropped.

Candidates are the nearest neighbours of each image by perceptual hash and by shape, looked up in blocks, so that memory
grows with the number of images and not with its square. A cheap comparison at 16 x 16 px leaves the likely pairs, and
``alignment`` decides. Images whose thumbnails are equal to the last bit are grouped first and looked up once: a
thousand copies of one image are one group, not half a million pairs.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from cmtvision.quality.alignment import align, cut_out, remainder
from cmtvision.quality.shapes import CROPS, ShapeSpace, blurred, perceptual_hash, view

ALIKE = 0.075
"""Remainder of ``alignment.remainder`` up to which two pictures count as the same."""
_NEIGHBOURS = 6  # of each image and view
_ROW_BLOCK = 512
_PREPARED = 256  # images at a time
_PAIRS = 512  # pairs at a time
_COARSE = 0.4  # remainder at 16 x 16 px up to which a pair is aligned
_PER_IMAGE = 8  # pairs of an image that are aligned, the most alike first
_ALIGNED = 0.32  # the same after alignment at 16 x 16 px, up to which it is aligned at 32 x 32
_NOISE = 0.6  # pixels of blur that take the noise of JPEG away
_VISIBLE = 2.0  # deviation in gray levels, below which a picture shows nothing and has no copies
Progress = Callable[[int, int], None]


class Pair(NamedTuple):
    """Two images that show the same, by position, and how much of the second the first does not explain."""

    first: int
    second: int
    remainder: float


def group_numbers(count: int, pairs: list[tuple[int, int]]) -> npt.NDArray[np.int64]:
    """The group of each of ``count`` images, if those of a pair are in one: (count,), the smallest position in each."""
    leader = list(range(count))

    def find(place: int) -> int:
        while leader[place] != place:
            leader[place] = leader[leader[place]]
            place = leader[place]
        return place

    for first, second in pairs:
        low, high = sorted((find(first), find(second)))
        leader[high] = low
    return np.array([find(place) for place in range(count)], dtype=np.int64)


def same_content(keys: list[bytes]) -> list[tuple[int, int]]:
    """Pairs of positions with equal keys, each with the first of its kind."""
    first: dict[bytes, int] = {}
    return [(first[key], place) for place, key in enumerate(keys) if first.setdefault(key, place) != place]


def near_pairs(
    thumbnails: npt.NDArray[np.uint8],
    same: npt.NDArray[np.int64],
    progress: Progress | None = None,
) -> list[Pair]:
    """Pairs of images that show the same picture.

    Args:
        thumbnails: (N, 32, 32, 3) uint8.
        same: (N,), the group of each image by its file's content; only one of a group is looked up.
        progress: called as progress(done, total).

    Returns:
        The pairs, of images with different content; of a group, its first image stands for all.
    """
    if not len(thumbnails):
        return []
    keys = [thumbnail.tobytes() for thumbnail in thumbnails]
    visible = np.zeros(len(thumbnails), dtype=bool)
    for start in range(0, len(thumbnails), _ROW_BLOCK):
        block = thumbnails[start : start + _ROW_BLOCK]
        visible[start : start + _ROW_BLOCK] = block.reshape(len(block), -1).std(axis=1, dtype=np.float32) >= _VISIBLE
    equal = [pair for pair in same_content(keys) if visible[pair[0]]]
    alike = group_numbers(len(thumbnails), equal)
    pairs = [Pair(int(same[a]), int(same[b]), 0.0) for a, b in equal if same[a] != same[b]]
    leaders = np.flatnonzero((alike == np.arange(len(alike))) & (same == np.arange(len(same))) & visible)
    if len(leaders) > 1:
        found = _search(thumbnails[leaders], progress)
        pairs += [Pair(int(leaders[one.first]), int(leaders[one.second]), one.remainder) for one in found]
    return sorted(set(pairs), key=lambda pair: (pair.remainder, pair))


def _search(thumbnails: npt.NDArray[np.uint8], progress: Progress | None) -> list[Pair]:
    pixels, gray = _planes(thumbnails)
    stages = len(CROPS) + 2
    tell = progress or (lambda done, total: None)
    space = ShapeSpace(gray)
    shapes = torch.cat([space(part) for part in gray.split(_PREPARED)])
    coarse = torch.cat([_coarse(part) for part in pixels.split(_PREPARED)])
    hashes = torch.from_numpy(perceptual_hash(gray[:, 0].numpy()))
    kept: list[tuple[torch.Tensor, ...]] = []
    for number, crop in enumerate(CROPS):
        queries, small = shapes, coarse
        if number:
            queries = torch.cat([space(view(part, crop)) for part in gray.split(_PREPARED)])
            small = torch.cat([_coarse(view(part.float(), crop)) for part in pixels.split(_PREPARED)])
        kept.append(_likely(queries, shapes, small, coarse, number))
        tell(number + 1, stages)
    kept.append(_likely(hashes, hashes, coarse, coarse, 0))
    tell(stages - 1, stages)
    first, second, crop_number, rough = (torch.cat(columns) for columns in zip(*kept, strict=True))
    chosen = _best(first, second, rough, len(thumbnails))
    pairs = _verified(pixels, gray, first[chosen], second[chosen], crop_number[chosen])
    tell(stages, stages)
    return pairs


def _planes(thumbnails: npt.NDArray[np.uint8]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels (N, C, 32, 32) uint8, with one channel where all images are gray, and gray (N, 1, 32, 32) float32."""
    all_gray = bool(
        (thumbnails[..., 0] == thumbnails[..., 1]).all() and (thumbnails[..., 1] == thumbnails[..., 2]).all()
    )
    pixels = torch.from_numpy(np.ascontiguousarray(thumbnails[..., :1] if all_gray else thumbnails)).permute(0, 3, 1, 2)
    return pixels, torch.cat([part.float().mean(1, keepdim=True) for part in pixels.split(_PREPARED)])


def _coarse(images: torch.Tensor) -> torch.Tensor:
    """Images at 16 x 16 px without their mean (B, C * 256), half precision."""
    small = F.avg_pool2d(blurred(images.float(), 0.8), 2)
    return (small - small.mean((1, 2, 3), keepdim=True)).flatten(1).half()


def _likely(
    queries: torch.Tensor, shapes: torch.Tensor, small: torch.Tensor, coarse: torch.Tensor, number: int
) -> tuple[torch.Tensor, ...]:
    """Neighbours that are similar at 16 x 16 px: (first, second, number of the view, coarse remainder), (n,) each."""
    count = min(_NEIGHBOURS, len(shapes) - 1)
    found = []
    room = torch.empty(min(_ROW_BLOCK, len(queries)), len(shapes))  # used again, since the system gives it slowly
    for start in range(0, len(queries), _ROW_BLOCK):
        block = queries[start : start + _ROW_BLOCK]
        alike = torch.mm(block, shapes.T, out=room[: len(block)])  # (block, N)
        rows = torch.arange(len(alike))
        alike[rows, start + rows] = -torch.inf
        second = alike.topk(count, dim=1, sorted=False).indices.flatten()
        first = (start + rows).repeat_interleave(count)
        a, b = small[first].float(), coarse[second].float()
        length = torch.maximum(a.norm(dim=1), b.norm(dim=1)).clamp(min=1.0)
        rough = (a - b).norm(dim=1) / length
        good = rough < _COARSE
        found.append((first[good], second[good], torch.full((int(good.sum()),), number), rough[good]))
    return tuple(torch.cat(columns) for columns in zip(*found, strict=True))


def _best(first: torch.Tensor, second: torch.Tensor, rough: torch.Tensor, count: int) -> torch.Tensor:
    """Positions of the pairs to align: each pair once, from its best view, and only the best few of an image."""
    order = torch.argsort(rough, stable=True)
    keys = (first * count + second)[order].numpy()
    order = order[torch.from_numpy(np.sort(np.unique(keys, return_index=True)[1]))]
    by_image = torch.argsort(first[order], stable=True)  # still by remainder within an image
    order = order[by_image]
    owner = first[order].numpy()
    begins = np.searchsorted(owner, owner, side="left")
    return order[torch.from_numpy(np.arange(len(owner)) - begins < _PER_IMAGE)]


def _verified(
    pixels: torch.Tensor, gray: torch.Tensor, first: torch.Tensor, second: torch.Tensor, number: torch.Tensor
) -> list[Pair]:
    starts = torch.tensor(CROPS)
    best: dict[tuple[int, int], float] = {}
    for part in torch.arange(len(first)).split(_PAIRS):
        a, b = first[part], second[part]
        crop, close = _aligned_roughly(gray[a], gray[b], starts[number[part]])
        a, b, crop = a[close], b[close], crop[close]
        crop = align(blurred(gray[a], 0.8), blurred(gray[b], 0.8), crop)
        calm = (blurred(images.float(), _NOISE) for images in (pixels[a], pixels[b]))
        left = remainder(cut_out(next(calm), crop), next(calm))
        for one, other, value in _small(a, b, left):
            pair = (min(one, other), max(one, other))
            best[pair] = min(value, best.get(pair, 1.0))
    return [Pair(one, other, value) for (one, other), value in best.items()]


def _aligned_roughly(a: torch.Tensor, b: torch.Tensor, start: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Crops (B, 4) aligned at 16 x 16 px, and which pairs (B,) are similar enough then to be aligned in detail."""
    a, b = (F.avg_pool2d(blurred(images, 0.8), 2) for images in (a, b))
    crop = align(a, b, start, 4)
    difference = (cut_out(a, crop, "bilinear") - b).flatten(1)
    deviation = (b - b.mean((1, 2, 3), keepdim=True)).flatten(1).norm(dim=1).clamp(min=16.0)
    return crop, difference.norm(dim=1) / deviation < _ALIGNED


def _small(a: torch.Tensor, b: torch.Tensor, left: torch.Tensor) -> Iterator[tuple[int, int, float]]:
    good = left <= ALIKE
    return zip(a[good].tolist(), b[good].tolist(), left[good].tolist(), strict=True)
