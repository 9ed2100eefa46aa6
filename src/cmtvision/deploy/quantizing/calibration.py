"""The images that quantisation looks at: training images for the ranges, held-out images for the accuracy."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cmtvision.artefact.run.data import check_local, data_of, read_as_the_run
from cmtvision.artefact.run.names import SPLIT_FILE
from cmtvision.data import DatasetIndex, ImageSource, PhotoPath, Preprocess, Sample, StoredPhoto, read_dataset
from cmtvision.errors import ConfigError, DataError

MIN_CALIBRATION = 32  # with fewer, the largest activation of the next image is often outside the range
MOST_KEPT = 1_000_000_000  # bytes of pixels kept in memory: 6,643 images of 224 px
Progress = Callable[[int, int], None]
Forward = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Photos:
    """Images that are read repeatedly.

    The first ``MOST_KEPT`` bytes of them stay in memory after resize and crop, as pixels: a quarter of their size as
    network input. The others are read again each time.

    Attributes:
        preprocess: turns them into network input.
        sources: where each of them is.
        labels: class numbers of each image: one, or any number of a multi-label data set.
        multi_label: how labels are compared with logits.
    """

    preprocess: Preprocess
    sources: list[PhotoPath]
    labels: list[tuple[int, ...]]
    multi_label: bool = False
    _kept: list[npt.NDArray[np.uint8]] = field(default_factory=list, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.sources)

    def some(self, count: int, seed: int = 0) -> "Photos":
        """So many of them, drawn by a seed, in their order."""
        places = sorted(random.Random(seed).sample(range(len(self)), count))
        sources, labels = [self.sources[i] for i in places], [self.labels[i] for i in places]
        return Photos(self.preprocess, sources, labels, self.multi_label)

    def images(self, most: int | None = None) -> list[ImageSource]:
        """All images as they are, before resize and crop, or the first ``most``."""
        return [one.read() if isinstance(one, StoredPhoto) else one for one in self.sources[:most]]

    def pixels(self, most: int | None = None) -> Iterator[npt.NDArray[np.uint8]]:
        """(H, W, C or 1) after resize and crop, of all images in order or of the first ``most``."""
        height, width = self.preprocess.size
        keep = MOST_KEPT // (height * width * self.preprocess.channels)
        for place, source in enumerate(self.sources[:most]):
            if place < len(self._kept):
                yield self._kept[place]
                continue
            found = self.preprocess.prepare(source.read() if isinstance(source, StoredPhoto) else source)
            if place == len(self._kept) < keep:
                self._kept.append(found)
            yield found

    def batches(self, size: int, most: int | None = None) -> Iterator[npt.NDArray[np.float32]]:
        """Network input (B, C, H, W), all images in order or the first ``most``."""
        pixels = self.pixels(most)
        while batch := list(islice(pixels, size)):
            yield np.stack([self.preprocess.finish(one) for one in batch])

    def logits(self, forward: Forward, size: int = 16, most: int | None = None) -> npt.NDArray[np.float32]:
        """Logits (N, classes) of a network."""
        return np.concatenate([forward(batch) for batch in self.batches(size, most)])

    def right(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        """Which decisions are right: of the images (N,), or of a multi-label model of all classes (N, classes)."""
        if not self.multi_label:
            return np.asarray(logits.argmax(axis=1) == np.array([label for (label,) in self.labels]))
        wanted = np.zeros(logits.shape, dtype=bool)
        for row, labels in enumerate(self.labels):
            wanted[row, list(labels)] = True
        return np.asarray((logits >= 0) == wanted)  # sigmoid >= 0.5


def read_photos(
    run: Path | None,
    data: str | Path | None,
    classes: Sequence[str],
    preprocess: Preprocess,
    multi_label: bool = False,
    calibration: int | None = 300,
    num_images: int | None = None,
    seed: int = 0,
    fingerprint: str = "",
) -> tuple[Photos, Photos]:
    """Calibration images from the training part, evaluation images from the held-out part.

    A run's own images are in the parts that the run had them in. Other data with only one part for both is halved by
    the seed, class by class; images that are set apart for test are left alone.

    Args:
        run: folder of the model; None for one that is in no folder.
        data: images as for training; None takes those of the run.
        classes: of the model, in its order.
        preprocess: of the model.
        multi_label: images have any number of classes.
        calibration: training images to draw; all where there are fewer. None draws none.
        num_images: held-out images to draw; None takes all.
        seed: of the draw.
        fingerprint: of the data that the model was trained on, where its card says it.

    Raises:
        ConfigError: no data given, and the run does not say where its own is, or it is not there any more.
        DataError: fewer than MIN_CALIBRATION images, no labels, or images that cannot be read.
    """
    if calibration is not None and calibration < MIN_CALIBRATION:
        raise DataError(f"calibration {calibration}: too few photos to know the ranges, give {MIN_CALIBRATION} or more")
    index = _read(run, data, fingerprint, classes=list(classes), multi_label=multi_label)
    to_draw, measured = index.train, index.val
    if index.split_source != "run" and (not measured or (calibration is not None and not to_draw)):
        if measured and index.test:
            raise DataError(
                f"{index.source}: no photos to calibrate with, only ones held out (val and test); "
                "give a folder with train/"
            )
        to_draw, measured = _halves(to_draw or measured or index.test, seed)
    if not measured:
        trained = f"the run trained on all {len(index.train):,}, " if index.split_source == "run" else ""
        raise DataError(
            f"{index.source}: {trained}no photos to measure the accuracy on; give DATA, a folder with train/ and val/"
        )
    draw = random.Random(seed)
    chosen = draw.sample(to_draw, min(calibration or 0, len(to_draw)))
    if calibration is not None and len(chosen) < MIN_CALIBRATION:
        raise DataError(
            f"{index.source}: {len(chosen)} photos to calibrate with, {MIN_CALIBRATION} are the least; "
            "give more (half of a folder without train/ and val/ is kept for measuring)"
        )
    if num_images is not None and num_images < len(measured):
        measured = draw.sample(measured, num_images)
    return _photos(chosen, preprocess, multi_label), _photos(measured, preprocess, multi_label)


def _read(run: Path | None, data: str | Path | None, fingerprint: str, **options: Any) -> DatasetIndex:
    """The images of ``data``, or of the run, in the parts of the run or of the data. Raises as ``read_photos``."""
    if data is not None and run is not None:
        return read_as_the_run(run, data, fingerprint, **options)
    if data is not None:
        return read_dataset(data, val_fraction=0, **options)
    own = data_of(run) if run is not None else None
    if run is None or own is None:
        name = "an artefact without a folder" if run is None else run
        raise ConfigError(f"{name}: does not say what it was trained on; give DATA, a folder of photos")
    try:
        check_local(own)
        index = read_as_the_run(run, own, fingerprint, **options)
    except DataError as error:
        raise ConfigError(f"{run}: the run's photos cannot be read where they were ({error}); give DATA") from error
    if index.split_source != "run" and (run / SPLIT_FILE).is_file():
        raise ConfigError(f"{run}: {own} no longer holds the photos that the run was trained on; give DATA")
    return index


def _halves(samples: Sequence[Sample], seed: int) -> tuple[list[Sample], list[Sample]]:
    """Every second image of each class, in an order by the seed, and the others."""
    order = random.Random(seed).sample(samples, len(samples))
    order.sort(key=lambda sample: (sample.label, sample.labels))  # stable: within a class as drawn
    return sorted(order[::2]), sorted(order[1::2])


def _photos(samples: Sequence[Sample], preprocess: Preprocess, multi_label: bool) -> Photos:
    labels = [one.labels if multi_label else (one.label,) for one in samples]
    return Photos(preprocess, [one.path for one in samples], labels, multi_label)
