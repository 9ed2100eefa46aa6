"""Floor 1: images in. The preprocess contract, data set readers, sampling, sample images.

Nothing here imports torch; import what needs it from its module: ``cmtvision.data.training.augment``
(``train_transform``, ``mixer``, ``keyed_rng``) and ``cmtvision.data.training.dataset`` (``ImageDataset``).
"""

from cmtvision.data.annotations import (
    AnnotationIndex,
    DetectionIndex,
    DetectionSample,
    SegmentationIndex,
    SegmentationSample,
    read_detection,
    read_segmentation,
)
from cmtvision.data.decode import MAX_BYTES, MAX_PIXELS, ImageSource, each_image, open_image
from cmtvision.data.listing.index import DatasetIndex, Sample, Skipped, group_numbers
from cmtvision.data.listing.split_file import write_split
from cmtvision.data.photos import PhotoPath, StoredPhoto
from cmtvision.data.preprocess import Preprocess
from cmtvision.data.readers import class_names_from, read_dataset
from cmtvision.data.sample import SampleSummary, write_sample_data
from cmtvision.data.scenes.write import SceneSummary, write_sample_scenes
from cmtvision.data.shards.shard_writer import SHARD_BYTES, ShardSummary, write_shards
from cmtvision.data.training.sampling import EpochSampler, balanced_weights

__all__ = [
    "MAX_BYTES",
    "MAX_PIXELS",
    "SHARD_BYTES",
    "AnnotationIndex",
    "DatasetIndex",
    "DetectionIndex",
    "DetectionSample",
    "EpochSampler",
    "ImageSource",
    "PhotoPath",
    "Preprocess",
    "Sample",
    "SampleSummary",
    "SceneSummary",
    "SegmentationIndex",
    "SegmentationSample",
    "ShardSummary",
    "Skipped",
    "StoredPhoto",
    "balanced_weights",
    "class_names_from",
    "each_image",
    "group_numbers",
    "open_image",
    "read_dataset",
    "read_detection",
    "read_segmentation",
    "write_sample_data",
    "write_sample_scenes",
    "write_shards",
    "write_split",
]
