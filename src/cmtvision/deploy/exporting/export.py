"""A trained model as files of a runtime, kept only if they agree with the model on real images.

The export is written and verified in a temporary folder next to its destination and then renamed, so a failed export
leaves nothing behind. It carries the card of the model, and the run's recipe, data record and split, so that it is
evaluated on the images that the run held out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch

from cmtvision.artefact import Artefact, Card, Predictor, load, write_export_card
from cmtvision.artefact.card import DENSE, RuntimeName
from cmtvision.artefact.files import versions
from cmtvision.artefact.run.names import EXPORTS_FOLDER
from cmtvision.artefact.runtimes.onnx import import_onnxruntime
from cmtvision.data import ImageSource
from cmtvision.deploy.exporting.dense import (
    check_dense_options,
    check_dense_size,
    size_for,
    verified_dense,
    write_dense,
)
from cmtvision.deploy.exporting.network import Precision, network_to_export
from cmtvision.deploy.exporting.onnx_file import check_opset, require_onnx, write_onnx
from cmtvision.deploy.exporting.openvino_file import require_openvino, write_openvino
from cmtvision.deploy.exporting.subject import as_size, open_subject, resized, size_name
from cmtvision.deploy.exporting.torch_file import require_compiler, write_torch
from cmtvision.deploy.new_folder import copy_run_files, new_folder, refuse_existing
from cmtvision.deploy.sample_images import DEFAULT_NUM_IMAGES, choose, find_images, of_the_run
from cmtvision.deploy.verifying import BATCHES, Verification, check_tolerance, verify_classifiers
from cmtvision.deploy.verifying_dense import DenseVerification
from cmtvision.errors import CheckpointError, ConfigError, ExportError
from cmtvision.machine import instruction_sets

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Exported:
    """An export that passed.

    Attributes:
        folder: holds model.json and the files of the runtime.
        card: what model.json says.
        verification: what was measured against the model.
    """

    folder: Path
    card: Card
    verification: Verification | DenseVerification

    @property
    def num_bytes(self) -> int:
        """Bytes of the runtime's files."""
        assert self.card.export is not None
        return sum((self.folder / name).stat().st_size for name in self.card.export.sha256)

    def to_dict(self) -> dict[str, Any]:
        """What was written, ready for JSON."""
        return {"folder": str(self.folder), "bytes": self.num_bytes, **self.card.to_dict()}


def default_folder(
    run: str | Path, to: RuntimeName, precision: Precision, size: tuple[int, int], preprocess_inside: bool = False
) -> Path:
    """Where an export goes by default: RUN/exports/<runtime>-<precision>-<size>."""
    inside = "-pixels" if preprocess_inside else ""
    return Path(run) / EXPORTS_FOLDER / f"{to}-{precision}-{size_name(size)}{inside}"


