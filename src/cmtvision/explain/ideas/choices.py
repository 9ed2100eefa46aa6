"""The attention of every position that the page lets a reader choose: content and bias, packed to 16 bits.

The page adds and normalises them itself, so one table of a stage's B serves all its blocks. A page stays at a few MB:
a large grid of queries is thinned out, and of many blocks some are left out, evenly; the page says which.
"""

import base64
from dataclasses import dataclass
from typing import Any

import torch

from cmtvision.explain.ideas.trace import AttentionTrace, BlockTrace, Trace
from cmtvision.models.cmt.position import Grid

MOST_POSITIONS = 16  # on a side of the grid of queries
MOST_VALUES = 1_000_000  # of 16 bits: 2.7 MB of text in the page
FEWEST_BLOCKS, FEWEST_POSITIONS = 4, 4
_LEVELS = 65_535


@dataclass(frozen=True)
class Choice:
    """What can be chosen in one stage.

    Attributes:
        stage: its number, from 1.
        blocks: those that are in the page.
        num_blocks: all that the stage has.
        rows, columns: of the grid of queries, those in the page.
        cell: (height, width) in positions of what one of them stands for.
    """

    stage: int
    blocks: list[BlockTrace]
    num_blocks: int
    rows: list[int]
    columns: list[int]
    cell: Grid

    @property
    def attention(self) -> AttentionTrace:
        """Of the first block; sizes are the same in all."""
        return self.blocks[0].attention

    @property
    def values(self) -> int:
        """How many values this puts into the page."""
        heads, _, keys = self.attention.scores.shape
        return heads * len(self.rows) * len(self.columns) * keys * (len(self.blocks) + len(self.biases))

    @property
    def biases(self) -> list[torch.Tensor]:
        """The different B of its blocks: one where the stage shares it, none where there is none."""
        found: list[torch.Tensor] = []
        for block in self.blocks:
            bias = block.attention.bias
            if bias is not None and not any(torch.equal(bias, one) for one in found):
                found.append(bias)
        return found

    @property
    def is_whole(self) -> bool:
        """Whether every block and every position is in the page."""
        return len(self.blocks) == self.num_blocks and self.cell == (1, 1)


def choices(trace: Trace, most_values: int = MOST_VALUES) -> list[Choice]:
    """What the reader may choose in each stage, within so many values in all."""
    sides = dict.fromkeys(range(1, len(trace.stages) + 1), MOST_POSITIONS)
    kept = {number: len(trace.of_stage(number)) for number in sides}
    while True:
        found = [_choice(trace, number, kept[number], sides[number]) for number in sides]
        if sum(one.values for one in found) <= most_values:
            return found
        largest = max(found, key=lambda one: one.values)
        if kept[largest.stage] > FEWEST_BLOCKS:
            kept[largest.stage] = max(FEWEST_BLOCKS, kept[largest.stage] * 3 // 4)
        elif sides[largest.stage] > FEWEST_POSITIONS:
            sides[largest.stage] //= 2
        else:
            return found


def _choice(trace: Trace, stage: int, num_blocks: int, side: int) -> Choice:
    blocks = trace.of_stage(stage)
    height, width = blocks[0].attention.grid
    cell = -(-height // side), -(-width // side)
    kept = [blocks[place] for place in _evenly(len(blocks), num_blocks)]
    return Choice(stage, kept, len(blocks), _thinned(height, cell[0]), _thinned(width, cell[1]), cell)


def _thinned(edge: int, step: int) -> list[int]:
    """The middle of each part of so many positions of an edge."""
    return [min(start + step // 2, edge - 1) for start in range(0, edge, step)]


def _evenly(count: int, wanted: int) -> list[int]:
    """So many of the numbers below count, first and last among them."""
    if wanted >= count:
        return list(range(count))
    return sorted({round(place * (count - 1) / max(wanted - 1, 1)) for place in range(wanted)})


def packed(choice: Choice, pixels_per_position: int) -> dict[str, Any]:
    """A choice as JSON for the page."""
    attention = choice.attention
    biases = choice.biases
    return {
        "stage": choice.stage,
        "grid": list(attention.grid),
        "keys": list(attention.keys),
        "kvStride": attention.kv_stride,
        "stride": pixels_per_position,
        "rows": choice.rows,
        "columns": choice.columns,
        "cell": list(choice.cell),
        "heads": len(attention.q),
        "blocks": [
            {
                "place": block.place,
                "scores": _packed(_chosen(block.attention.scores, choice)),
                "bias": next((i for i, one in enumerate(biases) if _same(one, block.attention.bias)), None),
            }
            for block in choice.blocks
        ],
        "biases": [_packed(_chosen(bias, choice)) for bias in biases],
    }


def _same(one: torch.Tensor, other: torch.Tensor | None) -> bool:
    return other is not None and torch.equal(one, other)


def _chosen(rows: torch.Tensor, choice: Choice) -> torch.Tensor:
    """Of (h, N, M) the chosen queries, (h, rows * columns, M)."""
    width = choice.attention.grid[1]
    places = torch.tensor([row * width + column for row in choice.rows for column in choice.columns])
    return rows[:, places]


def _packed(values: torch.Tensor) -> dict[str, Any]:
    low, high = float(values.min()), float(values.max())
    step = (high - low) / _LEVELS or 1.0
    levels = ((values.double() - low) / step).round().clamp(0, _LEVELS).numpy().astype("<u2")
    return {"low": low, "step": step, "data": base64.b64encode(levels.tobytes()).decode()}


def unpacked(table: dict[str, Any]) -> torch.Tensor:
    """The values of a packed table, flat: what the page's script computes."""
    levels = torch.frombuffer(bytearray(base64.b64decode(table["data"])), dtype=torch.uint16)
    values: torch.Tensor = table["low"] + table["step"] * levels.double()
    return values
