"""``cmtvision detect``: find objects in images."""

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
    "detect", "detector", "cmt_s_retinanet", "Folder in COCO, YOLO or Pascal VOC format, or a COCO .json."
)


def _task() -> "DenseTask":
    from cmtvision.detection.task import DETECTION

    return DETECTION


def evaluate(
    context: typer.Context,
    run: dense.RunArgument,
    data: Annotated[str, typer.Argument(metavar="DATA", help=_WORDS.data)],
    split: dense.SplitOption = "val",
    device: dense.DeviceOption = "auto",
    devices: dense.DevicesOption = 1,
    workers: dense.WorkersOption = None,
    json: JsonOption = False,
) -> None:
    """Measure a trained detector on annotated images: COCO's AP."""
    dense.evaluate(context, _task, run, data, device, devices, json, split=split, workers=workers)


def predict(
    run: dense.RunArgument,
    images: dense.ImagesArgument,
    min_score: Annotated[
        float | None,
        typer.Option("--min-score", help="Leave out what it is less sure of [best on the held-out images, else 0.5]."),
    ] = None,
    out: dense.DrawnOption = None,
    max_pixels: dense.MaxPixelsOption = None,
    device: dense.DeviceOption = "auto",
    overwrite: dense.DrawOverOption = False,
    json: JsonOption = False,
) -> None:
    """Find objects in images; a bad image is named on stderr, the others continue, and the exit code is 2."""
    from cmtvision.artefact.dense import DetectionPredictor
    from cmtvision.report.drawn import with_boxes

    predictor = DetectionPredictor.open(run, device)

    def answer(picture: "Image.Image") -> dense.Answer:
        found = predictor.predict(picture, min_score)[0]
        objects = [
            {
                "label": predictor.classes[label],
                "score": round(float(score), 4),
                "box": [round(float(value), 1) for value in box],
                **({} if found.masks is None else {"size": list(found.size), "counts": found.masks[place]}),
            }
            for place, (box, score, label) in enumerate(zip(found.boxes, found.scores, found.labels, strict=True))
        ]
        said = "; ".join(f"{one['label']} {one['score']:.0%}" for one in objects) or "nothing"
        return said, {"objects": objects}, {"drawn": partial(with_boxes, picture, found, predictor.classes)}

    dense.predict(run, images, answer, {"drawn": out}, max_pixels, overwrite, json)


COMMANDS: dict[str, tuple[Callable[..., None], str]] = {
    "train": (dense.train_command(_WORDS, _task), "Train a detector on your images."),
    "eval": (evaluate, "Measure a trained detector."),
    "predict": (predict, "Find objects in images."),
}
