"""The page's pictures: which channels and places are shown of a trace, and how they are drawn."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from cmtvision.explain.ideas.choices import Choice
from cmtvision.explain.ideas.pictures import Values, feature_colours, png, signed_picture, sizes_picture
from cmtvision.explain.ideas.trace import BlockTrace, LocalTrace, Trace

STEM_MAPS = 16
STAGE_MAPS = 8
LOCAL_ROWS = 3
MOST_PIXELS = 96
"""On a side of a map's picture; a larger map is averaged down to it."""


def liveliest(features: torch.Tensor, count: int) -> list[int]:
    """The channels of a map (C, H, W) that differ most between positions, in the order of the channels."""
    spread = features.flatten(1).var(dim=1, unbiased=False)
    return sorted(spread.topk(min(count, len(spread))).indices.tolist())


def channel_maps(features: torch.Tensor, count: int) -> list[tuple[int, str]]:
    """(channel from 1, picture) of the liveliest channels, each in its own scale."""
    features = fitted(features)
    return [(channel + 1, png(sizes_picture(array(features[channel])))) for channel in liveliest(features, count)]


def fitted(features: torch.Tensor) -> torch.Tensor:
    """A map (C, H, W) averaged down until a picture of it is small enough."""
    factor = -(-max(features.shape[1:]) // MOST_PIXELS)
    if factor == 1:
        return features
    height, width = (-(-side // factor) for side in features.shape[1:])
    return F.interpolate(features[None], size=(height, width), mode="area")[0]


def array(tensor: torch.Tensor) -> Values:
    """A tensor as the float32 array that pictures are made of."""
    values: Values = tensor.numpy()
    return values


@dataclass(frozen=True)
class StageFigure:
    """A stage's map (C, H, W): all channels in one picture, and some of them."""

    number: int
    channels: int
    height: int
    width: int
    stride: int
    colours: str
    maps: list[tuple[int, str]]


def stage_figures(trace: Trace) -> list[StageFigure]:
    """The pyramid, stage by stage."""
    return [
        StageFigure(
            number=number,
            channels=features.shape[0],
            height=features.shape[1],
            width=features.shape[2],
            stride=trace.stride(number),
            colours=png(feature_colours(array(fitted(features)))),
            maps=channel_maps(features, STAGE_MAPS),
        )
        for number, features in enumerate(trace.stages, 1)
    ]


@dataclass(frozen=True)
class LocalRow:
    """One channel (from 1) before, in, and after a depthwise convolution, all in one scale."""

    channel: int
    before: str
    conv: str
    after: str
    kernel: str
    limit: float


@dataclass(frozen=True)
class Worked:
    """A depthwise convolution at one place, in numbers: ``around * kernel`` summed, plus the shift, plus the centre.

    Attributes:
        channel, row, column: where, from 1.
        around: the input's 3 x 3 values there, zeros beyond the border, and ``kernel`` the weights.
        shift: the convolution's bias.
        conv: what the convolution gives there.
        before, after: the value there without and with it.
        digits: decimals that show the numbers well.
    """

    channel: int
    row: int
    column: int
    around: list[list[float]]
    kernel: list[list[float]]
    shift: float
    conv: float
    before: float
    after: float
    digits: int

    @property
    def has_shift(self) -> bool:
        """Whether the bias is more than nothing in these decimals."""
        return bool(abs(self.shift) >= 0.5 * 0.1**self.digits)


@dataclass(frozen=True)
class LocalFigure:
    """A depthwise convolution at work in one block: the channels that it changes most, and one place in numbers."""

    block: BlockTrace
    shape: tuple[int, ...]
    rows: list[LocalRow]
    worked: Worked


def local_figure(block: BlockTrace, local: LocalTrace) -> LocalFigure:
    """The channels to which the convolution adds most, and of the first the place where it adds most."""
    strength = local.conv.flatten(1).norm(dim=1)
    channels = strength.topk(min(LOCAL_ROWS, len(strength))).indices.tolist()
    rows = [_local_row(local, channel) for channel in channels]
    return LocalFigure(block, tuple(local.before.shape), rows, _worked(local, channels[0]))


def _local_row(local: LocalTrace, channel: int) -> LocalRow:
    maps = fitted(torch.stack([one[channel] for one in (local.before, local.conv, local.after)]))
    limit = float(maps.abs().max())
    kernel = local.kernel[channel]
    before, conv, after = (png(signed_picture(array(one), limit)) for one in maps)
    taps = png(signed_picture(array(kernel), float(kernel.abs().max())))
    return LocalRow(channel + 1, before, conv, after, taps, limit)


def _worked(local: LocalTrace, channel: int) -> Worked:
    conv = local.conv[channel]
    height, width = conv.shape
    inner = conv.abs().clone()
    if min(height, width) > 2:  # at the border zeros stand in for neighbours
        inner[0], inner[-1], inner[:, 0], inner[:, -1] = -1, -1, -1, -1
    row, column = divmod(int(inner.argmax()), width)
    padded = F.pad(local.before[channel], (1, 1, 1, 1))
    around = padded[row : row + 3, column : column + 3]
    return Worked(
        channel + 1,
        row + 1,
        column + 1,
        around.tolist(),
        local.kernel[channel].tolist(),
        float(local.shift[channel]),
        float(conv[row, column]),
        float(local.before[channel, row, column]),
        float(local.after[channel, row, column]),
        digits=min(4, max(1, 2 - math.floor(math.log10(max(float(conv[row, column].abs()), 1e-9))))),
    )


@dataclass(frozen=True)
class AttentionFigure:
    """One query's rows over the grid of keys, as the page shows them until the reader chooses another.

    Attributes:
        scores, bias: before softmax, in one scale from -limit to limit; bias None where there is none.
        content, weights: after softmax, without and with B, in one scale from 0 to most.
        best: (row, column) of the key that gets most, from 1, and its shares with and without B.
        moved: the share that B gives to other keys.
        even: the share that every key would get of even attention.
    """

    scores: str
    bias: str | None
    content: str
    weights: str
    limit: float
    most: float
    best: tuple[int, int]
    best_share: float
    best_without: float
    moved: float
    even: float


def attention_figure(choice: Choice, block: int, head: int, row: int, column: int) -> AttentionFigure:
    """Of one block, head and position of a choice, all as places in it."""
    attention = choice.blocks[block].attention
    query = choice.rows[row] * attention.grid[1] + choice.columns[column]
    scores = attention.scores[head, query]
    scores = (scores - scores.mean()).reshape(attention.keys)
    bias = None
    if attention.bias is not None:
        bias = attention.bias[head, query]
        bias = (bias - bias.mean()).reshape(attention.keys)
    content = attention.weights(with_bias=False)[head, query].reshape(attention.keys)
    weights = attention.weights()[head, query].reshape(attention.keys)
    limit = max(float(one.abs().max()) for one in (scores, bias) if one is not None)
    most = float(torch.maximum(content, weights).max())
    best = divmod(int(weights.argmax()), attention.keys[1])
    return AttentionFigure(
        scores=png(signed_picture(array(scores), limit)),
        bias=png(signed_picture(array(bias), limit)) if bias is not None else None,
        content=png(sizes_picture(array(content), 0, most)),
        weights=png(sizes_picture(array(weights), 0, most)),
        limit=limit,
        most=most,
        best=(best[0] + 1, best[1] + 1),
        best_share=float(weights[best]),
        best_without=float(content[best]),
        moved=float((weights - content).abs().sum() / 2),
        even=1 / weights.numel(),
    )


@dataclass(frozen=True)
class Chart:
    """One figure per block.

    Attributes:
        stages: for each stage its bars, as (block from 1, the figure, its height in percent of the drawing).
        most: the figure that fills the drawing.
    """

    stages: list[list[tuple[int, float, float]]]
    most: float


def chart(trace: Trace, values: Sequence[float], most: float | None = None) -> Chart:
    """A figure per block, stage by stage; by default as high as the largest."""
    most = max(*values, 1e-12) if most is None else most
    stages: list[list[tuple[int, float, float]]] = [[] for _ in trace.stages]
    for block, value in zip(trace.blocks, values, strict=True):
        stages[block.stage - 1].append((block.place, value, 100 * min(1.0, value / most)))
    return Chart(stages, most)
