"""Which module is swapped for which, see modules.py."""

from collections.abc import Callable
from typing import Any, TypeVar

from timm.layers import LayerNorm2d
from torch import nn

from cmtvision.models.accelerate.as_written import hooked
from cmtvision.models.accelerate.modules import FastAttention, FastIRFFN, FastLPU, MapLayerNorm, faster_act
from cmtvision.models.cmt.irffn import InvertedResidualFFN
from cmtvision.models.cmt.lmhsa import LightweightAttention
from cmtvision.models.cmt.lpu import LocalPerceptionUnit
from cmtvision.models.cmt.stem import Stem
from cmtvision.models.ladder.parts import MLP, FFNWithoutShortcut
from cmtvision.models.peers.leff import LocallyEnhancedFFN

Network = TypeVar("Network", bound=nn.Module)
FASTER: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    LocalPerceptionUnit: FastLPU,
    InvertedResidualFFN: FastIRFFN,
    LightweightAttention: FastAttention,
    LayerNorm2d: MapLayerNorm,
}
ACT_ON_MAPS = (Stem, MLP, FFNWithoutShortcut, LocallyEnhancedFFN)
"""Modules whose ``act`` is a GELU of a map."""


def accelerate(model: Network) -> Network:
    """Swap modules of a network of ours, in place, for faster ones; parameters, state dict and results stay.

    What is hooked, or not exactly a module of ours, stays as it is. A network that was accelerated is trained and
    evaluated as before; TorchScript and torch.fx want a plain one.

    Returns:
        The network.
    """
    if any(isinstance(module, ACT_ON_MAPS) for module in model.modules()):
        _swap_inside(model)
    return model


def _swap_inside(parent: nn.Module) -> None:
    if type(parent) in ACT_ON_MAPS:
        parent.act = faster_act(parent.act)  # type: ignore[arg-type]
    for name, child in list(parent.named_children()):
        make = FASTER.get(type(child))
        if make is not None and not hooked(child):
            child = make(child)  # noqa: PLW2901
            setattr(parent, name, child)
        _swap_inside(child)
