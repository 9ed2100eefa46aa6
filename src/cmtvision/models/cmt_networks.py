"""The CMT networks by name, as registered with timm: the paper's, ours, the Keras family's.

All take the arguments of ``CMT`` and the options of ``models/ladder/parts.py``.
"""

from typing import Any

from timm.models import register_model

from cmtvision.models.cmt.cmt import CMT, create_cmt
from cmtvision.models.cmt.variants import cmt_cfg
from cmtvision.models.ladder.parts import with_parts
from cmtvision.models.timm_private import generate_default_cfgs

__all__: list[str] = []

default_cfgs = generate_default_cfgs(
    {
        "cmt_nano.untrained": cmt_cfg("cmt_nano", origin_url=None),
        "cmt_micro.untrained": cmt_cfg("cmt_micro", origin_url=None),
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


@register_model
def cmt_nano(pretrained: bool = False, **kwargs: Any) -> CMT:
    """CMT-nano, ours: about 1M parameters, for 32 to 64 px, for learning and tests."""
    return create_cmt("cmt_nano", pretrained, **with_parts(kwargs))


@register_model
def cmt_micro(pretrained: bool = False, **kwargs: Any) -> CMT:
    """CMT-micro, ours: for 64 px, the size at which the systems are trained side by side (docs/comparison.md)."""
    return create_cmt("cmt_micro", pretrained, **with_parts(kwargs))


@register_model
def cmt_ti(pretrained: bool = False, **kwargs: Any) -> CMT:
    """CMT-Ti: 9.49M parameters, 0.64 GMACs at 160 px, 79.1% ImageNet top-1 in the paper."""
    return create_cmt("cmt_ti", pretrained, **with_parts(kwargs))


@register_model
def cmt_xs(pretrained: bool = False, **kwargs: Any) -> CMT:
    """CMT-XS: 15.25M parameters, 1.55 GMACs at 192 px, 81.8% ImageNet top-1 in the paper."""
    return create_cmt("cmt_xs", pretrained, **with_parts(kwargs))


@register_model
def cmt_s(pretrained: bool = False, **kwargs: Any) -> CMT:
    """CMT-S: 26.26M parameters, 4.03 GMACs at 224 px, 83.5% ImageNet top-1 in the paper."""
    return create_cmt("cmt_s", pretrained, **with_parts(kwargs))


@register_model
def cmt_b(pretrained: bool = False, **kwargs: Any) -> CMT:
    """CMT-B: 45.72M parameters, 9.32 GMACs at 256 px, 84.5% ImageNet top-1 in the paper."""
    return create_cmt("cmt_b", pretrained, **with_parts(kwargs))


@register_model
def cmt_ti_kecam(pretrained: bool = False, **kwargs: Any) -> CMT:
    """The Keras family's own CMT-Ti at 160 px: relative bias tables, LayerNorm for keys, no attention biases."""
    return create_cmt("cmt_ti_kecam", pretrained, row="cmt_ti", **with_parts({**KECAM, **kwargs}))
