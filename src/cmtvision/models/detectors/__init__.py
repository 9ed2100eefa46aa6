"""Object detection and instance segmentation: torchvision's detectors on CMT or any other timm backbone."""

from collections.abc import Callable
from functools import partial

from cmtvision.models.detectors.create import KINDS, create_detector
from cmtvision.models.detectors.detector import Detector
from cmtvision.models.detectors.names import detector_by_name, list_detectors

__all__ = ["KINDS", "Detector", "create_detector", "detector_by_name", "list_detectors"]


def __getattr__(name: str) -> Callable[..., Detector]:
    """The named ones, ``cmt_s_retinanet(num_classes=..., ...)``."""
    if name not in list_detectors():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return partial(detector_by_name, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *list_detectors()])
