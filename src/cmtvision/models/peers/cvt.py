"""CvT, "Introducing Convolutions to Vision Transformers" (Wu et al., ICCV 2021, arXiv 2103.15808), from transformers.

Three stages; tokens come from overlapping convolutions, queries, keys and values from depthwise ones (dw conv -> BN);
a class token joins in the last stage; no position embedding. Any image from 3 px up.

Parameters and equations are those of ``transformers.CvtForImageClassification``: GELU where the original code has
QuickGELU. Drop path is ours: in transformers 5.23 all blocks of a stage share one rate, and the second drop path of a
block is applied to the sum with its shortcut, so that it would erase a whole image. Here ``drop_path_rate`` rises
linearly over the blocks of the last stage, the only one with drop path in the published configuration.

Shapes: B batch, C channels, H W grid, N = H*W tokens, P = 1 class token in the last stage, else 0.
"""

import re
from contextlib import nullcontext
from typing import Any

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath, calculate_drop_path_rates, to_2tuple
from timm.models import register_model
from torch import nn

from cmtvision.errors import ConfigError
from cmtvision.models.peers.pyramid import (  # checkpoint_filter_fn: timm's tools look for it here
    PyramidStage,
    TokenPyramid,
    checkpoint_filter_fn,
    create_pyramid,
    import_transformers,
)
from cmtvision.models.timm_private import generate_default_cfgs

__all__ = ["CvT", "checkpoint_filter_fn"]

PATCH_SIZES, PATCH_STRIDES, PATCH_PADDING = (7, 3, 3), (4, 2, 2), (2, 1, 1)
MIN_SIZE = PATCH_SIZES[0] - 2 * PATCH_PADDING[0]
ADVICE = (
    "its weights are transformers' (microsoft/cvt-13, ...): save them there, and name the file here: "
    "pretrained_cfg_overlay={'file': 'model.safetensors'}"
)


class CvT(TokenPyramid):
    """The CvT network.

    Args:
        img_size: nominal image size in pixels; the network takes any from 3 px up.
        in_chans: channels of the image.
        num_classes: width of the classifier; 0 for none.
        global_pool: 'token' (the class token, as published), 'avg', 'max', 'avgmax' or '' for none.
        dims: channels of the three stages.
        depths: blocks of the stages.
        num_heads: attention heads of the stages.
        kv_strides: stride of the convolutions before keys and values.
        mlp_ratio: expansion of the MLPs.
        drop_rate: dropout before the classifier.
        drop_path_rate: drop path of the last block; in the last stage it rises linearly from 0.
        proj_drop_rate: dropout after the tokens' convolution, each attention and each MLP (transformers has one rate).
        attn_drop_rate: dropout of attention weights.
        device: where parameters are made.
        dtype: their type.

    Raises:
        ConfigError: an image size below 3 px, an unknown pooling, or transformers is not installed.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        dims: tuple[int, int, int] = (64, 192, 384),
        depths: tuple[int, int, int] = (1, 2, 10),
        num_heads: tuple[int, int, int] = (1, 3, 6),
        kv_strides: tuple[int, int, int] = (2, 2, 2),
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        _check_size(*to_2tuple(img_size))
        transformers = import_transformers("CvT")
        config = transformers.CvtConfig(
            num_channels=in_chans,
            patch_sizes=PATCH_SIZES,
            patch_stride=PATCH_STRIDES,
            patch_padding=PATCH_PADDING,
            embed_dim=dims,
            num_heads=num_heads,
            # transformers reads a stage's rate at the place of the stage in a list as long as the stage is deep
            depth=tuple(max(depth, i + 1) for i, depth in enumerate(depths)),
            mlp_ratio=(mlp_ratio,) * 3,
            stride_kv=kv_strides,
            attention_drop_rate=(attn_drop_rate,) * 3,
            drop_rate=(proj_drop_rate,) * 3,
            drop_path_rate=(0.0,) * 3,
            initializer_range=0.02,
        )
        with torch.device(device) if device is not None else nullcontext():
            theirs = transformers.CvtModel(config).encoder.stages.to(dtype=dtype)
            norm = nn.LayerNorm(dims[-1], dtype=dtype)
        last_rates: list[float] = calculate_drop_path_rates(drop_path_rate, depths[2])  # type: ignore[assignment]
        rates = ([0.0] * depths[0], [0.0] * depths[1], last_rates)
        stages = []
        for stage, depth, rate in zip(theirs, depths, rates, strict=True):
            cls_token = getattr(stage, "cls_token", None)
            blocks = [CvtBlock(layer, r) for layer, r in zip(stage.layers[:depth], rate, strict=True)]
            stages.append(PyramidStage(CvtTokens(stage.embedding, cls_token), blocks, int(cls_token is not None)))
        super().__init__(stages, norm, dims, (4, 8, 16), in_chans, num_classes, global_pool, drop_rate)

    def check_image(self, x: torch.Tensor) -> None:
        """Raise ConfigError for an image (B, in_chans, H, W) below 3 px or with other channels."""
        super().check_image(x)
        _check_size(x.shape[2], x.shape[3])

    def weights_from(self, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The state dict of CvtForImageClassification or CvtModel with the names of this class; its own is kept."""
        return {_own_name(name): value for name, value in state_dict.items()}


