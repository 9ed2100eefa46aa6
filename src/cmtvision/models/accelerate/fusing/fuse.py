"""A CMT for inference alone: the same logits, with everything constant folded into the weights.

- BN after a convolution or linear layer, and LayerNorm's scale and shift, are folded into the adjacent operation; so is
  a BN before a padded convolution, with a correction at the border (fused_layers.py).
- The identities of LPU and IRFFN become a 1 at the centre of their depthwise kernels.
- k and v come from one product; the position bias is resampled and laid out once for each image size.
- Maps stay channels-last from the stem to the pooling: a linear layer and a convolution read the same memory.

Equations: CMT paper, sections 3.1 and 3.2; which layer is which: models/cmt/cmt.py.

Shapes: B batch, H W grid, C channels, N = H*W queries, M keys, h heads, d head width.
"""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any, cast

import torch
from timm.layers import DropPath, LayerNorm2d
from torch import nn

from cmtvision.errors import ConfigError
from cmtvision.models.accelerate.as_written import is_gelu
from cmtvision.models.accelerate.fusing.fused_layers import (
    FusedConv,
    FusedLayer,
    FusedLinear,
    LastNorm,
    kept_or_made,
)
from cmtvision.models.accelerate.modules import (
    FastAttention,
    FastIRFFN,
    FastLPU,
    MapGELU,
    MapLayerNorm,
    ReducingConv,
    TokenLinear,
)
from cmtvision.models.accelerate.native import operations
from cmtvision.models.cmt import CMT
from cmtvision.models.cmt.cmt import FinalConv
from cmtvision.models.cmt.irffn import InvertedResidualFFN
from cmtvision.models.cmt.lmhsa import LightweightAttention, fused_attention
from cmtvision.models.cmt.lpu import LocalPerceptionUnit
from cmtvision.models.cmt.position import Grid, PositionEmbedding
from cmtvision.models.cmt.stage import Block, Downsample, Stage
from cmtvision.models.cmt.stem import Stem
from cmtvision.models.ladder.parts import MLP, ActFirstFinalConv, FFNWithoutShortcut

Affine = tuple[torch.Tensor, torch.Tensor]  # scale and shift, (C,) each
PARTS: frozenset[type[nn.Module]] = frozenset(
    {
        CMT, Stem, Stage, Downsample, Block, FinalConv, ActFirstFinalConv, LocalPerceptionUnit, LightweightAttention,
        InvertedResidualFFN, FFNWithoutShortcut, MLP, FastLPU, FastAttention, FastIRFFN, nn.Conv2d, ReducingConv,
        nn.Linear, TokenLinear, nn.BatchNorm2d, LayerNorm2d, MapLayerNorm, nn.GELU, MapGELU, nn.Sequential,
        nn.ModuleList, nn.Identity, nn.Dropout, DropPath,
    }
)  # fmt: skip
"""What a network may consist of, and nothing derived from it, whose equations are not known."""
COPIED = ("position_bias", "position_embedding", "global_pool", "head_drop", "head")
"""Parts that are taken as they are."""


def fuse(
    model: nn.Module,
    img_size: int | Grid | None = None,
    dtype: torch.dtype = torch.float32,
    packed: bool | None = None,
) -> "FusedCMT":
    """The network for inference: the same logits (to 1e-5 of their range in float32), in fewer and larger steps.

    Args:
        model: a CMT, with any of its options; it is left as it is.
        img_size: side or (height, width) in pixels of the expected images; other sizes work, and are laid out on first
            use.
        dtype: of weights and arithmetic; images and logits may be of any type.
        packed: pack weights for oneDNN, which is faster on a CPU but can neither be exported nor compiled; None
            packs them if the model is on a CPU.

    Raises:
        ConfigError: the network is not a CMT, or a part of it has been replaced by something that is not known here.
    """
    if not isinstance(model, CMT):
        raise ConfigError(f"fuse: {type(model).__name__} is no CMT; other networks run as they are")
    _check_parts(model)
    device = next(model.parameters()).device
    with torch.no_grad():
        fused = FusedCMT(model, device, dtype).eval()
        if packed or packed is None:
            fused.pack()
        height, width = (
            model.img_size if img_size is None else (img_size, img_size) if isinstance(img_size, int) else img_size
        )
        fused(torch.zeros(1, model.in_chans, height, width, device=device))  # constants of this size
    return fused