def export(
    source: str | Path | Artefact,
    to: RuntimeName,
    out: str | Path | None = None,
    *,
    img_size: int | tuple[int, int] | None = None,
    precision: Precision = "fp32",
    opset: int | None = None,
    preprocess_inside: bool = False,
    compiled: bool = False,
    images: Sequence[ImageSource] | str | Path | None = None,
    num_images: int = DEFAULT_NUM_IMAGES,
    tolerance: float | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Write a trained model for a runtime, verified on real images before it is kept.

    Args:
        source: a run folder, an artefact's folder, or an artefact.
        to: 'onnx', 'openvino' or 'torch' (a .pt2 of torch.export).
        out: folder to write; by default RUN/exports/<runtime>-<precision>-<size>.
        img_size: side in pixels, or (height, width); by default the model's, of a detector or segmenter the smallest
            that every image it is verified on fits into. Position biases are resampled once.
        precision: 'fp32', 'fp16' or 'bf16'; its meaning for each runtime is described in that runtime's module here.
        opset: of ONNX, 18 by default.
        preprocess_inside: take uint8 pixels (B, H, W, C) after resize and crop, with scale, normalisation and layout in
            the graph.
        compiled: native code for this machine (AOTInductor), of 'torch' only; takes a minute or more.
        images: images, files or folders of them to verify on; by default the images that the run held out.
        num_images: the most to compare; a larger set is sampled, the same images each time.
        tolerance: largest difference of logits relative to max(1, largest logit); by default that of the precision.
        overwrite: replace an existing export.
        progress: called as progress(done, total) while the export is verified.

    Raises:
        ConfigError: an invalid option, a missing package, a folder in the way, no images to verify on.
        CheckpointError: a model that cannot be opened, files that cannot be written.
        ExportError: the network cannot be exported, or the export differs from the model. Nothing is kept.
    """
    _check_options(to, precision, opset, compiled)
    check_tolerance(tolerance)
    artefact, run = open_subject(source)
    if out is None and run is None:
        raise ConfigError("an artefact without a folder: say where to write (out)")
    dense = artefact.task in DENSE
    if dense:
        check_dense_options(artefact, to, precision, pixels=preprocess_inside, compiled=compiled)
        chosen = _images(images, run, num_images)
        size = as_size(img_size, (0, 0)) if img_size is not None else size_for(artefact, chosen)
        check_dense_size(size)
    else:
        size = as_size(img_size, artefact.preprocess.size)
    target = Path(out) if out is not None else default_folder(run or "", to, precision, size, preprocess_inside)
    refuse_existing(target, overwrite)
    if not dense:
        chosen = _images(images, run, num_images, multi_label=artefact.task == "multi-label")
        artefact = resized(artefact, size)
    with new_folder(target, overwrite) as folder:
        if dense:
            files = write_dense(artefact, folder, size, opset, _metadata(artefact, precision))
        else:
            network, example = network_to_export(artefact.model, to, artefact.preprocess, precision, preprocess_inside)
            files = _write_files(network, example, folder, to, precision, opset, compiled, artefact)
        block: dict[str, Any] = {
            "runtime": to,
            "file": files[0],
            "files": files,
            "precision": precision,
            "opset": check_opset(opset) if to == "onnx" else None,
            "img_size": list(size),
            "preprocess_inside": preprocess_inside,
            "compiled": compiled,
            "instructions": instruction_sets() if compiled else [],
            "verification": None,
        }
        write_export_card(folder, artefact, block)
        found = _verified(artefact, folder, chosen, tolerance, progress)
        write_export_card(folder, artefact, {**block, "verification": found.to_dict()})
        copy_run_files(run, folder)
    return Exported(target, Card.read(target), found)


def _check_options(to: str, precision: str, opset: int | None, compiled: bool) -> None:
    for name, value, known in (("runtime", to, RuntimeName), ("precision", precision, Precision)):
        if value not in get_args(known):
            raise ConfigError(f"export {name} {value!r}: expected {', '.join(get_args(known))}")
    if opset is not None and to != "onnx":
        raise ConfigError(f"opset: a setting of ONNX, and this export is for {to}; leave it out")
    if compiled and to != "torch":
        raise ConfigError(f"compiled: native code of PyTorch, and this export is for {to}; leave it out")
    if to == "onnx":
        require_onnx()
        import_onnxruntime("an export to ONNX")  # it is opened there to be verified
        check_opset(opset)
    elif to == "openvino":
        require_openvino()
    elif compiled:
        require_compiler()


def _images(
    images: Sequence[ImageSource] | str | Path | None, run: Path | None, count: int, multi_label: bool = False
) -> list[ImageSource]:
    if images is not None:
        return choose(find_images(images), count)
    found = of_the_run(run, count, multi_label=multi_label) if run is not None else None
    if found is None:
        where = f"{run}: does not say which photos" if run is not None else "an artefact does not say which photos"
        raise ConfigError(f"{where} were held out, and an export is verified on real images; name some with --images")
    return found


def _write_files(
    network: torch.nn.Module,
    example: torch.Tensor,
    folder: Path,
    to: RuntimeName,
    precision: Precision,
    opset: int | None,
    compiled: bool,
    artefact: Artefact,
) -> list[str]:
    """Write the runtime's files into a folder. Returns their names, the one to open first."""
    metadata = _metadata(artefact, precision)
    if to == "onnx":
        return write_onnx(network, example, folder, opset, stored_bf16=precision == "bf16", metadata=metadata)
    if to == "openvino":
        return write_openvino(network, example, folder, precision, metadata)
    return write_torch(network, example, folder, compiled)


def _metadata(artefact: Artefact, precision: str) -> dict[str, str]:
    return {
        "architecture": artefact.architecture,
        "precision": precision,
        "cmtvision": str(versions()["cmtvision"]),
        "torch": torch.__version__,
    }


def _verified(
    artefact: Artefact, folder: Path, images: list[ImageSource], tolerance: float | None, progress: Progress | None
) -> Verification | DenseVerification:
    """Compare what was written with the model, as it will be opened. Raises ExportError where they differ."""
    if artefact.task in DENSE:
        return verified_dense(artefact, folder, images, tolerance, progress)
    try:
        opened = load(folder, "cpu")
    except CheckpointError as error:
        reason = str(error).replace(f"{folder}/", "")
        raise ExportError(f"the export cannot be opened: {reason}; nothing was kept") from error
    found = verify_classifiers(
        Predictor(artefact, "cpu"),
        opened,
        images,
        batches=BATCHES,
        num_images=len(images),
        tolerance=tolerance,
        progress=progress,
    )
    if not found.passed:
        raise ExportError(f"the export differs from the model: {'; '.join(found.reasons)}; nothing was kept")
    return found
