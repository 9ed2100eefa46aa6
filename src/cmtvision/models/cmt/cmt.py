"""CMT: "Convolutional Neural Networks Meet Vision Transformers" (Guo et al., CVPR 2022, arXiv 2107.06263).

    image -> stem -> four stages (strides 4, 8, 16, 32) -> 1x1 conv, BN, SiLU -> global average pool -> linear

Written from the paper, equal to the released networks to rounding (tests/golden), and a timm model: created,
resized, pruned, scripted and traced like any other. Order of reading: this file, stem.py, stage.py, lpu.py,
lmhsa.py, position.py, irffn.py. Differences from the released code: docs/deviations.md. Faster modules are in
models/accelerate, the named networks in models/cmt_networks.py.

Shapes: B batch, C channels, H W image size in pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from timm.layers import calculate_drop_path_rates, create_classifier, get_device_dtype, to_2tuple
from timm.models import FeatureListNet, build_model_with_cfg
from torch import nn

from cmtvision.models.cmt.checkpoint import checkpoint_filter_fn
from cmtvision.models.cmt.irffn import InvertedResidualFFN
from cmtvision.models.cmt.lmhsa import LightweightAttention
from cmtvision.models.cmt.lpu import LocalPerceptionUnit
from cmtvision.models.cmt.position import Grid, PositionBias
from cmtvision.models.cmt.stage import BLOCK_NORM, DOWNSAMPLE_NORM, Block, Downsample, Stage
from cmtvision.models.cmt.stem import Stem
from cmtvision.models.cmt.variants import VARIANTS
from cmtvision.models.timm_private import feature_take_indices, update_model_input_size
from cmtvision.models.weight_sources import load_file, read_by_us

STEM_STRIDE = 2
NUM_STAGES = 4
Maker: TypeAlias = Callable[..., nn.Module]


class FinalConv(nn.Module):
    """The 1x1 convolution between the last stage and the pooling: (B, dim, H, W) -> (B, width, H, W)."""

    def __init__(
        self, dim: int, width: int, norm_layer: Any = nn.BatchNorm2d, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, width, 1, device=device, dtype=dtype)
        self.norm = norm_layer(width, device=device, dtype=dtype)
        self.act: nn.Module = nn.SiLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, dim, H, W) -> map (B, width, H, W)."""
        return self.act(self.norm(self.conv(x)))


@dataclass(frozen=True)
class Parts:
    """The components of a CMT: the paper's, each replaceable by another with the same input and output.

    Each is called with widths, and with ``device`` and ``dtype``.

    Attributes:
        lpu: (dim): map -> map.
        attention: (dim, num_heads, kv_stride=, kv_norm=, position_bias=, attn_drop_rate=, proj_drop_rate=): map and
            bias -> map.
        ffn: (dim, hidden_dim, proj_drop_rate=, norm_layer=): map -> map.
        norm: (dim), wherever the paper has BN.
        kv_norm: (dim), after the convolution that reduces keys and values; None as ``norm``.
        block_norm: (dim), before attention and feed-forward network.
        downsample_norm: (dim), after the convolution between stages.
        position_bias: (num_heads, grid, kv_stride): height and width -> bias (1, h, N, M), or its factors.
        position_embedding: (dim, grid), after the first stage's convolution: map -> map; None for none, as in the
            paper.
        final: (dim, width, norm_layer=), before the pooling: map -> map.
    """

    lpu: Maker = LocalPerceptionUnit
    attention: Maker = LightweightAttention
    ffn: Maker = InvertedResidualFFN
    norm: Maker = nn.BatchNorm2d
    kv_norm: Maker | None = None
    block_norm: Maker = BLOCK_NORM
    downsample_norm: Maker = DOWNSAMPLE_NORM
    position_bias: Maker = PositionBias
    position_embedding: Maker | None = None
    final: Maker = FinalConv


PAPER = Parts()


