"""Floor 1: images in. The preprocess contract, data set readers, sampling, sample photos.

Nothing here imports torch; what needs it is imported by its module: ``cmtvision.data.augment`` (``train_transform``,
``mixer``, ``keyed_rng``) and ``cmtvision.data.images`` (``ImageDataset``).
"""

from cmtvision.data.decode import MAX_BYTES, MAX_PIXELS, ImageSource, open_image
from cmtvision.data.index import DatasetIndex, Sample, Skipped
from cmtvision.data.preprocess import Preprocess
from cmtvision.data.readers import class_names_from, read_dataset, write_split
from cmtvision.data.sample import SampleSummary, write_sample_data
from cmtvision.data.sampling import EpochSampler

__all__ = [
    "MAX_BYTES",
    "MAX_PIXELS",
    "DatasetIndex",
    "EpochSampler",
    "ImageSource",
    "Preprocess",
    "Sample",
    "SampleSummary",
    "Skipped",
    "class_names_from",
    "open_image",
    "read_dataset",
    "write_sample_data",
    "write_split",
]