class CvtTokens(nn.Module):
    """Convolution -> LayerNorm -> tokens, with a leading class token if the stage has one."""

    def __init__(self, embedding: nn.Module, cls_token: nn.Parameter | None) -> None:
        super().__init__()
        self.embedding = embedding
        self.cls_token = cls_token

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, int, int]:
        """Map (B, C', H', W') -> tokens (B, P+N, C), H, W."""
        x = self.embedding(x)  # (B, C, H, W)
        height, width = x.shape[2:]
        x = x.flatten(2).transpose(1, 2)  # (B, N, C)
        if self.cls_token is not None:
            x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        return x, height, width


class CvtBlock(nn.Module):
    """x = x + DropPath(attention(LN(x))); x = x + DropPath(MLP(LN(x))), from the parts of a layer of transformers."""

    def __init__(self, layer: nn.Module, drop_path_rate: float) -> None:
        super().__init__()
        self.layer: Any = layer
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate else nn.Identity()

    def forward(self, x: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Tokens (B, P+N, C) of a grid H x W -> tokens (B, P+N, C)."""
        layer = self.layer
        x = x + self.drop_path(layer.attention(layer.layernorm_before(x), height, width))
        mlp = layer.output  # its forward would add the shortcut in front of the drop path
        return x + self.drop_path(mlp.dropout(mlp.dense(layer.intermediate(layer.layernorm_after(x)))))


def _own_name(name: str) -> str:
    name = re.sub(r"^(?:cvt\.)?encoder\.", "", name)
    name = re.sub(r"^(stages\.\d+)\.embedding\.", r"\1.embed.embedding.", name)
    name = re.sub(r"^(stages\.\d+)\.cls_token$", r"\1.embed.cls_token", name)
    name = re.sub(r"^(stages\.\d+)\.layers\.(\d+)\.", r"\1.blocks.\2.layer.", name)
    return re.sub(r"^classifier\.", "head.", re.sub(r"^layernorm\.", "norm.", name))


def _check_size(height: int, width: int) -> None:
    if min(height, width) < MIN_SIZE:
        raise ConfigError(f"CvT takes images from {MIN_SIZE} x {MIN_SIZE} px up, got {height} x {width}")


def _cfg(side: int = 224, **kwargs: Any) -> dict[str, Any]:
    return {
        "url": "",
        "custom_load": True,
        "num_classes": 1000,
        "input_size": (3, side, side),
        "pool_size": None,
        "min_input_size": (3, MIN_SIZE, MIN_SIZE),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stages.0.embed.embedding.convolution_embeddings.projection",
        "classifier": "head",
        "origin_url": "https://github.com/microsoft/CvT",
        "paper_name": "CvT: Introducing Convolutions to Vision Transformers",
        "paper_ids": "arXiv:2103.15808",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "cvt_13.untrained": _cfg(),
        "cvt_21.untrained": _cfg(),
        "cvt_w24.untrained": _cfg(),
        "cvt_nano.untrained": _cfg(32, crop_pct=1.0, origin_url=None),
        "cvt_micro.untrained": _cfg(64, crop_pct=1.0, origin_url=None),
    }
)

CVT_W24 = {"dims": (192, 768, 1024), "depths": (2, 2, 20), "num_heads": (3, 12, 16)}
# Ours: the widths and heads of CvT-13 in their proportions 1:3:6 and its strides, so 8 x 8, 4 x 4 and 2 x 2 tokens at
# 32 px. Its key strides would leave one key in the last grid: only the first stage reduces, as in cmt_nano.
CVT_NANO = {"dims": (20, 60, 120), "depths": (1, 2, 4), "kv_strides": (2, 1, 1)}
CVT_MICRO = {"dims": (15, 45, 90), "depths": (1, 2, 4), "kv_strides": (4, 2, 1)}  # by the rule in small.py


def _create_cvt(name: str, pretrained: bool, **kwargs: Any) -> CvT:
    model: CvT = create_pyramid(CvT, name, pretrained, ADVICE, **kwargs)
    return model


@register_model
def cvt_13(pretrained: bool = False, **kwargs: Any) -> CvT:
    """CvT-13: 20.00M parameters, 4.57 GMACs at 224 px."""
    return _create_cvt("cvt_13", pretrained, **kwargs)


@register_model
def cvt_21(pretrained: bool = False, **kwargs: Any) -> CvT:
    """CvT-21: 31.62M parameters, 7.18 GMACs at 224 px."""
    return _create_cvt("cvt_21", pretrained, **{"depths": (1, 4, 16), **kwargs})


@register_model
def cvt_w24(pretrained: bool = False, **kwargs: Any) -> CvT:
    """CvT-W24: 277.20M parameters, 60.92 GMACs at 224 px."""
    return _create_cvt("cvt_w24", pretrained, **{**CVT_W24, **kwargs})


@register_model
def cvt_nano(pretrained: bool = False, **kwargs: Any) -> CvT:
    """CvT at cmt_nano's cost: 32 px, grids 8, 4, 2, multiply-adds within 10%."""
    return _create_cvt("cvt_nano", pretrained, **{**CVT_NANO, **kwargs})


@register_model
def cvt_micro(pretrained: bool = False, **kwargs: Any) -> CvT:
    """CvT at cmt_micro's cost: 64 px, grids 16, 8, 4, multiply-adds within 10%."""
    return _create_cvt("cvt_micro", pretrained, **{**CVT_MICRO, **kwargs})