class CMT(nn.Module):
    """The CMT network.

    Args:
        img_size: side of the image in pixels, or (H, W); fixes the size of the position bias tables.
        in_chans: channels of the image.
        num_classes: width of the classifier; 0 for none.
        global_pool: timm's pooling before the classifier ('avg', 'max', 'avgmax', 'catavgmax', '' for none).
        stem_width: channels of the stem.
        dims: channels of the stages.
        depths: blocks of the stages.
        mlp_ratio: R, expansion of the IRFFN.
        num_heads: attention heads of the stages.
        kv_strides: k, reduction of keys and values in the stages.
        head_width: channels of the 1x1 convolution before the pooling.
        rel_pos: position bias: 'stage' (one per stage, released code), 'block' (one per block, the paper's text), or
            'none'.
        dynamic_img_size: accept any H x W from 32 px up, resampling the bias; else only img_size.
        drop_rate: dropout before the classifier.
        drop_path_rate: drop path of the last block; the others rise linearly from 0.
        proj_drop_rate: dropout after each attention and feed-forward network.
        attn_drop_rate: dropout of attention weights.
        parts: the components it is built from.
        device: where parameters are created.
        dtype: their type.

    Raises:
        ValueError: an invalid rel_pos or img_size, or widths and heads that do not fit.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        stem_width: int = 32,
        dims: tuple[int, ...] = (64, 128, 256, 512),
        depths: tuple[int, ...] = (3, 3, 16, 3),
        mlp_ratio: float = 4.0,
        num_heads: tuple[int, ...] = (1, 2, 4, 8),
        kv_strides: tuple[int, ...] = (8, 4, 2, 1),
        head_width: int = 1280,
        rel_pos: Literal["stage", "block", "none"] = "stage",
        dynamic_img_size: bool = True,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        parts: Parts = PAPER,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        if rel_pos not in ("stage", "block", "none"):
            raise ValueError(f"rel_pos {rel_pos!r}: expected 'stage', 'block' or 'none'")
        if not len(dims) == len(depths) == len(num_heads) == len(kv_strides) == NUM_STAGES:
            raise ValueError(f"dims {dims}, depths {depths}, num_heads {num_heads}, kv_strides {kv_strides}: "
                             f"expected {NUM_STAGES} values each, one per stage")  # fmt: skip
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.img_size: Grid = _image_size(img_size)
        self.dynamic_img_size = dynamic_img_size
        self.rel_pos = rel_pos
        self.num_features = self.head_hidden_size = head_width
        self.feature_info = [
            {"num_chs": dim, "reduction": STEM_STRIDE * 2 ** (i + 1), "module": f"stages.{i}"}
            for i, dim in enumerate(dims)
        ]
        drop_path_rates = _drop_path_rates(drop_path_rate, depths)
        self.stem = Stem(in_chans, stem_width, norm_layer=parts.norm, **dd)
        stages = []
        in_dim = stem_width
        for i, (dim, grid) in enumerate(zip(dims, _stage_grids(self.img_size), strict=True)):
            make_bias = partial(parts.position_bias, num_heads[i], grid, kv_strides[i], **dd)
            blocks = [
                Block(
                    dim,
                    parts.attention(
                        dim,
                        num_heads[i],
                        kv_stride=kv_strides[i],
                        kv_norm=parts.kv_norm or parts.norm,
                        position_bias=make_bias() if rel_pos == "block" else None,
                        attn_drop_rate=attn_drop_rate,
                        proj_drop_rate=proj_drop_rate,
                        **dd,
                    ),
                    parts.ffn(dim, int(dim * mlp_ratio), proj_drop_rate=proj_drop_rate, norm_layer=parts.norm, **dd),
                    lpu=parts.lpu,
                    norm_layer=parts.block_norm,
                    drop_path_rate=drop_path_rates[i][j],
                    **dd,
                )
                for j in range(depths[i])
            ]
            downsample = Downsample(in_dim, dim, norm_layer=parts.downsample_norm, **dd)
            embeds = parts.position_embedding is not None and i == 0
            embedding = parts.position_embedding(dim, grid, **dd) if embeds else None  # type: ignore[misc]
            stages.append(Stage(downsample, make_bias() if rel_pos == "stage" else None, blocks, embedding))
            in_dim = dim
        self.stages = nn.Sequential(*stages)
        self.final = parts.final(in_dim, head_width, norm_layer=parts.norm, **dd)
        self.global_pool, self.head_drop, self.head = create_classifier(
            head_width, num_classes, pool_type=global_pool, drop_rate=drop_rate, **dd
        )
        self.head_hidden_size = head_width * self.global_pool.feat_mult()
        self.init_weights(needs_reset=False)

    @torch.jit.ignore
    def init_weights(self, needs_reset: bool = True) -> None:
        """Initialise as the released code does; with needs_reset every tensor is written, norms and buffers too."""
        self.apply(partial(_init_module, needs_reset=needs_reset))

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Group parameters by depth, for layer-wise learning rates: stem, stage by stage (coarse) or block by block."""
        if coarse:
            return {"stem": r"^stem", "blocks": r"^stages\.(\d+)"}
        return {
            "stem": r"^stem",
            "blocks": [
                (r"^stages\.(\d+)\.(?:downsample|position_bias|position_embedding)", (0,)),
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^final", (99999,)),
            ],
        }

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay beyond biases and norms: an absolute position embedding, as in DeiT.

        Not the position bias: the released recipe decays its tables.
        """
        return {name for name, _ in self.named_parameters() if name.endswith("position_embedding.table")}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory: keep only the maps between blocks and recompute the rest in the backward pass."""
        for stage in self.stages:
            stage.grad_checkpointing = enable  # type: ignore[assignment]

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The linear classifier."""
        return self.head

    @torch.jit.ignore
    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier; pooling, train mode, device and dtype stay unless another pooling is named."""
        self.num_classes = num_classes
        pool_type = self.global_pool.pool_type if global_pool is None else global_pool
        self.global_pool, self.head = create_classifier(
            self.num_features, num_classes, pool_type=pool_type, **get_device_dtype(self)
        )
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        if isinstance(self.head, nn.Linear):
            _init_module(self.head, needs_reset=True)
        self.global_pool.train(self.training)
        self.head.train(self.training)

    @torch.jit.ignore
    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Change the nominal image size (H, W) in pixels: the position bias tables are resampled once, in place."""
        self.img_size = _image_size(img_size)
        for stage, grid in zip(self.stages, _stage_grids(self.img_size), strict=False):
            for module in stage.modules():
                if hasattr(module, "set_grid"):
                    module.set_grid(grid)  # type: ignore[operator]
        update_model_input_size(self, self.img_size)

    @torch.jit.ignore
    def load_pretrained(self, checkpoint_path: str | Path) -> None:
        """Load a released checkpoint or any other file of weights, adapting classifier, channels and size.

        timm calls this for ``pretrained=True`` (`custom_load`), so that files are read by our safe reader.

        Raises:
            CheckpointError: where the file cannot be read safely or belongs to another network.
        """
        load_file(self, checkpoint_path, partial(checkpoint_filter_fn, source=str(checkpoint_path)))

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """The maps after chosen stages, and the output of forward_features.

        Args:
            x: image (B, in_chans, H, W).
            indices: stages to return: the last n for a number, all for None.
            norm: accepted for timm's interface; CMT has no norm after its stages, so it has no effect.
            stop_early: do not run stages after the last one asked for.
            output_fmt: 'NCHW', the only format.
            intermediates_only: return the maps alone.

        Returns:
            The maps (B, dim, H/s, W/s), s = 4, 8, 16, 32; or (final features, maps).
        """
        assert output_fmt == "NCHW", "output_fmt must be NCHW"
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        self._check_size(x)
        intermediates: list[torch.Tensor] = []
        x = self.stem(x)
        if torch.jit.is_scripting() or not stop_early:  # noqa: SIM108  # a scripted Sequential cannot be sliced
            stages = self.stages
        else:
            stages = self.stages[: max_index + 1]
        ran = 0
        for i, stage in enumerate(stages):
            x = stage(x)
            ran = i
            if i in take_indices:
                intermediates.append(x)
        if intermediates_only:
            return intermediates
        if ran == len(self.stages) - 1:
            x = self.final(x)
        return x, intermediates

    @torch.jit.ignore
    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the chosen stages do not need: later stages, and with them the final convolution and classifier.

        Returns:
            The indices of the stages that forward_intermediates will return.
        """
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        prune_final = prune_norm or prune_head or max_index < len(self.stages) - 1
        self.stages = self.stages[: max_index + 1]
        if prune_final:
            self.final = nn.Identity()
            self.num_features = self.head_hidden_size = self.feature_info[max_index]["num_chs"]
            self.reset_classifier(0, "")
        kept: list[int] = take_indices
        return kept

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Image (B, in_chans, H, W) -> features (B, num_features, H/32, W/32)."""
        self._check_size(x)
        return self.final(self.stages(self.stem(x)))

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Features (B, num_features, H/32, W/32) -> logits (B, num_classes), or the pooled vector before them."""
        x = self.head_drop(self.global_pool(x))
        return x if pre_logits else self.head(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Image (B, in_chans, H, W) -> logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def _check_size(self, x: torch.Tensor) -> None:
        if not self.dynamic_img_size:
            torch._assert(x.shape[2] == self.img_size[0], "image height is not img_size; set dynamic_img_size=True")
            torch._assert(x.shape[3] == self.img_size[1], "image width is not img_size; set dynamic_img_size=True")


class FeatureMaps(FeatureListNet):
    """timm's features_only: image (B, in_chans, H, W) of any size -> list of the maps after the stages."""

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Checkpoint block by block, as the whole network does; timm's would run whole stages twice, BN with them."""
        for module in self.values():
            if isinstance(module, Stage):
                module.grad_checkpointing = enable


def _image_size(img_size: int | tuple[int, int]) -> Grid:
    height, width = to_2tuple(img_size)
    if min(height, width) < 1:
        raise ValueError(f"img_size {img_size}: expected positive pixels")
    return int(height), int(width)


def _stage_grids(img_size: Grid) -> list[Grid]:
    """The grids of the stages for an image: every stride rounds up."""
    grids = []
    height, width = -(-img_size[0] // STEM_STRIDE), -(-img_size[1] // STEM_STRIDE)
    for _ in range(NUM_STAGES):
        height, width = -(-height // 2), -(-width // 2)
        grids.append((height, width))
    return grids


def _drop_path_rates(rate: float, depths: tuple[int, ...]) -> list[list[float]]:
    """Drop-path rates of all blocks, stage by stage: linear from 0 in the first block to rate in the last."""
    rates: list[list[float]] = calculate_drop_path_rates(rate, list(depths), stagewise=True)  # type: ignore[assignment]
    return rates


def _init_module(module: nn.Module, needs_reset: bool) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
    elif needs_reset and hasattr(module, "reset_parameters"):
        module.reset_parameters()  # type: ignore[operator]
    if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
        nn.init.zeros_(module.bias)


def create_cmt(name: str, pretrained: bool = False, row: str | None = None, **kwargs: Any) -> CMT:
    """Make a registered CMT through timm: a row of VARIANTS (``name`` itself by default), with changes for ``CMT``."""
    variant = VARIANTS[row or name]
    feature_cfg = {
        "out_indices": (0, 1, 2, 3), "flatten_sequential": True, "feature_cls": FeatureMaps,
        **kwargs.pop("feature_cfg", {}),
    }  # fmt: skip
    kwargs.setdefault("img_size", variant.input_size)
    read_by_us(name, pretrained, kwargs)
    model: CMT = build_model_with_cfg(
        CMT,
        name,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=feature_cfg,
        **{**variant.constructor_args(), **kwargs},
    )
    return model
