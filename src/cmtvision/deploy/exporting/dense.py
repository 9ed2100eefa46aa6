"""A detector or segmenter as an ONNX graph of one size, kept only if it agrees with the network on real images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cmtvision.artefact import Artefact
from cmtvision.artefact.dense import DetectionPredictor, SegmentationPredictor
from cmtvision.artefact.dense_graphs import OF_DETECTOR
from cmtvision.data import ImageSource
from cmtvision.data.whole_image import WholeImage
from cmtvision.deploy.exporting.detector_form import DetectorForm, traceable_choice
from cmtvision.deploy.exporting.network import EXAMPLE_BATCH, explicit_attention
from cmtvision.deploy.exporting.onnx_file import write_onnx
from cmtvision.deploy.verifying_dense import DenseVerification, verify_dense
from cmtvision.errors import ConfigError, ExportError
from cmtvision.models.detectors import Detector

STRIDE = 32  # of the coarsest map: an image's sides are multiples of it


def check_dense_options(artefact: Artefact, to: str, precision: str, *, pixels: bool, compiled: bool) -> None:
    """Raise ConfigError for what only an export of a classifier can be."""
    wrong = {"--to": to != "onnx", "--precision": precision != "fp32", "--preprocess-inside": pixels}
    for name in [name for name, is_wrong in {**wrong, "--compiled": compiled}.items() if is_wrong]:
        raise ConfigError(f"{name}: a model for {artefact.task} is exported to ONNX in fp32; leave it out")


def size_for(artefact: Artefact, images: Sequence[ImageSource]) -> tuple[int, int]:
    """The smallest size of multiples of 32 px that every one of the images fits into, prepared as usual."""
    inputs = WholeImage(artefact.preprocess, *artefact.sides)
    prepared = [inputs.resized(picture.height, picture.width) for picture in map(inputs.opened, images)]
    height, width = (-(-max(sides) // STRIDE) * STRIDE for sides in zip(*prepared, strict=True))
    return height, width


def check_dense_size(size: tuple[int, int]) -> None:
    """Raise ConfigError for a size that the network would pad."""
    if size[0] % STRIDE or size[1] % STRIDE:
        raise ConfigError(f"image size {size[0]}x{size[1]}: of a detector or segmenter, expected multiples of {STRIDE}")


def write_dense(
    artefact: Artefact, folder: Path, size: tuple[int, int], opset: int | None, metadata: dict[str, str]
) -> list[str]:
    """Write the graph into a folder, and give the names of its files.

    Raises:
        ExportError: the network cannot be traced.
    """
    model: Any = artefact.model.cpu().float().eval()
    channels = artefact.preprocess.channels
    if not isinstance(model, Detector):
        explicit_attention(model)
        return write_onnx(model, torch.zeros(EXAMPLE_BATCH, channels, *size), folder, opset, metadata=metadata)
    form = DetectorForm(model).eval()
    explicit_attention(form)
    outputs = OF_DETECTOR if form.has_masks else OF_DETECTOR[:3]
    # noise: of an empty image nothing might be found, and a branch of the network be taken for the only one
    example = torch.randn(1, channels, *size, generator=torch.Generator().manual_seed(0))
    with traceable_choice(size), torch.no_grad():
        return write_onnx(form, example, folder, opset, metadata=metadata, outputs=outputs)


def verified_dense(
    artefact: Artefact, folder: Path, images: Sequence[ImageSource], tolerance: float | None, progress: Any
) -> DenseVerification:
    """Compare what was written with the model, as it will be opened. Raises ExportError where they differ."""
    kind = DetectionPredictor if artefact.task == "detection" else SegmentationPredictor
    network = kind(artefact.card, artefact.model.eval())
    opened = kind.open(folder, "cpu")
    found = verify_dense(
        network, opened, images, tolerance=tolerance, num_images=max(1, len(images)), progress=progress
    )
    if not found.passed:
        fault = "differs from the model" if found.num_compared else "is not verified"
        raise ExportError(f"the export {fault}: {'; '.join(found.reasons)}; nothing was kept")
    return found
