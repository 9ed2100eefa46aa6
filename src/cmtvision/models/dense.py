"""Networks for dense prediction by name: ``cmt_s_retinanet`` finds objects, ``cmt_s_fpn`` says what each pixel is."""

from typing import Any

from cmtvision.errors import ConfigError
from cmtvision.models import detectors, segmenters


def create_dense(name: str, num_classes: int, **arguments: Any) -> detectors.Detector | segmenters.Segmenter:
    """The detector or segmenter of a name, ``BACKBONE_KIND``.

    Args:
        name: a backbone, ours or timm's, and a kind: retinanet, fcos, fasterrcnn, maskrcnn; fpn, unet, upernet,
            deeplabv3plus.
        num_classes: of objects, or of pixels.
        arguments: of ``create_detector`` or ``create_segmenter``.

    Raises:
        ConfigError: an unknown name, or arguments that do not fit.
        CheckpointError, FetchError: as of those functions.
    """
    if is_detector(name):
        return detectors.detector_by_name(name, num_classes, **arguments)
    if is_segmenter(name):
        return segmenters.segmenter_by_name(name, num_classes, **arguments)
    kinds = ", ".join([*detectors.KINDS, *segmenters.KINDS])
    raise ConfigError(f"model {name!r}: expected BACKBONE_KIND, KIND one of {kinds}; such as cmt_s_retinanet")


def is_detector(name: str) -> bool:
    """Whether a name is one of a detector."""
    return name.rpartition("_")[2] in detectors.KINDS


def is_segmenter(name: str) -> bool:
    """Whether a name is one of a segmenter."""
    return name.rpartition("_")[2] in segmenters.KINDS
