"""Images with annotations: boxes, outlines and masks, read from the formats that people have.

``read_detection`` reads COCO, YOLO and Pascal VOC, ``read_segmentation`` images with masks, Pascal VOC and COCO.
Nothing that a file says is trusted: names may not lead out of the folder, numbers must be finite, sizes the image's.
"""

from cmtvision.data.annotations.read import read_detection, read_segmentation
from cmtvision.data.annotations.samples import (
    AnnotationIndex,
    DetectionIndex,
    DetectionSample,
    SegmentationIndex,
    SegmentationSample,
)

__all__ = [
    "AnnotationIndex",
    "DetectionIndex",
    "DetectionSample",
    "SegmentationIndex",
    "SegmentationSample",
    "read_detection",
    "read_segmentation",
]
