"""Which images a run trained on, for annotated data: by the split.csv of ``listing.split_file``.

An image's classes there are those of its objects or pixels, so everything that looks at images alone (the split, the
checks for files in two parts) sees an annotated data set as one in which an image may have several classes.
"""

from dataclasses import replace
from os import PathLike

from cmtvision.data.annotations.samples import AnnotationIndex, Sample
from cmtvision.data.listing.index import DatasetIndex
from cmtvision.data.listing.index import Sample as Image
from cmtvision.data.listing.split_file import take_split


def images_of(index: AnnotationIndex[Sample]) -> DatasetIndex:
    """The images of an annotated data set in their parts, each with the classes that are in it."""

    def images(samples: list[Sample]) -> list[Image]:
        labels = [tuple(sorted(set(map(int, sample.labels)))) for sample in samples]
        return [
            Image(sample.path, found[0] if found else -1, found) for sample, found in zip(samples, labels, strict=True)
        ]

    return DatasetIndex(
        root=index.root, classes=index.classes, train=images(index.train), val=images(index.val),
        test=images(index.test), skipped=index.skipped, fingerprint=index.fingerprint,
        split_source=index.split_source, multi_label=True, source=index.source, notes=index.notes,
    )  # fmt: skip


def take_annotated_split(
    index: AnnotationIndex[Sample], file: str | PathLike[str], fingerprint: str = ""
) -> AnnotationIndex[Sample]:
    """The images in the parts that a run had them in, so that no figure counts one it trained on; see ``take_split``.

    Raises:
        DataError: the file cannot be read.
    """
    return as_in(index, take_split(images_of(index), file, fingerprint))


def as_in(index: AnnotationIndex[Sample], images: DatasetIndex) -> AnnotationIndex[Sample]:
    """The index with its images in the parts that ``images`` has them in, and without those that are not there."""
    sample = {one.path: one for part in (index.train, index.val, index.test) for one in part}
    train, val, test = (
        [sample[image.path] for image in part]  # type: ignore[index]  # paths, since they come from there
        for part in (images.train, images.val, images.test)
    )
    return replace(
        index, train=train, val=val, test=test, skipped=images.skipped, split_source=images.split_source,
        notes=images.notes,
    )  # fmt: skip