class FusedCMT(nn.Module):
    """What ``fuse`` gives: images (B, in_chans, H, W) -> logits (B, num_classes) of the images' type."""

    def __init__(self, model: CMT, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        stem = model.stem
        norm_before: Affine | None = None
        layers: list[nn.Module] = []
        for conv, norm in ((stem.conv1, stem.norm1), (stem.conv2, stem.norm2), (stem.conv3, stem.norm3)):
            layers.append(_conv(conv, norm_before, gelu=True))
            norm_before = _affine(norm)
            if norm_before is None:
                layers.append(_norm(norm))
        self.stem = nn.Sequential(*layers)
        stages = []
        for stage in model.stages:
            stages.append(FusedStage(cast(Stage, stage), norm_before))
            norm_before = None
        self.stages = nn.Sequential(*stages)
        self.final = _final(model)
        self.global_pool = deepcopy(model.global_pool)
        self.head: nn.Module = _linear(model.head) if type(model.head) is nn.Linear else deepcopy(model.head)
        self.to(device=device, dtype=dtype)

    def pack(self) -> None:
        """Pack all weights for oneDNN if it is available, and use the native loops if there are some."""
        for layer in self._layers():
            layer.pack()
        for module in self.modules():
            if isinstance(module, LastNorm | FusedAttention | FusedStage):
                module.native = True

    def _layers(self) -> Iterator[FusedLayer]:
        return (layer for layer in self.modules() if isinstance(layer, FusedLayer))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, in_chans, H, W) -> logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x)).to(x.dtype)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, in_chans, H, W) -> features (B, num_features, H/32, W/32), in the network's type."""
        x = x.to(next(self._layers()).weight.dtype, memory_format=torch.channels_last).permute(0, 2, 3, 1)
        return self.final(self.stages(self.stem(x))).permute(0, 3, 1, 2)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Features (B, num_features, H/32, W/32) -> logits (B, num_classes), or the pooled vector before them."""
        x = self.global_pool(x)
        return x if pre_logits else self.head(x)


class FusedStage(nn.Module):
    """A stage: map (B, H, W, C) -> map (B, H/2, W/2, D). ``norm_before``: scale and shift of the preceding norm."""

    def __init__(self, stage: Stage, norm_before: Affine | None) -> None:
        super().__init__()
        self.downsample = _conv(stage.downsample.conv, norm_before)
        embedding = stage.position_embedding
        self.embedding = deepcopy(embedding) if isinstance(embedding, PositionEmbedding) else None
        blocks: list[Block] = list(stage.blocks)  # type: ignore[arg-type]
        # the shift and scale of the stage's LayerNorm are taken by the first LPU, where that alone reads the map
        folds = self.embedding is None and isinstance(blocks[0].lpu, LocalPerceptionUnit)
        self.norm = _norm(stage.downsample.norm, affine=not folds)
        norm_before = _layer_norm_affine(stage.downsample.norm) if folds else None
        self.position_bias = deepcopy(stage.position_bias)
        self.blocks = nn.ModuleList(FusedBlock(b, norm_before if i == 0 else None) for i, b in enumerate(blocks))
        self._biases = GridConstants()
        self.native = False  # whether a native loop may take the bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, H, W, C) -> map (B, H/2, W/2, D)."""
        x = self.norm(self.downsample(x))  # (B, H/2, W/2, D)
        if self.embedding is not None:
            x = self.embedding(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).contiguous()
        bias = self._biases.of(self.position_bias, x, self.native)  # (1, h, N, M)
        for block in self.blocks:
            x = block(x, bias)
        return x

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self._biases.forget()
        super()._load_from_state_dict(*arguments)


