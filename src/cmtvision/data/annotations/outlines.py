"""The outline of one object: polygons or run lengths, kept as small as they came and drawn as a mask when asked for.

Run lengths are COCO's: the mask is read column by column, and the counts alternate between pixels outside and inside,
outside first. COCO's compressed text holds the counts in groups of six bits as printable characters from '0' on: five
bits of value, least first, and one that says whether more follow; the last group carries the sign. From the fourth
count on, the difference to the count two places before stands there (counts of one kind are alike).

A pixel is inside a polygon if its centre is, by the even-odd rule; several polygons of one object are united.

H W height and width in pixels, K points, R run lengths.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cmtvision.data.annotations.orientation import turned_mask

Mask = npt.NDArray[np.bool_]  # (H, W)
Points = npt.NDArray[np.float32]  # (K, 2): x, y
_FIRST, _GROUP, _MORE, _SIGN = 48, 5, 0x20, 0x10
_LONGEST = 7  # characters of one count: 35 bits, more than any image has pixels


@dataclass(frozen=True, slots=True, eq=False)
class Outline:
    """What one object covers.

    Args:
        height, width: of the image as it was annotated.
        polygons: each (K, 2) with x, y in pixels of that image; () where ``counts`` says it.
        counts: run lengths (R,) that add up to height * width; None where ``polygons`` say it.
        turn: EXIF orientation by which the annotated image becomes the upright one.
    """

    height: int
    width: int
    polygons: tuple[Points, ...] = ()
    counts: npt.NDArray[np.int64] | None = None
    turn: int = 1

    def mask(self) -> Mask:
        """The object's pixels in the upright image."""
        if self.counts is not None:
            found = decode_counts(self.counts, self.height, self.width)
        else:
            found = np.zeros((self.height, self.width), dtype=np.bool_)
            for points in self.polygons:
                found |= draw_polygon(points, self.height, self.width)
        return turned_mask(found, self.turn)

    def area(self) -> float:
        """Pixels that it covers: exact for run lengths; for polygons the sum of their areas."""
        if self.counts is not None:
            return float(self.counts[1::2].sum())
        return float(sum(_polygon_area(points) for points in self.polygons))

    def box(self) -> tuple[float, float, float, float]:
        """The smallest box around it as x, y, x, y in the image as annotated; zeros where it covers nothing."""
        if self.counts is None:
            points = np.concatenate(self.polygons) if self.polygons else np.zeros((1, 2), dtype=np.float32)
            return (*map(float, points.min(axis=0)), *map(float, points.max(axis=0)))  # type: ignore[return-value]
        return mask_box(decode_counts(self.counts, self.height, self.width))

    def key(self) -> bytes:
        """Bytes that are equal for equal outlines, for a fingerprint."""
        head = f"{self.height} {self.width} {self.turn} ".encode()
        if self.counts is not None:
            return head + self.counts.astype("<i8").tobytes()
        return head + b"|".join(points.astype("<f4").tobytes() for points in self.polygons)


def mask_box(mask: Mask) -> tuple[float, float, float, float]:
    """The smallest box x, y, x, y around the pixels of a mask; zeros where it has none."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return (0.0, 0.0, 0.0, 0.0)
    return (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))


def draw_polygon(points: Points, height: int, width: int) -> Mask:
    """The pixels whose centre is inside a polygon; what is outside the image is cut off.

    An edge that crosses the height of a row's centres switches everything right of the crossing; what was switched an
    odd number of times is inside.
    """
    switched = np.zeros((height, width + 1), dtype=np.bool_)
    start, end = points.astype(np.float64), np.roll(points, -1, axis=0).astype(np.float64)
    low, high = np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1])
    first = np.clip(np.ceil(low - 0.5), 0, height).astype(np.int64)  # rows whose centre is at or above `low`
    last = np.clip(np.ceil(high - 0.5), 0, height).astype(np.int64)
    for edge in np.flatnonzero(last > first):
        rows = np.arange(first[edge], last[edge])
        slope = (end[edge, 0] - start[edge, 0]) / (end[edge, 1] - start[edge, 1])
        crossing = start[edge, 0] + (rows + 0.5 - start[edge, 1]) * slope
        switched[rows, np.clip(np.ceil(crossing - 0.5), 0, width).astype(np.int64)] ^= True
    return np.logical_xor.accumulate(switched[:, :-1], axis=1)


def decode_counts(counts: npt.NDArray[np.int64], height: int, width: int) -> Mask:
    """Run lengths (R,) as a mask; they must add up to height * width."""
    inside = np.arange(len(counts)) % 2 == 1
    return np.repeat(inside, counts).reshape(width, height).T


def encode_counts(mask: Mask) -> npt.NDArray[np.int64]:
    """The run lengths of a mask."""
    flat = np.concatenate([[False], mask.T.reshape(-1), [True]])  # column by column; begins outside
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    if mask.size and mask[-1, -1]:
        changes = np.append(changes, mask.size)
    return np.diff(changes, prepend=0).astype(np.int64)


def counts_to_text(counts: npt.NDArray[np.int64]) -> str:
    """Run lengths in COCO's compressed text."""
    steps = counts.astype(np.int64).copy()
    steps[3:] -= counts[1:-2]
    letters = []
    for step in steps.tolist():
        more = True
        while more:
            group = step & 0x1F
            step >>= _GROUP  # noqa: PLW2901  # of a negative number the sign stays
            more = step != (-1 if group & _SIGN else 0)
            letters.append(chr(_FIRST + group + (_MORE if more else 0)))
    return "".join(letters)


def counts_from_text(text: str) -> npt.NDArray[np.int64]:
    """COCO's compressed text as run lengths.

    Raises:
        ValueError: other characters, a count that never ends, or one too long.
    """
    try:
        groups = np.frombuffer(text.encode("ascii"), dtype=np.uint8).astype(np.int64) - _FIRST
    except UnicodeEncodeError:
        raise ValueError("characters that are not run lengths") from None
    if groups.size and (groups.min() < 0 or groups.max() >= 64):
        raise ValueError("characters that are not run lengths")
    ends = np.flatnonzero(groups & _MORE == 0)
    if not ends.size or ends[-1] != len(groups) - 1:
        raise ValueError("run lengths that end in the middle")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _LONGEST:
        raise ValueError("a run longer than any image")
    place = np.arange(len(groups)) - np.repeat(starts, lengths)
    steps = np.add.reduceat((groups & 0x1F) << (_GROUP * place), starts)
    steps -= np.where(groups[ends] & _SIGN, np.int64(1) << (_GROUP * lengths), 0)
    steps[1::2] = np.cumsum(steps[1::2])
    steps[2::2] = np.cumsum(steps[2::2])
    return steps


def checked_counts(counts: npt.NDArray[np.int64], height: int, width: int) -> npt.NDArray[np.int64]:
    """The run lengths, if they are those of a mask of this size. ValueError otherwise."""
    if counts.size == 0 or counts.min() < 0 or counts.max() > height * width or counts.sum() != height * width:
        raise ValueError(f"run lengths that do not fill {width} x {height} pixels")
    return counts


def polygon_points(values: npt.ArrayLike) -> Points:
    """x, y, x, y, ... as points (K, 2)."""
    return np.asarray(values, dtype=np.float32).reshape(-1, 2)


def _polygon_area(points: Points) -> float:
    x, y = points[:, 0].astype(np.float64), points[:, 1].astype(np.float64)
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2
