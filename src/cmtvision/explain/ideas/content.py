"""What the page says and shows of a trace, station by station, as the template takes it."""

import base64
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch

from cmtvision.explain.ideas import figures, measures, words
from cmtvision.explain.ideas.choices import Choice, choices, packed
from cmtvision.explain.ideas.pictures import diverging_map, png, sequential_map
from cmtvision.explain.ideas.trace import Trace
from cmtvision.models import CMT

TOP = 5
_FIRST_SIDE = 8  # the page opens at the last stage whose grid has as many positions on its shorter side


@dataclass(frozen=True)
class Subject:
    """The network that a page is about.

    Attributes:
        network: the CMT.
        name: what the page calls it.
        trained: whether its weights were learned.
        classes: their names in the order of the logits, none where they are not known.
        several: whether each class is a yes or no of its own.
        temperature: what logits are divided by for probabilities, 1 of a network that is not calibrated.
    """

    network: CMT
    name: str
    trained: bool
    classes: list[str]
    several: bool
    temperature: float = 1.0


def page_content(about: Subject, found: Trace) -> dict[str, Any]:
    """All of it, without the photo."""
    return {
        "name": about.name,
        "trained": about.trained,
        "trace": found,
        "lacks": found.lacks,
        "parameters": sum(one.numel() for one in about.network.parameters()),
        "grids": ", ".join(words.times(*one.shape[1:]) for one in found.stages),
        "stem_maps": figures.channel_maps(found.stem[-1], figures.STEM_MAPS),
        "stem_says": words.stem(found, about.trained),
        "stages": figures.stage_figures(found),
        "pyramid_says": words.pyramid(found),
        **_convolutions(found, about.trained),
        **_attention(found, about.trained),
        **_answer(about, found),
    }


def _convolutions(found: Trace, trained: bool) -> dict[str, Any]:
    """The LPU's and the IRFFN's depthwise convolutions, in the first block and over all; None where there are none."""
    content: dict[str, Any] = {}
    for part in ("lpu", "irffn"):
        there = [local for block in found.blocks if (local := getattr(block, part)) is not None]
        content |= {
            part: figures.local_figure(found.blocks[0], there[0]) if there else None,
            f"{part}_chart": figures.chart(found, [one.change for one in there]) if there else None,
            f"{part}_says": words.local(found, there, trained) if there else "",
        }
    return content


def _attention(found: Trace, trained: bool) -> dict[str, Any]:
    """The choice of a position, where it opens, and attention over all blocks."""
    chosen = choices(found)
    opening = _opening(chosen)
    choice = chosen[opening["choice"]]
    modules = [block.attention for block in found.blocks]
    moved = [measures.moved_by_bias(one) for one in modules] if modules[0].bias is not None else []
    return {
        "choices": chosen,
        "thinned": words.thinned(chosen),
        "opening": opening,
        "opening_choice": choice,
        "places": _places(found, choice, opening),
        "attention": figures.attention_figure(
            choice, opening["block"], opening["head"], opening["row"], opening["column"]
        ),
        "bars_of": {"sizes": png(sequential_map()[None]), "signed": png(diverging_map()[None])},
        "even_chart": figures.chart(found, [measures.evenness(one) for one in modules], 1.0),
        "moved_chart": figures.chart(found, moved) if moved else None,
        "attention_says": words.attention(found, trained),
        "bias_says": words.bias(found, trained),
        "data": {
            "stages": [packed(one, found.stride(one.stage)) for one in chosen],
            "opening": opening,
            "image": list(found.image.shape[1:]),
            "sizes": _base64(sequential_map()),
            "signed": _base64(diverging_map()),
        },
    }


def _opening(chosen: list[Choice]) -> dict[str, int]:
    """Where the page opens: the middle of the photo, in the last stage with fine positions and coarse keys.

    Of its blocks and heads, the ones in which the content makes attention least even: there is most to see.
    """
    fine = [i for i, one in enumerate(chosen) if min(len(one.rows), len(one.columns)) >= _FIRST_SIDE]
    coarse = [i for i in fine if chosen[i].attention.kv_stride > 1]
    choice = (coarse or fine or [0])[-1]
    one = chosen[choice]
    entropy = torch.stack([measures.entropy(block.attention.weights(False)) for block in one.blocks])  # (blocks, h)
    block, head = divmod(int(entropy.argmin()), entropy.shape[1])
    return {
        "choice": choice,
        "block": block,
        "head": head,
        "row": len(one.rows) // 2,
        "column": len(one.columns) // 2,
    }


def _places(found: Trace, choice: Choice, opening: dict[str, int]) -> dict[str, str]:
    """Styles that lay the chosen position over the photo, and over the grid of keys the key that it lies in."""
    height, width = found.image.shape[1:]
    high, wide = (cell * found.stride(choice.stage) for cell in choice.cell)
    top, left = opening["row"] * high, opening["column"] * wide
    attention = choice.attention
    own = choice.rows[opening["row"]] // attention.kv_stride, choice.columns[opening["column"]] // attention.kv_stride
    marker = (top / height, left / width, min(high, height - top) / height, min(wide, width - left) / width)
    key = (own[0] / attention.keys[0], own[1] / attention.keys[1], 1 / attention.keys[0], 1 / attention.keys[1])
    return {
        "marker": _box(marker),
        "own": _box(key),
        "grid": f"background-size:{100 * wide / width:.4f}% {100 * high / height:.4f}%",
    }


def _box(sides: tuple[float, float, float, float]) -> str:
    named = zip(("top", "left", "height", "width"), sides, strict=True)
    return ";".join(f"{name}:{100 * side:.4f}%" for name, side in named)


def _answer(about: Subject, found: Trace) -> dict[str, Any]:
    """What the network says, where that means something, and what becomes of it without one idea at a time."""
    without = measures.silenced(about.network, found)
    content: dict[str, Any] = {
        "several": about.several,
        "temperature": about.temperature,
        "silenced_says": words.silenced(without, about.trained),
        "answers": [],
        "silenced": [(one, None) for one in without],
    }
    if about.trained and about.classes:
        probabilities, *others = [
            logits.sigmoid() if about.several else (logits / about.temperature).softmax(dim=0)
            for logits in (found.logits, *(one.logits for one in without))
        ]
        top = probabilities.topk(min(TOP, len(probabilities)))
        pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        content["answers"] = [(about.classes[place], share) for place, share in pairs]
        answer = int(top.indices[0])
        content["silenced"] = [
            (one, (float(shares[answer]), about.classes[int(shares.argmax())]))
            for one, shares in zip(without, others, strict=True)
        ]
    answers = content["answers"]
    content["banner_says"] = words.banner(about.trained, about.name, answers[0] if answers else None)
    return content


def _base64(colours: npt.NDArray[Any]) -> str:
    return base64.b64encode(colours.tobytes()).decode()
