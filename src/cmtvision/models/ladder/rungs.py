"""The ladder from DeiT to CMT: one idea more on every rung, at about the same cost (CMT paper, section 1 and ablation).

    0 deit     patches, class token, absolute position embedding, full attention, MLP; at size s timm's deit_small
    1 stem     the convolutional stem processes the pixels first, the patches are cut out of its map
    2 stages   four stages instead of one grid, pooled head instead of the class token
    3 lpu      a Local Perception Unit in every block instead of the absolute position embedding
    4 lmhsa    keys and values from a reduced grid, learned position bias
    5 irffn    the inverted-residual feed-forward network: CMT itself

Rungs 0 and 1 are timm's VisionTransformer, rungs 2 to 5 our ``CMT`` with other parts (parts.py). Adjacent rungs are
within 10% of each other in GMACs: a more expensive idea is compensated by depth (rung 2, with full attention on the
finest grid, is shallow; the reduced keys of rung 4 allow that depth again). The paper gives its own ladder without
these details: widths and depths of rungs 0 to 4 are ours, except that rung 0 at size s is DeiT-S and at size ti is
DeiT-Ti, on CMT-Ti's 160 px.

Names: ``cmt_ladder_<rung>`` is size s (CMT-S); the suffixes ``_ti``, ``_micro`` and ``_nano`` are the other sizes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import HybridEmbed
from timm.models import build_model_with_cfg, register_model
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer import checkpoint_filter_fn as vit_filter_fn
from torch import nn

from cmtvision.models.cmt.cmt import STEM_STRIDE, create_cmt
from cmtvision.models.cmt.stem import Stem
from cmtvision.models.cmt.variants import VARIANTS, cmt_cfg
from cmtvision.models.ladder.parts import with_parts
from cmtvision.models.timm_private import generate_default_cfgs
from cmtvision.models.weight_sources import TRAIN_IT, refuse_missing_weights

__all__: list[str] = []

RUNGS = ("0_deit", "1_stem", "2_stages", "3_lpu", "4_lmhsa", "5_irffn")


@dataclass(frozen=True)
class LadderSize:
    """The values of one ladder.

    Attributes:
        cmt: the CMT at its top.
        patch_size: side of the patches of rungs 0 and 1, in pixels.
        dim: channels of rungs 0 and 1.
        num_heads: their attention heads.
        depths: blocks of rung 0 and of rung 1.
        stage_depths: blocks of the four stages of rungs 2 and 3; their channels are CMT's.
    """

    cmt: str
    patch_size: int
    dim: int
    num_heads: int
    depths: tuple[int, int]
    stage_depths: tuple[int, int, int, int]


SIZES: dict[str, LadderSize] = {
    "s": LadderSize("cmt_s", 16, 384, 6, (12, 11), (1, 1, 10, 3)),
    "ti": LadderSize("cmt_ti", 16, 192, 3, (12, 12), (1, 1, 4, 2)),
    "nano": LadderSize("cmt_nano", 8, 64, 4, (7, 5), (1, 2, 4, 1)),
    "micro": LadderSize("cmt_micro", 8, 48, 3, (5, 4), (1, 1, 2, 1)),  # by the rule in peers/small.py
}

# What rungs 2 to 4 lack of CMT; each rung takes something out.
LACKING: dict[str, dict[str, Any]] = {
    "2_stages": {"lpu": False, "abs_pos": True, "kv_strides": (1, 1, 1, 1), "rel_pos": "none", "ffn": "mlp"},
    "3_lpu": {"kv_strides": (1, 1, 1, 1), "rel_pos": "none", "ffn": "mlp"},
    "4_lmhsa": {"ffn": "mlp"},
    "5_irffn": {},
}


def ladder_name(rung: str, size: str) -> str:
    """The name of a rung at a size: ladder_name('3_lpu', 'ti') is 'cmt_ladder_3_lpu_ti'."""
    return f"cmt_ladder_{rung}" + ("" if size == "s" else f"_{size}")


def ladder(size: str) -> list[str]:
    """The names of the six rungs of a size ('nano', 'micro', 'ti' or 's'), from DeiT to CMT."""
    return [ladder_name(rung, size) for rung in RUNGS]


def _create_rung(rung: str, size: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    name, values = ladder_name(rung, size), SIZES[size]
    if rung != "5_irffn":
        refuse_missing_weights(name, pretrained, kwargs, TRAIN_IT)
    if rung in LACKING:
        if rung in ("2_stages", "3_lpu"):
            kwargs.setdefault("depths", values.stage_depths)
        return create_cmt(name, pretrained, row=values.cmt, **with_parts({**LACKING[rung], **kwargs}))
    structure: dict[str, Any] = {
        "img_size": VARIANTS[values.cmt].input_size,
        "patch_size": values.patch_size,
        "embed_dim": values.dim,
        "num_heads": values.num_heads,
        "depth": values.depths[RUNGS.index(rung)],
    }
    if rung == "1_stem":
        structure["patch_size"] = values.patch_size // STEM_STRIDE
        structure["embed_layer"] = partial(_stem_then_patches, VARIANTS[values.cmt].stem_width)
    model: nn.Module = build_model_with_cfg(
        VisionTransformer,
        name,
        pretrained,
        pretrained_filter_fn=vit_filter_fn,
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},
        **{**structure, **kwargs},
    )
    return model


def _stem_then_patches(width: int, *, in_chans: int, device: Any = None, dtype: Any = None, **kwargs: Any) -> nn.Module:
    """Patch embedding of the stem's map instead of the image: (B, in_chans, H, W) -> (B, N, dim)."""
    stem = Stem(in_chans, width, device=device, dtype=dtype)
    embed: nn.Module = HybridEmbed(stem, in_chans=in_chans, device=device, dtype=dtype, **kwargs)
    return embed


def _cfg(rung: str, size: str) -> dict[str, Any]:
    if rung in LACKING:
        released = {} if rung == "5_irffn" else {"url": "", "origin_url": None}
        return cmt_cfg(SIZES[size].cmt, **released)
    side = VARIANTS[SIZES[size].cmt].input_size
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, side, side),
        "pool_size": None,
        "fixed_input_size": True,
        "crop_pct": 0.875 if side > 64 else 1.0,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.proj" if rung == "0_deit" else "patch_embed.backbone.conv1",
        "classifier": "head",
        "paper_name": "CMT: Convolutional Neural Networks Meet Vision Transformers",
        "paper_ids": "arXiv:2107.06263",
    }


def _tag(rung: str, size: str) -> str:
    return "in1k" if rung == "5_irffn" and VARIANTS[SIZES[size].cmt].released_file else "untrained"


default_cfgs = generate_default_cfgs(
    {f"{ladder_name(rung, size)}.{_tag(rung, size)}": _cfg(rung, size) for size in SIZES for rung in RUNGS}
)


def _entry_point(rung: str, size: str) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return _create_rung(rung, size, pretrained, **kwargs)

    create.__name__ = create.__qualname__ = ladder_name(rung, size)
    create.__doc__ = f"Rung {rung} of the ladder from DeiT to {SIZES[size].cmt} (see ``cmtvision.models.ladder``)."
    return create


for _size in SIZES:
    for _rung in RUNGS:
        register_model(_entry_point(_rung, _size))