class FusedBlock(nn.Module):
    """A block: map (B, H, W, C) and bias (1, h, N, M) or None -> map (B, H, W, C)."""

    def __init__(self, block: Block, norm_before: Affine | None) -> None:
        super().__init__()
        lpu = block.lpu
        self.lpu = (
            _conv(lpu.conv, norm_before, identity=True) if isinstance(lpu, LocalPerceptionUnit) else nn.Identity()
        )
        self.norm1 = _norm(block.norm1, affine=False)
        self.attention = FusedAttention(cast(LightweightAttention, block.lmhsa), _layer_norm_affine(block.norm1))
        self.norm2 = _norm(block.norm2, affine=False)
        ffn = FusedMLP if isinstance(block.irffn, MLP) else FusedIRFFN
        self.ffn = ffn(block.irffn, _layer_norm_affine(block.norm2))  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Map (B, H, W, C) -> map (B, H, W, C)."""
        x = self.lpu(x)
        x = self.attention(self.norm1(x), bias, x)
        return self.ffn(self.norm2(x), x)


class FusedAttention(nn.Module):
    """LMHSA and the residual sum; ``norm_before`` is the scale and shift of the preceding LayerNorm."""

    def __init__(self, attention: LightweightAttention, norm_before: Affine) -> None:
        super().__init__()
        self.num_heads, self.head_dim = attention.num_heads, attention.head_dim
        self.q = _linear(attention.q, norm_before)
        self.reduce: nn.Module = nn.Identity()
        reduces = attention.kv_stride > 1
        if reduces:
            norm_after = _affine(attention.kv_norm)
            reduce = _conv(attention.kv_conv, norm_before, norm_after)
            self.reduce = reduce if norm_after is not None else nn.Sequential(reduce, _norm(attention.kv_norm))
        self.kv = _linear_pair(attention.k, attention.v, None if reduces else norm_before)
        self.position_bias = deepcopy(attention.position_bias)
        self._biases = GridConstants()
        self.project = _linear(attention.proj)
        self.native = False  # whether a native loop may compute it

    def forward(self, x: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor) -> torch.Tensor:
        """Normed map, bias (1, h, N, M) or None, and the map to add: (B, H, W, C) -> map (B, H, W, C)."""
        B, H, W, C = x.shape
        if self.position_bias is not None:
            bias = self._biases.of(self.position_bias, x, self.native)
        q = self.q(x).flatten(1, 2)  # (B, N, h d)
        kv = self.kv(self.reduce(x)).flatten(1, 2)  # (B, M, 2 h d)
        shape = (1, self.num_heads, q.shape[1], kv.shape[1])
        whole = bias is None or (bias.dtype == torch.float32 and bias.shape == shape)
        if self.native and whole and operations.takes(q) and operations.takes(kv):
            out = operations.attention(q, kv, bias, self.num_heads, self.head_dim**-0.5)  # (B, N, h d)
            return self.project(out.view(B, H, W, C), add=residual)
        q = q.unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)  # (B, h, N, d)
        k, v = kv.unflatten(2, (2, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)  # (B, h, M, d)
        out = fused_attention(q, k, v, None if bias is None else bias.to(q.dtype))  # (B, h, N, d)
        return self.project(out.transpose(1, 2).reshape(B, H, W, C), add=residual)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self._biases.forget()
        super()._load_from_state_dict(*arguments)


class FusedIRFFN(nn.Module):
    """IRFFN and the residual sum; ``norm_before`` is the scale and shift of the preceding LayerNorm."""

    def __init__(self, ffn: InvertedResidualFFN, norm_before: Affine) -> None:
        super().__init__()
        inner, outer, norm_after = _affine(ffn.expand_norm), _affine(ffn.conv_norm), _affine(ffn.project_norm)
        self.expand = _linear(ffn.expand, norm_before, gelu=True)
        self.expand_norm = _norm(ffn.expand_norm) if inner is None else nn.Identity()
        self.conv = _conv(ffn.conv, inner, identity=not isinstance(ffn, FFNWithoutShortcut), gelu=True)
        self.conv_norm = _norm(ffn.conv_norm) if outer is None else nn.Identity()
        self.project = _linear(ffn.project, outer, norm_after)
        self.project_norm = _norm(ffn.project_norm) if norm_after is None else None

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Normed map and the map to add (B, H, W, C) -> map (B, H, W, C)."""
        x = self.conv_norm(self.conv(self.expand_norm(self.expand(x))))  # (B, H, W, hidden width)
        if self.project_norm is not None:
            return residual + self.project_norm(self.project(x))
        return self.project(x, add=residual)


class FusedMLP(nn.Module):
    """A transformer's feed-forward network and the residual sum."""

    def __init__(self, ffn: MLP, norm_before: Affine) -> None:
        super().__init__()
        self.expand = _linear(ffn.expand, norm_before, gelu=True)
        self.project = _linear(ffn.project)

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Normed map and the map to add (B, H, W, C) -> map (B, H, W, C)."""
        return self.project(self.expand(x), add=residual)


class GridConstants:
    """The position bias of the most recent image sizes, laid out for attention."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, int, torch.dtype, torch.device], torch.Tensor] = {}

    def of(self, position_bias: nn.Module | None, x: torch.Tensor, native: bool) -> torch.Tensor | None:
        """The bias (1, h, N, M), or its factors, for a map (B, H, W, C), on its device.

        Native loops take it in float32, PyTorch's attention in the type of the map.
        """
        if position_bias is None:
            return None
        dtype = torch.float32 if native and x.dtype in operations.TYPES else x.dtype
        key = (x.shape[1], x.shape[2], dtype, x.device)

        def make() -> torch.Tensor:
            bias: torch.Tensor = position_bias(x.shape[1], x.shape[2]).to(dtype).contiguous()
            return bias.detach()  # with a gradient, PyTorch takes the slower attention

        return kept_or_made(self._kept, key, make)

    def forget(self) -> None:
        """The bias has changed."""
        self._kept.clear()


