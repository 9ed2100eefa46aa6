"""Detectors by name: ``<backbone>_<kind>``, as ``cmt_s_retinanet`` or ``resnet50_maskrcnn``.

Each CMT of the paper with each kind is also a function of this package: ``detectors.cmt_s_retinanet(num_classes=20)``.
"""

from difflib import get_close_matches
from typing import Any

from cmtvision.errors import ConfigError
from cmtvision.models.cmt.variants import VARIANTS
from cmtvision.models.detectors.create import KINDS, create_detector
from cmtvision.models.detectors.detector import Detector


def list_detectors() -> list[str]:
    """The names of the CMTs with each kind of detector; any timm backbone makes another one."""
    return [f"{backbone}_{kind}" for backbone in VARIANTS for kind in KINDS]


def split_name(name: str) -> tuple[str, str]:
    """The kind and the backbone in the name of a detector.

    Raises:
        ConfigError: a name that does not end in a kind, with a did-you-mean.
    """
    backbone, _, kind = name.rpartition("_")
    if kind not in KINDS or not backbone:
        close = get_close_matches(name, list_detectors(), 1)
        hint = f"did you mean {close[0]}?" if close else f"expected BACKBONE_KIND, KIND one of {', '.join(KINDS)}"
        raise ConfigError(f"unknown detector {name!r}; {hint}")
    return kind, backbone


def detector_by_name(name: str, num_classes: int, **arguments: Any) -> Detector:
    """``create_detector`` of what a name says: ``detector_by_name('cmt_s_retinanet', 20)``.

    Raises:
        ConfigError: an unknown name, or an argument that does not exist.
    """
    kind, backbone = split_name(name)
    try:
        return create_detector(kind, backbone, num_classes, **arguments)
    except TypeError as error:
        raise ConfigError(f"detector {name!r}: {error}") from error
