"""A trained model in 8 bits, within an accuracy budget, or only its stored weights.

Static quantisation only: ranges come from real images. Dynamic quantisation, which takes them from each batch again, is
not offered: it destroys networks with depthwise convolutions.

The fp32 export that it starts from is verified against the model; what is written is measured as it was read back from
its files, and opened and compared with the model as any export is. quantization.json next to the files holds the table
of layers and all that was measured.
"""

import json
import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from cmtvision.artefact import Artefact, Predictor, load, write_export_card
from cmtvision.artefact.run.exports import QUANTIZATION_FILE
from cmtvision.artefact.run.names import EXPORTS_FOLDER
from cmtvision.deploy.exporting.export import export
from cmtvision.deploy.exporting.onnx_file import DEFAULT_OPSET
from cmtvision.deploy.exporting.subject import as_size, open_subject, resized, size_name
from cmtvision.deploy.new_folder import copy_run_files, new_folder, refuse_existing
from cmtvision.deploy.quantizing.calibration import Photos, Progress, read_photos
from cmtvision.deploy.quantizing.quantized import Accuracy, Candidate, Layer, Quantized, Rest, group_rows
from cmtvision.deploy.quantizing.search import MIN_WEIGHTS, Backend, Search
from cmtvision.deploy.verifying import BATCHES, Verification, verify_classifiers
from cmtvision.errors import CheckpointError, CmtvisionError, ConfigError, ExportError, one_line
from cmtvision.files import write_text
from cmtvision.trust.block import TrustBlock
from cmtvision.trust.fit import fit_block, num_to_fit

DEFAULT_CALIBRATION = 300
_VERIFIED = 16  # images on which the fp32 export and what was written are compared with the model
QuantizeRuntime = Literal["onnx", "openvino"]


class BudgetError(ExportError):
    """No choice of layers meets the accuracy budget; ``layers`` is the table, ``candidates`` what was tried."""

    def __init__(self, message: str, layers: list[Layer], candidates: list[Candidate]) -> None:
        super().__init__(message)
        self.layers, self.candidates = layers, candidates

    def to_dict(self) -> dict[str, Any]:
        """The table, ready for JSON."""
        return {
            "error": str(self),
            "layers": [vars(layer) for layer in self.layers],
            "groups": group_rows(self.layers),
            "candidates": [one.to_dict() for one in self.candidates],
        }


