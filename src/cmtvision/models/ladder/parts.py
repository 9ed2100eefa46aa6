"""Alternatives to the paper's parts, and the options that select them.

    lpu            True, or False for no Local Perception Unit in the blocks
    ffn            'irffn', 'no_shortcut' (no identity around its depthwise convolution), or 'mlp' (a transformer's)
    norm           'batch' as in the paper, or 'layer' in every place where it has BN
    rel_pos        'relative' besides those of ``CMT``: tables over relative offsets, as in the Keras family
    abs_pos        False, or True for a learned absolute position embedding before the first block, as in DeiT
    qkv_bias       True, or False for no biases in the attention's linear layers and reducing convolution
    kv_norm        norm after the reducing convolution, 'batch' or 'layer'; None as ``norm``
    head_act_first False, or True for GELU before the last norm instead of SiLU after it, as in the Keras family
    downsample_norm_eps, block_norm_eps    of the LayerNorms after each stage's convolution and in the blocks

The ladder, the leave-one-outs of ``cmtvision ablate`` and the Keras family's network are built with them. A
recipe and a card give them as arguments of their network.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from timm.layers import LayerNorm2d
from torch import nn

from cmtvision.models.cmt.cmt import CMT, PAPER, FinalConv, Maker, Parts
from cmtvision.models.cmt.irffn import InvertedResidualFFN
from cmtvision.models.cmt.lmhsa import LightweightAttention
from cmtvision.models.cmt.position import PositionBias, PositionEmbedding, RelativePositionBias


class MLP(nn.Module):
    """A transformer's feed-forward network on a map: 1x1 conv -> GELU -> 1x1 conv.

    Input and output (B, dim, H, W); inside (B, hidden_dim, H, W). It has no norm: ``norm_layer`` is not used.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        proj_drop_rate: float = 0.0,
        norm_layer: Any = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.expand = nn.Conv2d(dim, hidden_dim, 1, device=device, dtype=dtype)
        self.project = nn.Conv2d(hidden_dim, dim, 1, device=device, dtype=dtype)
        self.act = nn.GELU()
        self.drop = nn.Dropout(proj_drop_rate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, dim, H, W) -> map (B, dim, H, W)."""
        return self.drop(self.project(self.act(self.expand(x))))


class FFNWithoutShortcut(InvertedResidualFFN):
    """The IRFFN without the identity around its depthwise convolution."""

    def neighbours(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, hidden_dim, H, W) -> map (B, hidden_dim, H, W)."""
        return self.conv(x)


class ActFirstFinalConv(FinalConv):
    """The Keras family's convolution before the pooling: conv -> GELU -> norm."""

    def __init__(
        self, dim: int, width: int, norm_layer: Any = nn.BatchNorm2d, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__(dim, width, norm_layer, device, dtype)
        self.act = nn.GELU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, dim, H, W) -> map (B, width, H, W)."""
        return self.norm(self.act(self.conv(x)))


OPTIONS = frozenset(
    {
        "lpu", "ffn", "norm", "abs_pos", "qkv_bias", "kv_norm", "head_act_first", "downsample_norm_eps",
        "block_norm_eps",
    }
)  # fmt: skip
"""What ``with_parts`` knows besides the arguments of ``CMT``."""
FFNS: dict[str, Maker] = {"irffn": InvertedResidualFFN, "no_shortcut": FFNWithoutShortcut, "mlp": MLP}


def build(**arguments: Any) -> CMT:
    """A ``CMT`` from its own arguments and the options above.

    Raises:
        ValueError: an invalid option.
    """
    return CMT(**with_parts(arguments))


def with_parts(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Convert arguments of ``CMT`` and options into arguments of ``CMT`` alone.

    Raises:
        ValueError: an invalid option.
    """
    others = dict(arguments)
    lpu = others.pop("lpu", True)
    ffn = _choice("ffn", others.pop("ffn", "irffn"), tuple(FFNS))
    norm = _choice("norm", others.pop("norm", "batch"), ("batch", "layer"))
    kv_norm = _choice("kv_norm", others.pop("kv_norm", None) or norm, ("batch", "layer"))
    block_norm = _layer_norm(others.pop("block_norm_eps", None)) or PAPER.block_norm
    norms: dict[str, Maker] = {"batch": nn.BatchNorm2d, "layer": block_norm}
    kind = _choice("rel_pos", others.get("rel_pos", "stage"), ("stage", "block", "none", "relative"))
    if kind == "relative":
        others["rel_pos"] = "block"
    qkv_bias = others.pop("qkv_bias", True)
    others["parts"] = Parts(
        lpu=PAPER.lpu if lpu else nn.Identity,
        attention=PAPER.attention if qkv_bias else partial(LightweightAttention, qkv_bias=False),
        ffn=FFNS[ffn],
        norm=norms[norm],
        kv_norm=norms[kv_norm],
        block_norm=block_norm,
        downsample_norm=_layer_norm(others.pop("downsample_norm_eps", None)) or PAPER.downsample_norm,
        position_bias=RelativePositionBias if kind == "relative" else PositionBias,
        position_embedding=PositionEmbedding if others.pop("abs_pos", False) else None,
        final=ActFirstFinalConv if others.pop("head_act_first", False) else FinalConv,
    )
    return others


def _layer_norm(eps: float | None) -> Maker | None:
    return None if eps is None else partial(LayerNorm2d, eps=eps)


def _choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ValueError(f"{name} {value!r}: expected {', '.join(map(repr, choices[:-1]))} or {choices[-1]!r}")
    return value
