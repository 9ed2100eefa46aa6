"""Predicts the classes of images, with numpy, pillow and onnxruntime alone.

    python predict.py IMAGE... [--top 5] [--conformal 0.9] [--abstain] [--json]

or from Python, with this folder on the path:

    from predict import Predictor
    Predictor().predict(["photo.jpg"])[0].label

The model is in model.json and the ONNX file that it names; cmtvision_preprocess/ is the code that the model was
trained, evaluated and calibrated with. Written by `cmtvision export --bundle`; Apache-2.0.
"""

import argparse
import hashlib
import io
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

_INSTALL = f"pip install -r {Path(__file__).parent / 'requirements.txt'}"
try:
    import numpy as np
    import numpy.typing as npt
    from cmtvision_preprocess.data.decode import ImageSource, each_image
    from cmtvision_preprocess.data.preprocess import Preprocess
    from cmtvision_preprocess.errors import CheckpointError, CmtvisionError, ConfigError, DataError, first_line
    from cmtvision_preprocess.trust.answers import ABSTAIN, NOTHING_MORE, Ask, answers, assumptions, record
    from cmtvision_preprocess.trust.block import TrustBlock
    from cmtvision_preprocess.trust.conformal import KINDS, SetKind, percent
except ImportError as error:
    if __name__ != "__main__":
        raise
    print(f"error: needs {error.name}: {_INSTALL}", file=sys.stderr)  # noqa: T201  # a script
    sys.exit(2)

THRESHOLD = 0.5  # of a model with several labels per image: from here on it says yes
_FORMAT = 3
_SHOWN = 10  # classes of a set; --json has all


@dataclass(frozen=True)
class Prediction:
    """What the model says of one image.

    Attributes:
        label: the most probable class.
        probability: its probability, 0 to 1; calibrated, where the model is.
        labels: the classes it decides for: the one label, or of a multi-label model all of probability 0.5 and more;
            none where it is unsure.
        top: the most probable classes with their probabilities, best first.
        set: the prediction set, most probable class first; None where none was asked for.
        unsure: why no class is named, '' where one is; None where the model was not asked to abstain.
        energy: of the logits, higher for less familiar images; None without a calibration, as the next.
        familiarity: the share of held-out images with at least as high an energy, above 0 and up to 1.
    """

    label: str
    probability: float
    labels: list[str]
    top: list[tuple[str, float]]
    set: list[str] | None = None
    unsure: str | None = None
    energy: float | None = None
    familiarity: float | None = None


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
        self._pixels, self.trust = card.pixels, card.trust
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
        """The graph's input for an image: (C, H, W) float32, or pixels (H, W, C) uint8 where it does the rest."""
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
        self,
        images: ImageSource | Iterable[ImageSource],
        top: int = 5,
        batch_size: int = 32,
        *,
        conformal: float | None = None,
        sets: SetKind = "lac",
        abstain: float | None = None,
    ) -> list[Prediction]:
        """Predict any number of images: paths, bytes, open files, PIL images, arrays or tensors.

        One image alone is a list of one; an array (N, H, W, C) is N images, any of two or three dimensions is one.

        Args:
            images: see above.
            top: how many classes to name for each image.
            batch_size: images computed at a time.
            conformal: the level of prediction sets, the share of images whose set holds the right class: 0.5 to 0.999.
            sets: 'lac' or 'raps'.
            abstain: the least probability for which a class is named; none is for an unfamiliar image either.

        Raises:
            DataError: an image that cannot be read, by name.
            ConfigError: top or batch_size below 1, or what only a calibrated model can be asked.
        """
        ask = Ask(conformal, sets, abstain)
        self.check_ask(ask)
        for name, value in (("top", top), ("batch_size", batch_size)):
            if value < 1:
                raise ConfigError(f"{name}: got {value!r}, expected a whole number of at least 1")
        waiting, found = iter(each_image(images)), []
        while batch := list(islice(waiting, batch_size)):
            found += self.decide(self.logits(batch), top, ask)
        return found

    def check_ask(self, ask: Ask) -> None:
        """Raises ConfigError for what the model cannot be asked."""
        if ask.anything and self.trust is None:
            why = "it has several labels per image" if self.task == "multi-label" else "the model is not calibrated"
            raise ConfigError(f"prediction sets and abstaining: {why}")
        try:
            ask.check()
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def decide(self, logits: npt.NDArray[np.float32], top: int = 5, ask: Ask = NOTHING_MORE) -> list[Prediction]:
        """What logits (B, classes) say, image by image."""
        several, temperature = self.task == "multi-label", 1.0 if self.trust is None else self.trust.temperature
        found = []
        for row in logits.astype(np.float64) / temperature:
            odds = np.exp(-np.logaddexp(0, -row)) if several else np.exp(row - np.logaddexp.reduce(row))
            ranked = [(self.classes[i], float(odds[i])) for i in np.argsort(-odds, kind="stable").tolist()]
            label, probability = ranked[0]
            labels = [name for name, p in ranked if p >= THRESHOLD] if several else [label]
            found.append(Prediction(label, probability, labels, ranked[:top]))
        if self.trust is None or not found:
            return found
        return [
            replace(
                one,
                labels=[] if added.unsure else one.labels,
                set=None if added.set is None else [self.classes[i] for i in added.set],
                unsure=added.unsure,
                energy=added.energy,
                familiarity=added.familiarity,
            )
            for one, added in zip(
                found, answers(self.trust, logits, [one.probability for one in found], ask), strict=True
            )
        ]


