"""PVT v1, "Pyramid Vision Transformer" (Wang et al., ICCV 2021, arXiv 2102.12122), from transformers.

Four stages of plain patches (strides 4, 8, 16, 32), each with a learned position embedding; keys and values are reduced
by a k x k convolution with stride k and a LayerNorm; a class token joins in the last stage. Parameters and equations
are those of ``transformers.PvtForImageClassification``.

Any image size: the tables of position embeddings belong to a square (``img_size``) and are resampled bilinearly to the
grid of another image, as the authors do in detection. transformers would do it, but compares a grid with ``image_size``
in pixels and "resamples" a table to its own grid, so that another size fails in a reshape, or passes unnoticed where it
has as many tokens (32 x 128 for 64 x 64): the embedding is ours, of its parts.

Shapes: B batch, C channels, H W grid, N = H*W tokens, P = 1 class token in the last stage, else 0.
"""

import re
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import to_2tuple
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

__all__ = ["PVT", "checkpoint_filter_fn"]

STRIDES = (4, 8, 16, 32)
ADVICE = (
    "its weights are transformers' (Xrenya/pvt-tiny-224, ...): save them there, and name the file here: "
    "pretrained_cfg_overlay={'file': 'model.safetensors'}"
)


class PVT(TokenPyramid):
    """The PVT v1 network.

    Args:
        img_size: side of the square image in pixels that the position embeddings are made for.
        in_chans: channels of the image.
        num_classes: width of the classifier; 0 for none.
        global_pool: 'token' (the class token, as published), 'avg', 'max', 'avgmax' or '' for none.
        dims: channels of the four stages.
        depths: blocks of the stages.
        num_heads: attention heads of the stages.
        kv_strides: k, the reduction of keys and values in the stages.
        mlp_ratios: expansion of the MLPs in the stages.
        drop_rate: dropout before the classifier.
        drop_path_rate: drop path of the last block; the others rise linearly from 0.
        proj_drop_rate: dropout after the position embeddings, each attention and in each MLP (transformers has one).
        attn_drop_rate: dropout of attention weights.
        device: where parameters are made.
        dtype: their type.

    Raises:
        ConfigError: an image size it cannot take, an unknown pooling, or transformers is not installed.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        dims: tuple[int, int, int, int] = (64, 128, 320, 512),
        depths: tuple[int, int, int, int] = (2, 2, 2, 2),
        num_heads: tuple[int, int, int, int] = (1, 2, 5, 8),
        kv_strides: tuple[int, int, int, int] = (8, 4, 2, 1),
        mlp_ratios: tuple[int, int, int, int] = (8, 8, 4, 4),
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        side = _checked_side(img_size, kv_strides)
        transformers = import_transformers("PVT v1")
        config = transformers.PvtConfig(
            image_size=side,
            num_channels=in_chans,
            depths=depths,
            sequence_reduction_ratios=kv_strides,
            hidden_sizes=dims,
            num_attention_heads=num_heads,
            mlp_ratios=mlp_ratios,
            hidden_dropout_prob=proj_drop_rate,
            attention_probs_dropout_prob=attn_drop_rate,
            drop_path_rate=drop_path_rate,
            initializer_range=0.02,
        )
        with torch.device(device) if device is not None else nullcontext():
            theirs = transformers.PvtModel(config).encoder.to(dtype=dtype)
        stages = [
            PyramidStage(PvtEmbedding(embed), [PvtBlock(layer) for layer in layers], int(embed.cls_token is not None))
            for embed, layers in zip(theirs.patch_embeddings, theirs.block, strict=True)
        ]
        super().__init__(stages, theirs.layer_norm, dims, STRIDES, in_chans, num_classes, global_pool, drop_rate)
        self.img_size = (side, side)
        self.least = _least_side(kv_strides)

    def check_image(self, x: torch.Tensor) -> None:
        """Raise ConfigError for an image (B, in_chans, H, W) too small for its grids, or with other channels."""
        super().check_image(x)
        height, width = x.shape[2:]
        if min(height, width) < self.least:
            raise ConfigError(f"this PVT v1 takes images from {self.least} px up, got {height} x {width}")

    def weights_from(self, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The state dict of PvtForImageClassification or PvtModel with the names of this class; its own is kept.

        Position embeddings of another size are resampled (bilinear).
        """
        own = self.state_dict()
        state = {}
        for theirs, value in state_dict.items():
            name = _own_name(theirs)
            if name.endswith("position_embeddings") and name in own and own[name].shape[1:] != value.shape[1:]:
                prefix = int(name.startswith("stages.3."))
                side = round((own[name].shape[1] - prefix) ** 0.5)
                value = _resample(value, (side, side), prefix)  # noqa: PLW2901
            state[name] = value
        return state


class PvtEmbedding(nn.Module):
    """Patches of a map, their position embeddings and, in the last stage, the class token: of transformers' parts."""

    def __init__(self, theirs: Any) -> None:
        super().__init__()
        self.position_embeddings = theirs.position_embeddings  # (1, P+N, C)
        self.cls_token = theirs.cls_token
        self.projection = theirs.projection
        self.layer_norm = theirs.layer_norm
        self.dropout = theirs.dropout

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, int, int]:
        """Map (B, C', H', W') -> tokens (B, P+N, C), and the grid's H and W."""
        x = self.projection(x)
        height, width = x.shape[2:]
        tokens = self.layer_norm(x.flatten(2).transpose(1, 2))
        num_prefix = 0
        if self.cls_token is not None:
            num_prefix = 1
            tokens = torch.cat((self.cls_token.expand(len(x), -1, -1), tokens), dim=1)
        positions = _resample(self.position_embeddings, (height, width), num_prefix)
        return self.dropout(tokens + positions), height, width


