"""Names what is in images, with numpy, pillow and onnxruntime alone.

    python predict.py IMAGE... [--top 5] [--json]

or from Python, with this folder on the path:

    from predict import Predictor
    Predictor().predict(["photo.jpg"])[0].label

The model stands in model.json and the ONNX file that it names; cmtvision_preprocess/ is the code that the model was
trained and evaluated with. Written by `cmtvision export --bundle`; Apache-2.0.
"""

import argparse
import hashlib
import io
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

_INSTALL = f"pip install -r {Path(__file__).parent / 'requirements.txt'}"
try:
    import numpy as np
    import numpy.typing as npt
    from cmtvision_preprocess.decode import ImageSource, each_image
    from cmtvision_preprocess.errors import CheckpointError, CmtvisionError, ConfigError, DataError, first_line
    from cmtvision_preprocess.preprocess import Preprocess
except ImportError as error:
    if __name__ != "__main__":
        raise
    print(f"error: needs {error.name}: {_INSTALL}", file=sys.stderr)  # a script
    sys.exit(2)

THRESHOLD = 0.5  # of a model with several labels an image: from here on it says yes
_FORMAT = 3


@dataclass(frozen=True)
class Prediction:
    """What the model says of one image.

    Attributes:
        label: the most probable class.
        probability: its probability, 0 to 1.
        labels: the classes it decides for: the one label, or of a multi-label model all of probability 0.5 and more.
        top: the most probable classes with their probabilities, best first.
    """

    label: str
    probability: float
    labels: list[str]
    top: list[tuple[str, float]]


