"""The methods by name: which networks each applies to, what it computes of one image, and how that is drawn.

Shapes: C channels, H W image in pixels, h w grid of a map.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from torch import nn

from cmtvision.explain.attention import has_readable_attention
from cmtvision.explain.drawing import draw_bias, draw_lpu, draw_map
from cmtvision.explain.grad_cam import default_stage, grad_cam, hires_cam
from cmtvision.explain.integrated_gradients import COMPLETE, complete_gradients
from cmtvision.explain.kernels import has_lpu, local_perception
from cmtvision.explain.position_bias import has_position_bias, position_bias
from cmtvision.explain.receptive_field import receptive_field
from cmtvision.explain.rollout import attention_rollout
from cmtvision.explain.stage_maps import num_stages, stage_index

FIRST = 1


@dataclass(frozen=True)
class Question:
    """What a method is asked: of a network, one image (1, C, H, W), one class, and a stage (None: the method's own)."""

    network: nn.Module
    images: torch.Tensor
    class_index: int
    stage: int | None


@dataclass(frozen=True)
class Answer:
    """What a method says.

    Attributes:
        values: the numbers behind the picture; ``Method.shape`` says which.
        stage: the stage that they are of, from 1; None where the method has none.
        facts: figures worth telling, ready for JSON.
        remark: a reason to distrust the map, '' for none.
        draw: (picture (H, W, 3), title, remark) -> figure.
    """

    values: npt.NDArray[np.float32]
    stage: int | None
    facts: dict[str, Any]
    draw: Callable[[npt.NDArray[np.uint8], str, str], Figure]
    remark: str = ""


@dataclass(frozen=True)
class Method:
    """A way to explain.

    Attributes:
        name: as the command line has it.
        title: as a picture has it.
        shape: what ``Answer.values`` holds, in words.
        applies: whether a network has what the method looks at.
        ask: the method.
        in_words: its facts as a sentence.
        per_class: its map is one class's.
        per_stage: it looks at one stage.
    """

    name: str
    title: str
    shape: str
    applies: Callable[[nn.Module], bool]
    ask: Callable[[Question], Answer]
    in_words: Callable[[dict[str, Any]], str]
    per_class: bool = False
    per_stage: bool = True


def _cam(compute: Callable[..., torch.Tensor], question: Question) -> Answer:
    stage = question.stage
    if stage is None:
        stage = default_stage(question.network, question.images)
    values = _array(compute(question.network, question.images, question.class_index, stage)[0])
    remark = ""
    if values.size == 1:
        remark = "this stage has a single place for the whole image; an earlier stage says where"
    elif not values.any():
        remark = "nothing in this stage speaks for the class"
    row, column = (int(place) + 1 for place in np.unravel_index(values.argmax(), values.shape))
    facts = {"strongest": {"row": row, "column": column}}
    legend = "evidence for the class (logit x activation)"
    return Answer(values, _counted(question.network, stage), facts, partial(_map, values, legend), remark)


def _integrated_gradients(question: Question) -> Answer:
    found = complete_gradients(question.network, question.images, question.class_index)
    values = _array(found.attributions[0].sum(0))  # (H, W)
    error = float(found.error[0])
    remark = ""
    if error > COMPLETE:
        remark = f"incomplete: in {found.steps} steps the pixels' shares miss the logit's difference by {error:.0%}"
    facts = {"difference": float(found.difference[0]), "completeness_error": error, "steps": found.steps}
    return Answer(values, None, facts, partial(_map, values, "added to the logit, by pixel"), remark)


def _rollout(question: Question) -> Answer:
    stage = -1 if question.stage is None else question.stage
    values = _array(attention_rollout(question.network, question.images, stage)[0])
    shares = np.sort(values, axis=None)[::-1].cumsum()
    facts = {"places": int(np.searchsorted(shares, 0.5)) + 1, "of": values.size}
    legend = "share of what arrives at the end"
    return Answer(values, _counted(question.network, stage), facts, partial(_map, values, legend))


def _position_bias(question: Question) -> Answer:
    stage = FIRST if question.stage is None else question.stage
    height, width = question.images.shape[2:]
    found = position_bias(question.network, stage, img_size=(height, width))
    facts = {"heads": len(found.maps), "kv_stride": found.kv_stride, "spread": found.spread}
    return Answer(
        _array(found.maps),
        _counted(question.network, stage),
        facts,
        lambda picture, title, remark: draw_bias(picture, found, title, remark),
    )


def _lpu(question: Question) -> Answer:
    stage = FIRST if question.stage is None else question.stage
    found = local_perception(question.network, question.images, stage)
    facts = {"channels": len(found.kernels), "block": 1, "mean_change": float(found.change.mean())}
    return Answer(
        _array(found.kernels),
        _counted(question.network, stage),
        facts,
        lambda picture, title, remark: draw_lpu(picture, found, title, remark),
    )


def _receptive_field(question: Question) -> Answer:
    stage = -1 if question.stage is None else question.stage
    found = receptive_field(question.network, question.images, stage)
    values = _array(found.shares)
    facts = {"side_of_half": found.side(0.5), "side_of_nine_tenths": found.side(0.9)}
    return Answer(
        values, _counted(question.network, stage), facts, partial(_map, values, "share of the gradient, by pixel")
    )


def _map(
    values: npt.NDArray[np.float32], legend: str, picture: npt.NDArray[np.uint8], title: str, remark: str
) -> Figure:
    return draw_map(picture, values, title, legend, remark)


def _array(values: torch.Tensor) -> npt.NDArray[np.float32]:
    return values.detach().float().cpu().numpy()


def _counted(network: nn.Module, stage: int) -> int:
    return stage_index(network, stage) + 1


def _has_stages(network: nn.Module) -> bool:
    return num_stages(network) > 0


_GRAD_CAM = Method(
    name="grad-cam",
    title="Grad-CAM",
    shape="(h, w), from 0",
    applies=_has_stages,
    ask=partial(_cam, grad_cam),
    in_words=lambda facts: "strongest in row {row}, column {column} of the map".format(**facts["strongest"]),
    per_class=True,
)
_ALL = (
    _GRAD_CAM,
    replace(_GRAD_CAM, name="hires-cam", title="HiResCAM", ask=partial(_cam, hires_cam)),
    Method(
        name="integrated-gradients",
        title="Integrated gradients",
        shape="(H, W), summed over colours",
        applies=lambda network: True,
        ask=_integrated_gradients,
        in_words=lambda facts: "pixels add up to {difference:.3g} of the logit, {completeness_error:.2%} off".format(
            **facts
        ),
        per_class=True,
        per_stage=False,
    ),
    Method(
        name="rollout",
        title="Attention rollout",
        shape="(h, w), sums to 1",
        applies=has_readable_attention,
        ask=_rollout,
        in_words=lambda facts: "the {places} best places of {of} have half of the attention".format(**facts),
    ),
    Method(
        name="position-bias",
        title="Position bias",
        shape="(heads, rows, columns, key rows, key columns)",
        applies=has_position_bias,
        ask=_position_bias,
        in_words=lambda facts: "over the keys it varies by {spread:.2g} (standard deviation, in logits)".format(
            **facts
        ),
    ),
    Method(
        name="lpu",
        title="Local Perception Unit",
        shape="(C, 3, 3), identity included",
        applies=has_lpu,
        ask=_lpu,
        in_words=lambda facts: "block {block} changes a channel by {mean_change:.0%} on average".format(**facts),
    ),
    Method(
        name="receptive-field",
        title="Effective receptive field",
        shape="(H, W), sums to 1",
        applies=_has_stages,
        ask=_receptive_field,
        in_words=lambda facts: (
            "half of it within {side_of_half} x {side_of_half} px, nine tenths within "
            "{side_of_nine_tenths} x {side_of_nine_tenths} px".format(**facts)
        ),
    ),
)
METHODS = {method.name: method for method in _ALL}


def applicable(network: nn.Module) -> list[str]:
    """The names of the methods that apply to a network."""
    return [name for name, method in METHODS.items() if method.applies(network)]