class PvtBlock(nn.Module):
    """A layer of transformers, whose forward gives a tuple."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Tokens (B, P+N, C) of a grid H x W -> tokens (B, P+N, C)."""
        return self.layer(x, height, width)[0]


def _own_name(name: str) -> str:
    name = re.sub(r"^(?:pvt\.)?encoder\.", "", name)
    name = re.sub(r"^patch_embeddings\.(\d+)\.", r"stages.\1.embed.", name)
    name = re.sub(r"^block\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2.layer.", name)
    return re.sub(r"^classifier\.", "head.", re.sub(r"^layer_norm\.", "norm.", name))


def _resample(table: torch.Tensor, size: tuple[int, int], num_prefix_tokens: int) -> torch.Tensor:
    """Position embeddings (1, P+N, C) of a square grid -> (1, P+H*W, C) of a grid of that size."""
    old = round((table.shape[1] - num_prefix_tokens) ** 0.5)
    if (old, old) == tuple(size):
        return table
    prefix, grid = table[:, :num_prefix_tokens], table[:, num_prefix_tokens:]
    grid = grid.transpose(1, 2).reshape(1, -1, old, old)  # (1, C, H, W)
    grid = F.interpolate(grid.float(), size=size, mode="bilinear").to(table.dtype)
    return torch.cat((prefix, grid.flatten(2).transpose(1, 2)), dim=1)


def _least_side(kv_strides: tuple[int, ...]) -> int:
    return max(stride * k for stride, k in zip(STRIDES, kv_strides, strict=True))


def _checked_side(img_size: int | tuple[int, int], kv_strides: tuple[int, ...]) -> int:
    height, width = to_2tuple(img_size)
    least = _least_side(kv_strides)
    if height != width or height < least:
        raise ConfigError(f"this PVT v1 takes square images from {least} x {least} px up, got {height} x {width}")
    return int(height)


def _cfg(side: int = 224, **kwargs: Any) -> dict[str, Any]:
    return {
        "url": "",
        "custom_load": True,
        "num_classes": 1000,
        "input_size": (3, side, side),
        "pool_size": None,
        "min_input_size": (3, 32, 32),
        "fixed_input_size": True,
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stages.0.embed.projection",
        "classifier": "head",
        "origin_url": "https://github.com/whai362/PVT",
        "paper_name": "Pyramid Vision Transformer: A Versatile Backbone for Dense Prediction without Convolutions",
        "paper_ids": "arXiv:2102.12122",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "pvt_v1_tiny.untrained": _cfg(),
        "pvt_v1_small.untrained": _cfg(),
        "pvt_v1_medium.untrained": _cfg(),
        "pvt_v1_large.untrained": _cfg(),
        "pvt_v1_nano.untrained": _cfg(32, crop_pct=1.0, origin_url=None),
        "pvt_v1_micro.untrained": _cfg(64, crop_pct=1.0, origin_url=None),
    }
)

# Ours: the widths and heads of PVT v1 in their proportions 1:2:5:8, and its strides, so 8 x 8, 4 x 4, 2 x 2 and 1 token
# at 32 px. Its own reductions would leave one key in every stage: only the first stage reduces, as in cmt_nano.
PVT_NANO = {"dims": (24, 48, 120, 192), "depths": (2, 2, 2, 1), "kv_strides": (2, 1, 1, 1)}
# by the rule in small.py
PVT_MICRO = {"dims": (18, 36, 90, 144), "depths": (2, 2, 2, 1), "kv_strides": (4, 2, 1, 1)}


def _create_pvt(name: str, pretrained: bool, **kwargs: Any) -> PVT:
    feature_cfg = {"out_indices": (0, 1, 2, 3), **kwargs.pop("feature_cfg", {})}
    model: PVT = create_pyramid(PVT, name, pretrained, ADVICE, feature_cfg=feature_cfg, **kwargs)
    return model


@register_model
def pvt_v1_tiny(pretrained: bool = False, **kwargs: Any) -> PVT:
    """PVT-Tiny: 13.23M parameters, 1.93 GMACs at 224 px."""
    return _create_pvt("pvt_v1_tiny", pretrained, **kwargs)


@register_model
def pvt_v1_small(pretrained: bool = False, **kwargs: Any) -> PVT:
    """PVT-Small: 24.49M parameters, 3.82 GMACs at 224 px."""
    return _create_pvt("pvt_v1_small", pretrained, **{"depths": (3, 4, 6, 3), **kwargs})


@register_model
def pvt_v1_medium(pretrained: bool = False, **kwargs: Any) -> PVT:
    """PVT-Medium: 44.21M parameters, 6.66 GMACs at 224 px."""
    return _create_pvt("pvt_v1_medium", pretrained, **{"depths": (3, 4, 18, 3), **kwargs})


@register_model
def pvt_v1_large(pretrained: bool = False, **kwargs: Any) -> PVT:
    """PVT-Large: 61.37M parameters, 9.81 GMACs at 224 px."""
    return _create_pvt("pvt_v1_large", pretrained, **{"depths": (3, 8, 27, 3), **kwargs})


@register_model
def pvt_v1_nano(pretrained: bool = False, **kwargs: Any) -> PVT:
    """PVT v1 at cmt_nano's cost: 32 px, grids 8, 4, 2, 1, multiply-adds within 10%."""
    return _create_pvt("pvt_v1_nano", pretrained, **{**PVT_NANO, **kwargs})


@register_model
def pvt_v1_micro(pretrained: bool = False, **kwargs: Any) -> PVT:
    """PVT v1 at cmt_micro's cost: 64 px, grids 16, 8, 4, 2, multiply-adds within 10%."""
    return _create_pvt("pvt_v1_micro", pretrained, **{**PVT_MICRO, **kwargs})