class Predictor:
    """The model of a bundle.

    Args:
        folder: the bundle; by default the folder of this file.
        threads: for one batch; None lets ONNX Runtime choose.

    Raises:
        CheckpointError: a missing, torn or changed file.
        ConfigError: onnxruntime is not installed.
    """

    def __init__(self, folder: str | Path | None = None, threads: int | None = None) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise ConfigError(f"needs onnxruntime: {_INSTALL}") from error
        folder = Path(folder or Path(__file__).parent)
        card = _read_card(folder / "model.json")
        self.classes, self.task, self.preprocess = card.classes, card.task, card.preprocess
        self._pixels = card.pixels
        for name, expected in card.sha256.items():
            _check_file(folder / name, expected)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.enable_cpu_mem_arena = False
        options.add_session_config_entry("session.x64quantprecision", "1")  # 8-bit products alike on every processor
        options.log_severity_level = 3
        file = folder / card.file
        try:
            self.session = onnxruntime.InferenceSession(file, options, ["CPUExecutionProvider"])
        except Exception as error:  # each kind of fault has a class of its own, and all derive from Exception only
            raise CheckpointError(f"{file}: ONNX Runtime cannot open it ({first_line(error)})") from error

    def inputs(self, image: ImageSource) -> npt.NDArray[Any]:
        """What the graph takes of an image: (C, H, W) float32, or pixels (H, W, C) uint8 where it does the rest."""
        if not self._pixels:
            return self.preprocess(image)
        pixels = self.preprocess.prepare(image)
        return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], self.preprocess.channels)))

    def logits(self, images: ImageSource | Iterable[ImageSource]) -> npt.NDArray[np.float32]:
        """Logits (images, classes) of one batch. Raises DataError for an image that cannot be read."""
        inputs = [self.inputs(image) for image in each_image(images)]
        return self.forward(np.stack(inputs)) if inputs else np.zeros((0, len(self.classes)), np.float32)

    def forward(self, batch: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Logits (B, classes) of a batch of ``inputs``."""
        (found,) = self.session.run(None, {self.session.get_inputs()[0].name: batch})
        logits: npt.NDArray[np.float32] = found
        return logits

    def predict(
        self, images: ImageSource | Iterable[ImageSource], top: int = 5, batch_size: int = 32
    ) -> list[Prediction]:
        """Predict any number of images: paths, bytes, open files, PIL images, arrays or tensors.

        One image alone is a list of one; an array (N, H, W, C) is N images, any of two or three dimensions is one.

        Raises:
            DataError: an image that cannot be read, by name.
            ConfigError: top or batch_size below 1.
        """
        for name, value in (("top", top), ("batch_size", batch_size)):
            if value < 1:
                raise ConfigError(f"{name}: got {value!r}, expected a whole number of at least 1")
        waiting, found = iter(each_image(images)), []
        while batch := list(islice(waiting, batch_size)):
            found += self.decide(self.logits(batch), top)
        return found

    def decide(self, logits: npt.NDArray[np.float32], top: int = 5) -> list[Prediction]:
        """What logits (B, classes) say, image by image."""
        several = self.task == "multi-label"
        found = []
        for row in logits.astype(np.float64):
            odds = np.exp(-np.logaddexp(0, -row)) if several else np.exp(row - np.logaddexp.reduce(row))
            ranked = [(self.classes[i], float(odds[i])) for i in np.argsort(-odds, kind="stable").tolist()]
            label, probability = ranked[0]
            labels = [name for name, p in ranked if p >= THRESHOLD] if several else [label]
            found.append(Prediction(label, probability, labels, ranked[:top]))
        return found


def main(words: Sequence[str] | None = None) -> int:
    """The command; 0, or 2 where an image or the bundle cannot be used."""
    parser = argparse.ArgumentParser(description="Name what is in images.")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files")
    parser.add_argument("--top", type=int, default=5, help="how many classes to name for each image (5)")
    parser.add_argument("--threads", type=int, help="threads for one batch; default: the cores")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    options = parser.parse_args(words)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show is no error
    predictions, failed = [], []
    try:
        for name in ("top", "threads"):
            if (getattr(options, name) or 1) < 1:
                raise ConfigError(f"--{name} {getattr(options, name)}: expected at least 1")
        predictor = Predictor(threads=options.threads)
        for image in options.images:
            try:
                said = predictor.predict([image], max(1, options.top))[0]
            except DataError as error:
                failed.append({"image": image, "error": str(error)})
                _print(f"error: {error}", sys.stderr)
                continue
            top = [{"label": label, "probability": probability} for label, probability in said.top]
            predictions.append({"image": image, **asdict(said), "top": top})
            if not options.json:
                _print(f"{image}: " + ", ".join(f"{label} {share:.1%}" for label, share in said.top), sys.stdout)
    except CmtvisionError as error:
        _print(f"error: {error}", sys.stderr)
        return 2
    if options.json:
        _print(_json({"predictions": predictions, "failed": failed}), sys.stdout)
    return 2 if failed else 0


def _json(value: Any) -> str:
    """JSON that stays valid in whatever encoding stdout has."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(value, indent=2)
    return text


def _print(text: str, where: Any) -> None:
    print(text, file=where, flush=True)


class _Card(NamedTuple):
    """What is used of model.json; the names of files are plain ones, in the folder of the card."""

    classes: list[str]
    task: str
    preprocess: Preprocess
    pixels: bool
    file: str
    sha256: dict[str, str]


def _read_card(path: Path) -> _Card:
    try:
        card: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if card["format_version"] != _FORMAT:
            raise ValueError(f"format {card['format_version']}, expected {_FORMAT}")
        export: dict[str, Any] = card["export"]
        return _Card(
            classes=[str(name) for name in card["classes"]],
            task=str(card["task"]),
            preprocess=Preprocess.from_dict(card["preprocess"]),
            pixels=bool(export["preprocess_inside"]),
            file=Path(export["file"]).name,
            sha256={Path(name).name: str(expected) for name, expected in export["sha256"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, DataError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else first_line(error)
        raise CheckpointError(f"{path}: not the card of a bundle ({reason}); bundle the model again") from error


def _check_file(path: Path, expected: str) -> None:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}; bundle the model again") from error
    if found != expected:
        raise CheckpointError(f"{path}: not the file that model.json describes; bundle the model again")


if __name__ == "__main__":
    sys.exit(main())
