"""CMT: "Convolutional Neural Networks Meet Vision Transformers" (Guo et al., CVPR 2022, arXiv 2107.06263).

    image -> stem -> four stages (strides 4, 8, 16, 32) -> 1x1 conv, BN, SiLU -> global average pool -> linear

Written from the paper, equal to the released networks to rounding (tests/golden), and a model of timm: created,
resized, pruned, scripted and traced like any other there. Order of reading: this file, stem.py, stage.py, lpu.py,
lmhsa.py, irffn.py. Differences from the released code: docs/deviations.md.

Shapes: B batch, C channels, H W image size in pixels.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import LayerNorm2d, calculate_drop_path_rates, create_classifier, get_device_dtype, to_2tuple
from timm.models import build_model_with_cfg, register_model
from torch import nn

from cmtvision.models.absolute_position import PositionEmbedding
from cmtvision.models.filter import checkpoint_filter_fn
from cmtvision.models.irffn import MLP, InvertedResidualFFN
from cmtvision.models.lmhsa import Grid, LightweightAttention, PositionBias
from cmtvision.models.relative_bias import RelativePositionBias
from cmtvision.models.stage import Block, Downsample, Stage
from cmtvision.models.stem import Stem
from cmtvision.models.timm_private import feature_take_indices, generate_default_cfgs, update_model_input_size
from cmtvision.models.variants import VARIANTS
from cmtvision.models.weight_sources import load_file, read_by_us

__all__ = ["CMT"]

STEM_STRIDE = 2
NUM_STAGES = 4


class FinalConv(nn.Module):
    """The 1x1 convolution between the last stage and the pooling: (B, dim, H, W) -> (B, width, H, W).

    conv -> BN -> SiLU in the paper's networks; ``act_first`` gives conv -> GELU -> BN, as the Keras family has it.
    """

    def __init__(
        self,
        dim: int,
        width: int,
        act_first: bool = False,
        norm_layer: Any = nn.BatchNorm2d,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, width, 1, device=device, dtype=dtype)
        self.act1 = nn.GELU() if act_first else nn.Identity()
        self.norm = norm_layer(width, device=device, dtype=dtype)
        self.act2 = nn.Identity() if act_first else nn.SiLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, dim, H, W) -> map (B, width, H, W)."""
        return self.act2(self.norm(self.act1(self.conv(x))))


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
        rel_pos: position bias: 'stage' (one table per stage, released code), 'block' (one per block, the paper's
            text), 'none', or 'relative' (tables over relative offsets, as in the Keras family).
        lpu: a Local Perception Unit in every block.
        ffn: the feed-forward network of the blocks: 'irffn', 'no_shortcut' (the IRFFN without the identity around its
            depthwise convolution), or 'mlp' (a transformer's).
        norm: 'batch' as in the paper, or 'layer' in every place where it has BN.
        abs_pos: add a learned absolute position embedding in front of the first block, as DeiT does.
        dynamic_img_size: accept any H x W from 32 px up, resampling the bias; else only img_size.
        qkv_bias: biases in the attention's linear layers and reducing convolution.
        kv_norm: norm behind the reducing convolution, 'batch' or 'layer'; None as ``norm``.
        head_act_first: GELU before the head's BN instead of SiLU behind it.
        downsample_norm_eps: eps of the LayerNorm behind each stage's convolution.
        block_norm_eps: eps of the LayerNorms in the blocks.
        drop_rate: dropout in front of the classifier.
        drop_path_rate: drop path of the last block; the others rise linearly from 0.
        proj_drop_rate: dropout behind each attention and IRFFN.
        attn_drop_rate: dropout of attention weights.
        device: where parameters are made.
        dtype: their type.

    Raises:
        ValueError: where rel_pos, ffn, norm, kv_norm or img_size make no sense, or widths and heads do not fit.
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
        rel_pos: Literal["stage", "block", "none", "relative"] = "stage",
        lpu: bool = True,
        ffn: Literal["irffn", "no_shortcut", "mlp"] = "irffn",
        norm: Literal["batch", "layer"] = "batch",
        abs_pos: bool = False,
        dynamic_img_size: bool = True,
        qkv_bias: bool = True,
        kv_norm: Literal["batch", "layer"] | None = None,
        head_act_first: bool = False,
        downsample_norm_eps: float = 1e-5,
        block_norm_eps: float = 1e-6,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        kv_norm = kv_norm or norm
        _check_choice("rel_pos", rel_pos, ("stage", "block", "none", "relative"))
        _check_choice("ffn", ffn, ("irffn", "no_shortcut", "mlp"))
        _check_choice("norm", norm, ("batch", "layer"))
        _check_choice("kv_norm", kv_norm, ("batch", "layer"))
        if not len(dims) == len(depths) == len(num_heads) == len(kv_strides) == NUM_STAGES:
            raise ValueError(f"dims {dims}, depths {depths}, num_heads {num_heads}, kv_strides {kv_strides}: "
                             f"expected {NUM_STAGES} values each, one a stage")  # fmt: skip
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
        layer_norm = partial(LayerNorm2d, eps=block_norm_eps)
        norm_layer = nn.BatchNorm2d if norm == "batch" else layer_norm
        kv_norm_layer = nn.BatchNorm2d if kv_norm == "batch" else layer_norm
        drop_path_rates = _drop_path_rates(drop_path_rate, depths)
        make_ffn = partial(
            _ffn, kind=ffn, mlp_ratio=mlp_ratio, proj_drop_rate=proj_drop_rate, norm_layer=norm_layer, device=device,
            dtype=dtype,
        )  # fmt: skip

        self.stem = Stem(in_chans, stem_width, norm_layer=norm_layer, **dd)
        stages = []
        in_dim = stem_width
        for i, (dim, grid) in enumerate(zip(dims, _stage_grids(self.img_size), strict=True)):
            make_bias = _bias_maker(rel_pos, num_heads[i], grid, kv_strides[i], **dd)
            blocks = [
                Block(
                    dim,
                    LightweightAttention(
                        dim,
                        num_heads[i],
                        kv_stride=kv_strides[i],
                        qkv_bias=qkv_bias,
                        kv_norm=kv_norm_layer,
                        position_bias=make_bias() if rel_pos in ("block", "relative") else None,
                        attn_drop_rate=attn_drop_rate,
                        proj_drop_rate=proj_drop_rate,
                        **dd,
                    ),
                    make_ffn(dim),
                    lpu=lpu,
                    norm_eps=block_norm_eps,
                    drop_path_rate=drop_path_rates[i][j],
                    **dd,
                )
                for j in range(depths[i])
            ]
            downsample = Downsample(in_dim, dim, norm_eps=downsample_norm_eps, **dd)
            embedding = PositionEmbedding(dim, grid, **dd) if abs_pos and i == 0 else None
            stages.append(Stage(downsample, make_bias() if rel_pos == "stage" else None, blocks, embedding))
            in_dim = dim
        self.stages = nn.Sequential(*stages)
        self.final: nn.Module = FinalConv(in_dim, head_width, act_first=head_act_first, norm_layer=norm_layer, **dd)
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
                if isinstance(module, PositionBias | RelativePositionBias | PositionEmbedding):
                    module.set_grid(grid)
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
        """The maps behind chosen stages, and what forward_features gives.

        Args:
            x: image (B, in_chans, H, W).
            indices: stages to return: the last n for a number, all for None.
            norm: accepted for timm's interface; CMT has no norm behind its stages, so it changes nothing.
            stop_early: do not run stages behind the last one asked for.
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
        """Drop what the chosen stages do not need: later stages, and with them the final convolution and classifier.

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
        """Features (B, num_features, H/32, W/32) -> logits (B, num_classes), or the pooled vector in front of them."""
        x = self.head_drop(self.global_pool(x))
        return x if pre_logits else self.head(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Image (B, in_chans, H, W) -> logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def _check_size(self, x: torch.Tensor) -> None:
        if not self.dynamic_img_size:
            torch._assert(x.shape[2] == self.img_size[0], "image height is not img_size; set dynamic_img_size=True")
            torch._assert(x.shape[3] == self.img_size[1], "image width is not img_size; set dynamic_img_size=True")


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


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} {value!r}: expected {', '.join(map(repr, choices[:-1]))} or {choices[-1]!r}")


def _ffn(
    dim: int, kind: str, mlp_ratio: float, proj_drop_rate: float, norm_layer: Any, device: Any, dtype: Any
) -> nn.Module:
    """The feed-forward network of a block; its hidden width is int(dim * mlp_ratio)."""
    hidden_dim = int(dim * mlp_ratio)
    dd: dict[str, Any] = {"device": device, "dtype": dtype}
    if kind == "mlp":
        return MLP(dim, hidden_dim, proj_drop_rate=proj_drop_rate, **dd)
    return InvertedResidualFFN(
        dim, hidden_dim, proj_drop_rate=proj_drop_rate, norm_layer=norm_layer, shortcut=kind == "irffn", **dd
    )


def _bias_maker(rel_pos: str, num_heads: int, grid: Grid, kv_stride: int, **dd: Any) -> Callable[[], nn.Module]:
    bias_class = RelativePositionBias if rel_pos == "relative" else PositionBias
    return partial(bias_class, num_heads, grid, kv_stride, **dd)


def _init_module(module: nn.Module, needs_reset: bool) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
    elif needs_reset and hasattr(module, "reset_parameters"):
        module.reset_parameters()  # type: ignore[operator]
    if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
        nn.init.zeros_(module.bias)


def cmt_cfg(variant: str, **kwargs: Any) -> dict[str, Any]:
    """timm's pretrained config of a row of VARIANTS, with changes."""
    row = VARIANTS[variant]
    side = row.input_size
    return {
        "url": row.url,
        "custom_load": True,
        "num_classes": 1000,
        "input_size": (3, side, side),
        "pool_size": (side // 32, side // 32),
        "min_input_size": (3, 32, 32),
        "fixed_input_size": True,
        "crop_pct": 0.875 if side > 64 else 1.0,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.conv1",
        "classifier": "head",
        "origin_url": "https://github.com/ggjy/CMT.pytorch",
        "paper_name": "CMT: Convolutional Neural Networks Meet Vision Transformers",
        "paper_ids": "arXiv:2107.06263",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "cmt_nano.untrained": cmt_cfg("cmt_nano", origin_url=None),
        "cmt_ti.in1k": cmt_cfg("cmt_ti"),
        "cmt_xs.in1k": cmt_cfg("cmt_xs"),
        "cmt_s.in1k": cmt_cfg("cmt_s"),
        "cmt_b.in1k": cmt_cfg("cmt_b"),
        "cmt_ti_kecam.untrained": cmt_cfg("cmt_ti", url="", origin_url=None),
    }
)

# The Keras family's own CMT-Ti (keras_cv_attention_models): same widths and depths, these differences.
KECAM = {
    "rel_pos": "relative",
    "qkv_bias": False,
    "kv_norm": "layer",
    "head_act_first": True,
    "block_norm_eps": 1e-5,
    "drop_rate": 0.0,
}


def create_cmt(name: str, pretrained: bool = False, row: str | None = None, **kwargs: Any) -> CMT:
    """Make a registered CMT through timm: a row of VARIANTS (``name`` itself by default), with changes."""
    variant = VARIANTS[row or name]
    feature_cfg = {"out_indices": (0, 1, 2, 3), "flatten_sequential": True, **kwargs.pop("feature_cfg", {})}
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


@register_model
def cmt_nano(pretrained: bool = False, **kwargs: Any) -> CMT:
    """CMT-nano, ours: about 1M parameters, for 32 to 64 px, for learning and tests."""
    return create_cmt("cmt_nano", pretrained, **kwargs)


@register_model
def cmt_ti(pretrained: bool = False, **kwargs: Any) -> CMT:
    """CMT-Ti: 9.49M parameters, 0.64 GMACs at 160 px, 79.1% ImageNet top-1 in the paper."""
    return create_cmt("cmt_ti", pretrained, **kwargs)


@register_model
def cmt_xs(pretrained: bool = False, **kwargs: Any) -> CMT:
    """CMT-XS: 15.25M parameters, 1.55 GMACs at 192 px, 81.8% ImageNet top-1 in the paper."""
    return create_cmt("cmt_xs", pretrained, **kwargs)


@register_model
def cmt_s(pretrained: bool = False, **kwargs: Any) -> CMT:
    """CMT-S: 26.26M parameters, 4.03 GMACs at 224 px, 83.5% ImageNet top-1 in the paper."""
    return create_cmt("cmt_s", pretrained, **kwargs)


@register_model
def cmt_b(pretrained: bool = False, **kwargs: Any) -> CMT:
    """CMT-B: 45.72M parameters, 9.32 GMACs at 256 px, 84.5% ImageNet top-1 in the paper."""
    return create_cmt("cmt_b", pretrained, **kwargs)


@register_model
def cmt_ti_kecam(pretrained: bool = False, **kwargs: Any) -> CMT:
    """The Keras family's own CMT-Ti at 160 px: relative bias tables, LayerNorm for keys, no attention biases."""
    return create_cmt("cmt_ti_kecam", pretrained, row="cmt_ti", **{**KECAM, **kwargs})
