"""Semantic segmentation: decoders of segmentation_models_pytorch on CMT or any other timm backbone."""

from collections.abc import Callable
from functools import partial

from cmtvision.models.segmenters.create import KINDS, create_segmenter, list_segmenters, segmenter_by_name
from cmtvision.models.segmenters.segmenter import Segmenter

__all__ = ["KINDS", "Segmenter", "create_segmenter", "list_segmenters", "segmenter_by_name"]


def __getattr__(name: str) -> Callable[..., Segmenter]:
    """The named ones, ``cmt_s_upernet(num_classes=..., ...)``."""
    if name not in list_segmenters():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return partial(segmenter_by_name, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *list_segmenters()])
