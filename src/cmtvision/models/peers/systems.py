"""The systems of CMT's comparison, each under one name: ours, transformers' (cvt.py, pvt.py) and timm's own.

Importing this module registers those that timm does not have. Published figures are in published.yaml.
"""

from dataclasses import dataclass

from cmtvision.models.peers import cvt, pvt, small
from cmtvision.models.user_models import expand

__all__ = ["SYSTEMS", "System", "cvt", "find_system", "is_of_paper", "pvt", "small"]


@dataclass(frozen=True)
class System:
    """One system of the comparison.

    Attributes:
        name: what `timm.create_model` and `cmtvision train` call it.
        family: the literature's name of its kind.
        made_by: 'ours', 'timm' or 'transformers': whose code the network is.
        note: what is specific to it.
    """

    name: str
    family: str
    made_by: str
    note: str = ""


def _rows(family: str, made_by: str, names: list[str], note: str = "") -> list[System]:
    return [System(name, family, made_by, note) for name in names]


_NANO = "for 32 px, multiply-adds within 10% of cmt_nano's"
_MICRO = "for 64 px, multiply-adds within 10% of cmt_micro's"
_DEIT_SIZES = ("tiny", "small", "base")

SYSTEMS: list[System] = [
    *_rows("CMT", "ours", ["cmt_ti", "cmt_xs", "cmt_s", "cmt_b"]),
    *_rows("CMT", "ours", ["cmt_nano"], "for 32 px"),
    *_rows("CMT", "ours", ["cmt_micro"], "for 64 px"),
    *_rows("CeiT", "ours", [f"ceit_{size}_patch16_224" for size in _DEIT_SIZES]),
    *_rows("CeiT", "ours", ["ceit_tiny_patch16_384", "ceit_small_patch16_384"], "for 384 px"),
    *_rows("CeiT", "ours", ["ceit_nano"], _NANO),
    *_rows("CeiT", "ours", ["ceit_micro"], _MICRO),
    *_rows("CvT", "transformers", ["cvt_13", "cvt_21", "cvt_w24"], "GELU where the original has QuickGELU"),
    *_rows("CvT", "transformers", ["cvt_nano"], _NANO),
    *_rows("CvT", "transformers", ["cvt_micro"], _MICRO),
    *_rows("PVT v1", "transformers", [f"pvt_v1_{size}" for size in ("tiny", "small", "medium", "large")]),
    *_rows("PVT v1", "transformers", ["pvt_v1_nano"], _NANO),
    *_rows("PVT v1", "transformers", ["pvt_v1_micro"], _MICRO),
    *_rows("ViT", "timm", [f"vit_{size}_patch16_224" for size in ("tiny", "small", "base", "large")]),
    *_rows("ViT", "timm", ["vit_giant_patch14_224", "vit_gigantic_patch14_224"], "ViT-g and ViT-G; no weights"),
    *_rows("ViT", "timm", ["vit_nano"], _NANO),
    *_rows("ViT", "timm", ["vit_micro"], _MICRO),
    *_rows("DeiT", "timm", [f"deit_{size}_patch16_224" for size in _DEIT_SIZES], "the network of ViT"),
    *_rows("DeiT", "timm", [f"deit_{size}_distilled_patch16_224" for size in _DEIT_SIZES], "distillation token"),
    *_rows("DeiT", "timm", ["deit_nano_distilled"], f"distillation token, {_NANO}"),
    *_rows("DeiT", "timm", ["deit_micro_distilled"], f"distillation token, {_MICRO}"),
    *_rows("MobileNetV3", "timm", ["mobilenetv3_small_100", "mobilenetv3_large_100"], "inverted residuals"),
]
"""All systems, ours first."""


def is_of_paper(name: str) -> bool:
    """Whether a name, with a timm tag after it or not, is one of CMT or of what its paper compares it with."""
    base = name.partition(".")[0]
    return any(system.name == base for system in SYSTEMS)


def find_system(name: str) -> System:
    """The system with a name; a user's network is in its base's family, any other name in a family of its own."""
    for system in SYSTEMS:
        if system.name == name:
            return system
    own = expand(name)
    if own is not None:
        return System(name, find_system(own.base).family, "ours", f"{own.base} with other sizes")
    if name.startswith(("cmt_", "ceit_")):
        return System(name, "CMT" if name.startswith("cmt_") else "CeiT", "ours")
    return System(name, name.partition("_")[0], "timm")
