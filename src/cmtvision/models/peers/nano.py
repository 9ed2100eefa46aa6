"""ViT and DeiT at the size of cmt_nano: 32 px, multiply-adds within 10% of it. The networks are timm's own classes.

DeiT's network is ViT's plus a distillation token with a second classifier (Touvron et al., ICML 2021,
arXiv 2012.12877). Without a teacher both classifiers learn from the labels through the average of their logits, which
is what timm's forward gives. With one, train the two separately: ``model.set_distilled_training(True)``.

The patch is 8 px (16 tokens), not the 4 px that is usual at this image size: under so few multiply-adds 64 tokens
leave a network of 32 to 40 channels, which learned less in a trial on training images of Fashion-MNIST
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

IMG_SIZE = 32
VIT_NANO = {"patch_size": 8, "embed_dim": 64, "depth": 6, "num_heads": 2}


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, IMG_SIZE, IMG_SIZE),
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
        "vit_nano.untrained": _cfg(paper_ids="arXiv:2010.11929"),
        "deit_nano_distilled.untrained": _cfg(paper_ids="arXiv:2012.12877", classifier=("head", "head_dist")),
    }
)


def _create(cls: Any, name: str, pretrained: bool, **kwargs: Any) -> Any:
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
        **{"img_size": IMG_SIZE, **VIT_NANO, **kwargs},
    )


@register_model
def vit_nano(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """ViT at cmt_nano's cost: patch 8, width 64, 6 blocks of 2 heads, 32 px."""
    return _create(VisionTransformer, "vit_nano", pretrained, **kwargs)


@register_model
def deit_nano_distilled(pretrained: bool = False, **kwargs: Any) -> VisionTransformerDistilled:
    """vit_nano with DeiT's distillation token and second classifier; gives the average of the two logits."""
    return _create(VisionTransformerDistilled, "deit_nano_distilled", pretrained, **kwargs)