class ScaleShift(nn.Module):
    """The scale and shift of a norm that no later operation can absorb."""

    def __init__(self, affine: Affine) -> None:
        super().__init__()
        self.register_buffer("scale", affine[0])
        self.register_buffer("shift", affine[1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, H, W, C) -> map (B, H, W, C)."""
        return torch.addcmul(self.shift, x, self.scale)  # type: ignore[arg-type]


def _check_parts(model: CMT) -> None:
    """Raise ConfigError for a module that the fused network would compute as something else."""
    for name, module in model.named_modules():
        if any(part in COPIED for part in name.split(".")):
            continue
        known = type(module) in PARTS
        if name.endswith(".lpu"):
            known = type(module) in (LocalPerceptionUnit, FastLPU, nn.Identity)
        if isinstance(module, nn.Conv2d):
            sides = (module.kernel_size, module.stride, module.padding, module.dilation)
            known &= all(side == (side[0],) * 2 for side in sides) and module.dilation == (1, 1)
            known &= module.padding_mode == "zeros"
        elif isinstance(module, nn.BatchNorm2d):
            known &= module.affine and module.running_var is not None
        elif isinstance(module, nn.GELU):
            known &= is_gelu(module)
        if not known and name != "final.act":  # which is copied
            kind = type(module).__name__ if any(module.children()) else str(module)
            raise ConfigError(
                f"fuse: {name or 'the network'} is {kind}, which has no fused form; use the network as it is"
            )


def _final(model: CMT) -> nn.Module:
    """1x1 convolution, norm and activation, in the network's order; empty in a pruned network."""
    final: Any = model.final
    if isinstance(final, nn.Identity):
        return nn.Identity()
    affine = _affine(final.norm)
    act_first = isinstance(final, ActFirstFinalConv)
    if affine is not None and not act_first:
        return nn.Sequential(_linear(final.conv, norm_after=affine), deepcopy(final.act))
    norm = _norm(final.norm) if affine is None else ScaleShift(affine)
    rest = (deepcopy(final.act), norm) if act_first else (norm, deepcopy(final.act))
    return nn.Sequential(_linear(final.conv), *rest)


def _double(x: torch.Tensor | None) -> torch.Tensor | None:
    return None if x is None else x.detach().double()


def _affine(norm: Any) -> Affine | None:
    """BN in evaluation as scale and shift; None for another norm."""
    if not isinstance(norm, nn.BatchNorm2d):
        return None
    scale = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()  # type: ignore[union-attr]
    return scale, norm.bias.detach().double() - norm.running_mean.double() * scale  # type: ignore[union-attr]


def _layer_norm_affine(norm: Any) -> Affine:
    return norm.weight.detach().double(), norm.bias.detach().double()


def _norm(norm: Any, affine: bool = True) -> LastNorm:
    """A LayerNorm over channels, with or without its scale and shift."""
    values = _layer_norm_affine(norm) if affine else (None, None)
    return LastNorm(norm.weight.shape[0], norm.eps, *values)


def _linear(
    layer: Any, norm_before: Affine | None = None, norm_after: Affine | None = None, gelu: bool = False
) -> FusedLinear:
    """A linear layer or 1x1 convolution with the scales and shifts before and after it."""
    weight = layer.weight.detach().double().flatten(1)  # (D, C)
    bias = _double(layer.bias)
    if norm_before is not None:
        added = weight @ norm_before[1]
        bias = added if bias is None else bias + added
        weight = weight * norm_before[0]
    if norm_after is not None:
        weight = weight * norm_after[0][:, None]
        bias = norm_after[1] if bias is None else bias * norm_after[0] + norm_after[1]
    return FusedLinear(weight, bias, gelu)


def _linear_pair(first: nn.Linear, second: nn.Linear, norm_before: Affine | None) -> FusedLinear:
    """Two linear layers that read the same map, as one."""
    pair = [_linear(layer, norm_before) for layer in (first, second)]
    biases = [layer.bias for layer in pair if layer.bias is not None]
    return FusedLinear(torch.cat([layer.weight for layer in pair]), torch.cat(biases) if biases else None)


def _conv(
    conv: Any,
    norm_before: Affine | None = None,
    norm_after: Affine | None = None,
    identity: bool = False,
    gelu: bool = False,
) -> FusedConv:
    """A convolution with the norms before and after it and, for a depthwise one, the parallel identity."""
    weight, bias = conv.weight.detach().double(), _double(conv.bias)
    if identity:
        weight = weight.clone()
        weight[:, :, weight.shape[2] // 2, weight.shape[3] // 2] += 1
    if norm_after is not None:
        weight = weight * norm_after[0].view(-1, 1, 1, 1)
        bias = norm_after[1] if bias is None else bias * norm_after[0] + norm_after[1]
    return FusedConv(weight, bias, norm_before, conv.stride[0], conv.padding[0], conv.groups, gelu)
