"""``cmtvision segment``: say what each pixel of an image is."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from cmtvision.cli import dense
from cmtvision.cli.arguments import JsonOption

if TYPE_CHECKING:
    from PIL import Image

    from cmtvision.engine.dense.task import DenseTask

_WORDS = dense.Words(
    "segment", "segmenter", "cmt_s_fpn", "Folder of images and masks, or in COCO or Pascal VOC format."
)
_NAMED = 5  # classes of an image that a person is told


def _task() -> "DenseTask":
    from cmtvision.segmentation.task import SEGMENTATION

    return SEGMENTATION


def evaluate(
    context: typer.Context,
    run: dense.RunArgument,
    data: Annotated[str, typer.Argument(metavar="DATA", help=_WORDS.data)],
    split: dense.SplitOption = "val",
    window: dense.WindowOption = None,
    device: dense.DeviceOption = "auto",
    devices: dense.DevicesOption = 1,
    workers: dense.WorkersOption = None,
    json: JsonOption = False,
) -> None:
    """Measure a trained segmenter on annotated images: mIoU and boundary F1."""
    dense.evaluate(context, _task, run, data, device, devices, json, split=split, window=window, workers=workers)


def predict(
    run: dense.RunArgument,
    images: dense.ImagesArgument,
    out: dense.DrawnOption = None,
    masks: dense.MasksOption = None,
    window: dense.WindowOption = None,
    max_pixels: dense.MaxPixelsOption = None,
    device: dense.DeviceOption = "auto",
    overwrite: dense.DrawOverOption = False,
    json: JsonOption = False,
) -> None:
    """Label the pixels of images; a bad image is named on stderr, the others continue, and the exit code is 2."""
    import numpy as np

    from cmtvision.artefact.dense import SegmentationPredictor
    from cmtvision.errors import ConfigError
    from cmtvision.report.drawn import as_mask, with_classes

    if out is not None and masks is not None and out.resolve() == masks.resolve():
        raise ConfigError("--out and --masks: the files have the same names; name two folders")
    predictor = SegmentationPredictor.open(run, device)

    def answer(picture: "Image.Image") -> dense.Answer:
        found = predictor.predict(picture, window)[0]
        shares = np.bincount(found.ravel(), minlength=len(predictor.classes)) / found.size
        named = {predictor.classes[place]: float(shares[place]) for place in np.argsort(-shares) if shares[place]}
        said = ", ".join(f"{label} {share:.1%}" for label, share in list(named.items())[:_NAMED])
        made = {
            "drawn": partial(with_classes, picture, found, predictor.classes),
            "mask": partial(as_mask, found, predictor.classes),
        }
        return said, {"shares": named}, made

    dense.predict(run, images, answer, {"drawn": out, "mask": masks}, max_pixels, overwrite, json)


COMMANDS: dict[str, tuple[Callable[..., None], str]] = {
    "train": (dense.train_command(_WORDS, _task), "Train a segmenter on your images."),
    "eval": (evaluate, "Measure a trained segmenter."),
    "predict": (predict, "Label the pixels of images."),
}
