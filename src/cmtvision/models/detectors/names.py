"""Detectors by name: ``cmt_s_retinanet``, ``resnet50_maskrcnn``, any backbone with any kind.

Each CMT with each kind is also a function of this package: ``detectors.cmt_s_retinanet(num_classes=20)``.
"""

from typing import Any

from cmtvision.errors import ConfigError
from cmtvision.models.dense_names import list_names, split_name
from cmtvision.models.detectors.create import KINDS, create_detector
from cmtvision.models.detectors.detector import Detector


def list_detectors() -> list[str]:
    """The names of the CMTs with each kind of detector; any timm backbone makes another one."""
    return list_names(KINDS)


def detector_by_name(name: str, num_classes: int, **arguments: Any) -> Detector:
    """``create_detector`` of what a name says: ``detector_by_name('cmt_s_retinanet', 20)``.

    Raises:
        ConfigError: an unknown name, or an argument that does not exist.
    """
    kind, backbone = split_name(name, KINDS, "detector")
    try:
        return create_detector(kind, backbone, num_classes, **arguments)
    except TypeError as error:
        raise ConfigError(f"detector {name!r}: {error}") from error
