"""ViT and DeiT at the sizes of cmt_nano (32 px) and cmt_micro (64 px). The networks are timm's own classes.

Two sizes of every system are ours, because none was published for so small an image:

- nano: 32 px, multiply-adds within 10% of cmt_nano's. The values are each file's own.
- micro: 64 px, multiply-adds within 10% of cmt_micro's, by one rule for every system, which was fixed before anything
  was trained: the patch, the strides and the proportions of nano; three quarters of its widths; twice its key strides
  where keys are reduced, so that the grid of keys stays (the second stage reduces too, by 2); where the cost is then
  beyond 10% (on the ladder, of its neighbour on either side too), as few blocks less as bring it back.

DeiT's network is ViT's plus a distillation token with a second classifier (Touvron et al., ICML 2021,
arXiv 2012.12877). Without a teacher both classifiers learn from the labels through the average of their logits, which
is what timm's forward gives. With one, train the two separately: ``model.set_distilled_training(True)``.

The patch of nano is 8 px (16 tokens), not the 4 px that is usual at this image size: under so few multiply-adds 64
tokens leave a network of 32 to 40 channels, which learned less in a trial on training images of Fashion-MNIST
(docs/decisions.md).
"""

from typing import Any

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, register_model
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

from cmtvision.models.timm_private import generate_default_cfgs
from cmtvision.models.weight_sources import TRAIN_IT, refuse_missing_weights

__all__: list[str] = []

NETWORKS: dict[str, dict[str, int]] = {
    "nano": {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 6, "num_heads": 2},
    "micro": {"img_size": 64, "patch_size": 8, "embed_dim": 48, "depth": 6, "num_heads": 2},
}


def _cfg(size: str, **kwargs: Any) -> dict[str, Any]:
    side = NETWORKS[size]["img_size"]
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, side, side),
        "pool_size": None,
        "fixed_input_size": True,
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        f"{name}.untrained": _cfg(size, **more)
        for size in NETWORKS
        for name, more in (
            (f"vit_{size}", {"paper_ids": "arXiv:2010.11929"}),
            (f"deit_{size}_distilled", {"paper_ids": "arXiv:2012.12877", "classifier": ("head", "head_dist")}),
        )
    }
)


def _create(cls: Any, name: str, size: str, pretrained: bool, **kwargs: Any) -> Any:
    refuse_missing_weights(name, pretrained, kwargs, TRAIN_IT)
    feature_cfg = {
        "out_indices": kwargs.pop("out_indices", 3),
        "feature_cls": "getter",
        **kwargs.pop("feature_cfg", {}),
    }
    return build_model_with_cfg(
        cls,
        name,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=feature_cfg,
        **{**NETWORKS[size], **kwargs},
    )


@register_model
def vit_nano(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """ViT at cmt_nano's cost: patch 8, width 64, 6 blocks of 2 heads, 32 px."""
    return _create(VisionTransformer, "vit_nano", "nano", pretrained, **kwargs)


@register_model
def deit_nano_distilled(pretrained: bool = False, **kwargs: Any) -> VisionTransformerDistilled:
    """vit_nano with DeiT's distillation token and second classifier; gives the average of the two logits."""
    return _create(VisionTransformerDistilled, "deit_nano_distilled", "nano", pretrained, **kwargs)


@register_model
def vit_micro(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """ViT at cmt_micro's cost: patch 8, width 48, 6 blocks of 2 heads, 64 px."""
    return _create(VisionTransformer, "vit_micro", "micro", pretrained, **kwargs)


@register_model
def deit_micro_distilled(pretrained: bool = False, **kwargs: Any) -> VisionTransformerDistilled:
    """vit_micro with DeiT's distillation token and second classifier; gives the average of the two logits."""
    return _create(VisionTransformerDistilled, "deit_micro_distilled", "micro", pretrained, **kwargs)