def quantize(
    source: str | Path | Artefact,
    to: QuantizeRuntime = "openvino",
    out: str | Path | None = None,
    *,
    data: str | Path | None = None,
    calibration: int | None = None,
    num_images: int | None = None,
    max_drop: float | None = 0.5,
    weight_only: bool = False,
    rest: Rest = "fp32",
    img_size: int | tuple[int, int] | None = None,
    batch_size: int = 1,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Quantized:
    """Write a trained model in 8 bits.

    Args:
        source: a run folder, an artefact's folder, or an artefact.
        to: 'openvino' or 'onnx'.
        out: folder to write; by default RUN/exports/<runtime>-int8-<size>.
        data: images with labels, as for training; None takes those of the run. Ranges come from its training part,
            accuracy from its held-out part; data that holds nothing out is halved.
        calibration: training images to collect ranges from, 300 by default; all where there are fewer, at least
            MIN_CALIBRATION. None are needed for ``weight_only``.
        num_images: held-out images to measure accuracy on; None takes all.
        max_drop: points of top-1 that may be lost on them; None for no limit.
        weight_only: store the weights in 8 bits and compute in floating point: a small file, no faster.
        rest: what is not in 8 bits: 'fp32', or with OpenVINO on a processor that has it 'bf16'.
        img_size: side in pixels, or (height, width); by default the model's.
        batch_size: images at a time for which the choice of layers is the fastest.
        seed: which images are drawn.
        overwrite: replace an existing export.
        progress: called as progress(done, total).

    Raises:
        ConfigError: an invalid option, a missing package, a folder in the way.
        DataError: images that cannot be used, or too few of them.
        CheckpointError: a model that cannot be opened, files that cannot be written.
        BudgetError: an ExportError with the table of layers: the budget cannot be met. Nothing is kept.
        ExportError: the network cannot be exported, or what was written does not open or compute. Nothing is kept.
    """
    _check_options(to, rest, calibration, num_images, max_drop, weight_only, batch_size)
    artefact, run = open_subject(source)
    artefact.card.check_classifier(run or "the model")
    size = as_size(img_size, artefact.preprocess.size)
    artefact = resized(artefact, size)
    if out is None and run is None:
        raise ConfigError("an artefact without a folder: say where to write (out)")
    precision = "int8-weights" if weight_only else "int8"
    precision += "" if rest == "fp32" else f"-{rest}"
    target = Path(out) if out is not None else Path(run or "") / EXPORTS_FOLDER / f"{to}-{precision}-{size_name(size)}"
    refuse_existing(target, overwrite)
    ranges, held_out = read_photos(
        run,
        data,
        artefact.classes,
        artefact.preprocess,
        multi_label=artefact.task == "multi-label",
        calibration=None if weight_only else DEFAULT_CALIBRATION if calibration is None else calibration,
        num_images=num_images,
        seed=seed,
        fingerprint=artefact.data_fingerprint,
    )
    with tempfile.TemporaryDirectory() as scratch, new_folder(target, overwrite) as folder:
        start = Path(scratch) / "fp32"
        exported = export(artefact, to, start, images=held_out.images(_VERIFIED))
        backend = _backend(to, start, rest)
        if not weight_only:
            backend.calibrate(ranges.batches(16))
        search = Search(backend, ranges, held_out, max_drop, batch_size, progress)
        candidates: list[Candidate] = []
        if weight_only:
            model = backend.weight_only()
        else:
            found, candidates = search.run()
            if found is None:
                raise _refusal(search, weight_only, candidates)
            model = search.model(found.int8)
        files = backend.save(model, folder)
        model = backend.read(folder)
        accuracy = search.accuracy(model)
        if not search.meets(accuracy):
            raise _refusal(search, weight_only, candidates, accuracy)
        speed = search.speed(model)
        result = Quantized(
            folder=target,
            runtime=to,
            rest=rest,
            weight_only=weight_only,
            layers=search.layers,
            accuracy=accuracy,
            num_images=len(held_out),
            num_calibration=len(ranges),
            bytes_before=exported.num_bytes,
            bytes_after=sum((folder / name).stat().st_size for name in files),
            speed=speed,
            candidates=candidates,
        )
        _write_card(folder, artefact, result, files, precision, size, None)
        # its logits are not those of the model: neither are its temperature and its prediction sets
        opened = _opened(folder)
        own = replace(artefact, trust=_calibrated(opened, held_out))
        calibrated = Predictor(replace(opened.card, trust=own.trust), runtime=opened.runtime)
        verification = _verified(artefact, calibrated, held_out, any_accuracy=max_drop is None)
        _write_card(folder, own, result, files, precision, size, verification)
        write_text(folder / QUANTIZATION_FILE, json.dumps(result.to_dict(), indent=2) + "\n")
        copy_run_files(run, folder)
    return result


def _check_options(
    to: str,
    rest: Rest,
    calibration: int | None,
    num_images: int | None,
    max_drop: float | None,
    weight_only: bool,
    batch_size: int,
) -> None:
    """Refuse what can be known before images are read. Raises ConfigError."""
    if to not in get_args(QuantizeRuntime):
        raise ConfigError(f"quantize to {to!r}: expected {', '.join(get_args(QuantizeRuntime))}")
    if rest not in get_args(Rest):
        raise ConfigError(f"rest {rest!r}: expected {', '.join(get_args(Rest))}")
    if batch_size < 1 or (num_images is not None and num_images < 1):
        raise ConfigError("batch_size and num_images: expected at least 1")
    if max_drop is not None and not max_drop >= 0:  # nan is neither
        raise ConfigError(f"max_drop {max_drop}: expected points of top-1, 0 or more")
    if weight_only and calibration is not None:
        raise ConfigError("calibration: storing only the weights in 8 bits needs no photos for ranges; leave it out")
    if to == "onnx":
        from cmtvision.deploy.quantizing.quantize_onnx import check_onnx

        check_onnx(rest)
    else:
        from cmtvision.deploy.quantizing.quantize_openvino import check_openvino

        check_openvino(rest)


def _backend(to: QuantizeRuntime, start: Path, rest: Rest) -> Backend:
    if to == "onnx":
        from cmtvision.deploy.quantizing.quantize_onnx import OnnxQuantizer

        return OnnxQuantizer(start, rest)
    from cmtvision.deploy.quantizing.quantize_openvino import OpenVinoQuantizer

    return OpenVinoQuantizer(start, rest)


def _refusal(
    search: Search, weight_only: bool, candidates: list[Candidate], saved: Accuracy | None = None
) -> BudgetError:
    measured = [one.accuracy for one in candidates if one.accuracy is not None]
    best = saved or min(measured, key=lambda one: one.drop, default=None)
    loss = "" if best is None else f" the least loss was {best.drop:.2f} points ({best.after} of {best.before} right);"
    if weight_only:
        what = f"weights in 8 bits are not within {search.max_drop:g} points of top-1"
        advice = "give --max-drop, or export it in fp16 or bf16"
    else:
        share = f"with {MIN_WEIGHTS:.0%} of its weights in 8 bits"
        what = f"no 8-bit network within {search.max_drop:g} points of top-1 {share}"
        advice = "give --max-drop, more --calibration photos, or --weight-only"
    message = f"quantise: {what};{loss} {advice}"
    return BudgetError(message, search.layers, candidates)


def _opened(folder: Path) -> Predictor:
    """What was written, opened as any export is. Raises ExportError where it cannot be."""
    try:
        return load(folder, "cpu")
    except CheckpointError as error:
        reason = str(error).replace(f"{folder}/", "")
        raise ExportError(f"the 8-bit export cannot be opened: {reason}; nothing was kept") from error


def _calibrated(opened: Predictor, held_out: Photos, seed: int = 0) -> TrustBlock | None:
    """A calibration of the 8-bit network's own logits; None for several labels per image.

    Raises:
        ExportError: it does not compute.
    """
    if opened.task == "multi-label":
        return None
    count = num_to_fit(len(held_out), len(opened.classes))
    some = held_out if count == len(held_out) else held_out.some(count, seed)
    try:
        logits = some.logits(lambda batch: opened.forward(torch.from_numpy(batch)).numpy())
    except CmtvisionError:
        raise
    except Exception as error:  # each runtime has kinds of its own
        raise ExportError(f"the 8-bit export fails: {one_line(error)}; nothing was kept") from error
    if not np.isfinite(logits).all():
        return None
    targets = np.array([label for (label,) in some.labels])
    return fit_block(logits, targets, arithmetic=opened.runtime.arithmetic)


def _verified(artefact: Artefact, opened: Predictor, held_out: Photos, any_accuracy: bool) -> Verification:
    """Compare what was written with the model on some images.

    The share on which both decide alike is only recorded: the budget decides the permitted loss on all images.

    Raises:
        ExportError: it does not take every batch, or its logits are far from the model's, unless any accuracy is
            accepted.
    """
    images = held_out.images(_VERIFIED)
    found = verify_classifiers(Predictor(artefact, "cpu"), opened, images, batches=BATCHES, num_images=len(images))
    far = found.relative > (math.inf if any_accuracy else found.tolerance)
    if far or not math.isfinite(found.max_difference):
        raise ExportError(f"the 8-bit export differs from the model: {'; '.join(found.reasons)}; nothing was kept")
    return found


def _write_card(
    folder: Path,
    artefact: Artefact,
    result: Quantized,
    files: list[str],
    precision: str,
    size: tuple[int, int],
    verification: Verification | None,
) -> None:
    """The card's figures are those of the 8-bit network; the original model's are in them under "fp32"."""
    accuracy, total = result.accuracy, result.accuracy.num_decisions
    measured = {
        "num_images": result.num_images,
        "top1_before": accuracy.before / total,
        "top1": accuracy.after / total,
        "drop": accuracy.drop,
        "lost": accuracy.lost,
        "gained": accuracy.gained,
    }
    metrics: dict[str, Any] = {"num_images": result.num_images}
    if artefact.task == "single-label":
        metrics |= {"top1_correct": accuracy.after, "top1": accuracy.after / total}
    metrics |= {"quantized": measured, "fp32": artefact.metrics}
    kept = [layer.name for layer in result.layers if not layer.int8]
    block = {
        "runtime": result.runtime,
        "file": files[0],
        "files": files,
        "precision": precision,
        "opset": DEFAULT_OPSET if result.runtime == "onnx" else None,
        "img_size": list(size),
        "preprocess_inside": False,
        "compiled": False,
        "verification": {
            **({} if verification is None else verification.to_dict()),
            "accuracy": measured,
            "rest": result.rest,
            "kept": kept,
        },
    }
    write_export_card(folder, replace(artefact, metrics=metrics), block)
