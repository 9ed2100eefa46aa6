"""The attention matrices of a CMT, read while it runs.

    attention = softmax(q k^T / sqrt(d) + B)

LMHSA's fused path never forms the matrix. Here it is computed again from the queries and keys that pass through the
module, which is left as it is.

Shapes: B batch, C channels, H W image in pixels, h heads, N queries, M reduced keys, d head width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from cmtvision.errors import ConfigError
from cmtvision.explain.stage_maps import evaluating, with_gradient
from cmtvision.models.cmt import CMT
from cmtvision.models.cmt.lmhsa import LightweightAttention
from cmtvision.models.cmt.position import Grid, key_grid, whole_bias


@dataclass(frozen=True)
class Attention:
    """The attention of one block.

    Attributes:
        stage, block: which, both from 1.
        weights: (B, h, N, M); each row sums to 1.
        grid: rows and columns of the queries.
        key_grid: rows and columns of the reduced keys.
        kv_stride: k, the side of the patch of positions that a key is made of.
    """

    stage: int
    block: int
    weights: torch.Tensor
    grid: Grid
    key_grid: Grid
    kv_stride: int


def attention_maps(network: nn.Module, images: torch.Tensor) -> list[Attention]:
    """The attention of every block, in the order of the data.

    Args:
        network: a CMT, with any of its options.
        images: (B, channels, H, W), as the network takes them.

    Raises:
        ConfigError: the network is no CMT, or attends in another way.
    """
    if not isinstance(network, CMT):
        raise ConfigError(f"{type(network).__name__} has no LMHSA; attention is read from CMT alone")
    readers = [
        _Reader(block.lmhsa, i + 1, j + 1)
        for i, stage in enumerate(network.stages)
        for j, block in enumerate(stage.blocks)  # type: ignore[arg-type]
    ]
    try:
        with evaluating(network), torch.no_grad():
            network(with_gradient(network, images))
    finally:
        for reader in readers:
            reader.remove()
    return [reader.found for reader in readers if reader.found is not None]


def has_readable_attention(network: nn.Module) -> bool:
    """Whether ``attention_maps`` applies to a network."""
    return isinstance(network, CMT) and all(
        isinstance(block.lmhsa, LightweightAttention)
        for stage in network.stages
        for block in stage.blocks  # type: ignore[union-attr]
    )


class _Reader:
    """Reads one module's attention from its inputs and from the outputs of its two linear layers q and k."""

    def __init__(self, module: nn.Module, stage: int, block: int) -> None:
        if not isinstance(module, LightweightAttention):
            raise ConfigError(f"stage {stage}, block {block}: attention by {type(module).__name__} cannot be read")
        self.stage, self.block = stage, block
        self.found: Attention | None = None
        self._seen: dict[str, torch.Tensor] = {}
        self._handles = [
            module.q.register_forward_hook(lambda _m, _i, output: self._seen.update(q=output)),
            module.k.register_forward_hook(lambda _m, _i, output: self._seen.update(k=output)),
            module.register_forward_hook(self._after, with_kwargs=True),
        ]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _output: torch.Tensor) -> None:
        assert isinstance(module, LightweightAttention)
        x: torch.Tensor = args[0]
        grid = (x.shape[2], x.shape[3])
        bias: torch.Tensor | None = args[1] if len(args) > 1 else kwargs.get("bias")
        if module.position_bias is not None:
            bias = module.position_bias(*grid)
        q, k = (
            self._seen[name].unflatten(2, (module.num_heads, module.head_dim)).transpose(1, 2)  # (B, h, N or M, d)
            for name in ("q", "k")
        )
        scores = q @ k.transpose(-2, -1) * module.scale  # (B, h, N, M)
        weights = (scores if bias is None else scores + whole_bias(bias, q.shape[2])).softmax(dim=-1)
        stride = module.kv_stride
        self.found = Attention(self.stage, self.block, weights, grid, key_grid(grid, stride), stride)