def main(words: Sequence[str] | None = None) -> int:
    """The command; 0, or 2 where an image or the bundle cannot be used."""
    parser = argparse.ArgumentParser(description="Name what is in images.")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files")
    parser.add_argument("--top", type=int, default=5, help="how many classes to name for each image (5)")
    parser.add_argument(
        "--conformal",
        type=float,
        metavar="LEVEL",
        help="name a set that holds the right class for this share of images",
    )
    parser.add_argument("--sets", default="lac", choices=KINDS, help="kind of sets (lac)")
    parser.add_argument(
        "--abstain", action="store_true", help="say 'unsure' below the LEVEL (0.9), or where an image is unfamiliar"
    )
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
        level = options.conformal
        ask = Ask(level, options.sets, (ABSTAIN if level is None else level) if options.abstain else None)
        predictor.check_ask(ask)
        for line in [] if predictor.trust is None else assumptions(predictor.trust, ask):
            _print(line, sys.stderr)
        for image in options.images:
            try:
                said = predictor.decide(predictor.logits([image]), max(1, options.top), ask)[0]
            except DataError as error:
                failed.append({"image": image, "error": str(error)})
                _print(f"error: {error}", sys.stderr)
                continue
            top = [{"label": label, "probability": probability} for label, probability in said.top]
            more = ("set", "unsure", "energy", "familiarity")
            known = {key: value for key, value in asdict(said).items() if key not in more or value is not None}
            predictions.append({"image": image, **known, "top": top})
            if not options.json:
                _print(f"{image}: {_in_words(said, level)}", sys.stdout)
    except CmtvisionError as error:
        _print(f"error: {error}", sys.stderr)
        return 2
    if options.json:
        found: dict[str, Any] = {"predictions": predictions, "failed": failed}
        if predictor.trust is not None:
            found["trust"] = record(predictor.trust, ask)
        _print(_json(found), sys.stdout)
    return 2 if failed else 0


def _in_words(said: Prediction, level: float | None) -> str:
    shares = ", ".join(f"{label} {share:.1%}" for label, share in said.top)
    unsure = f"unsure ({said.unsure}): " if said.unsure else ""
    within = ""
    if said.set is not None:
        more = f" and {len(said.set) - _SHOWN} more" if len(said.set) > _SHOWN else ""
        within = f"; {percent(level or 0)} set: {', '.join(said.set[:_SHOWN])}{more}"
    return unsure + shares + within


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
    trust: TrustBlock | None


def _read_card(path: Path) -> _Card:
    try:
        card: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if card["format_version"] != _FORMAT:
            raise ValueError(f"format {card['format_version']}, expected {_FORMAT}")
        export: dict[str, Any] = card["export"]
        trust = card.get("trust") if card["task"] == "single-label" else None
        return _Card(
            classes=[str(name) for name in card["classes"]],
            task=str(card["task"]),
            preprocess=Preprocess.from_dict(card["preprocess"]),
            pixels=bool(export["preprocess_inside"]),
            file=Path(export["file"]).name,
            sha256={Path(name).name: str(expected) for name, expected in export["sha256"].items()},
            trust=None if trust is None else TrustBlock.from_dict(trust),
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
