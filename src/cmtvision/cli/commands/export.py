"""``cmtvision export``: write a model for another runtime, verified before it is kept."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from cmtvision.deploy import Exported

_PRECISION_HELP = (
    "fp32: as trained. fp16: half the size; GPUs, and in OpenVINO and torch CPUs that can, compute in fp16. "
    "bf16: OpenVINO and torch compute in bf16; ONNX stores the weights in bf16 and computes in fp32."
)


def export(  # typer reads options from the signature
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of a trained model.")],
    to: Annotated[Literal["onnx", "openvino", "torch"], typer.Option("--to", help="Which runtime to write for.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FOLDER", help="Folder to write [RUN/exports/...]; holds one each of many sizes."
        ),
    ] = None,
    img_size: Annotated[
        list[str] | None,
        typer.Option("--img-size", metavar="N|HxW", help="Pixels [the model's]; may be repeated, an export each."),
    ] = None,
    precision: Annotated[Literal["fp32", "fp16", "bf16"], typer.Option("--precision", help=_PRECISION_HELP)] = "fp32",
    opset: Annotated[int | None, typer.Option("--opset", help="Opset of ONNX, 18 to 25 [18].")] = None,
    preprocess_inside: Annotated[
        bool,
        typer.Option(
            "--preprocess-inside",
            help="Take uint8 pixels after resize and crop (which only Pillow does as in training); scale and "
            "normalisation are in the graph.",
        ),
    ] = False,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Native code for this machine (torch; needs a C++ compiler, minutes).")
    ] = False,
    bundle: Annotated[
        bool, typer.Option("--bundle", help="A folder that predicts with numpy, pillow, onnxruntime alone (onnx).")
    ] = False,
    images: Annotated[
        list[Path] | None,
        typer.Option("--images", metavar="PATH", help="Images or folders to verify on [the run's held-out images]."),
    ] = None,
    num_images: Annotated[int, typer.Option("--num-images", min=1, help="How many images to verify on.")] = 64,
    tolerance: Annotated[
        float | None,
        typer.Option("--tolerance", help="Largest relative difference of logits [1e-4 fp32, 1e-2 fp16, 5e-2 bf16]."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing export.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Export a trained model and verify it: kept only if it agrees with the model on real images.

    Exit code 1 and nothing written if it does not.
    """
    from cmtvision.cli import output

    sizes = [_size(word) for word in img_size or []]
    _check(to, precision, bundle=bundle, preprocess_inside=preprocess_inside)
    options: dict[str, Any] = {
        "precision": precision,
        "opset": opset,
        "preprocess_inside": preprocess_inside,
        "compiled": compiled,
        "images": images,
        "num_images": num_images,
        "tolerance": tolerance,
        "overwrite": overwrite,
    }
    done = []
    each: list[tuple[int, int] | None] = [*dict.fromkeys(sizes)] or [None]
    for size in each:
        target = _target(run, out, to, precision, size, several=len(sizes) > 1, bundle=bundle)
        with output.progress(f"verifying {to}") as progress:
            done.append(_export(run, to, target, bundle, {**options, "img_size": size, "progress": progress}))
        if not json:
            _show(done[-1], bundle)
    if json:
        output.result_json([one.to_dict() for one in done])


def _size(word: str) -> tuple[int, int]:
    from cmtvision.errors import ConfigError

    height, times, width = word.lower().partition("x")
    if not height.isdecimal() or (times and not width.isdecimal()):
        raise ConfigError(f"--img-size {word!r}: expected pixels such as 224, or height x width such as 192x256")
    return int(height), int(width or height)


def _check(to: str, precision: str, *, bundle: bool, preprocess_inside: bool) -> None:
    from cmtvision.errors import ConfigError

    if bundle and to != "onnx":
        raise ConfigError(f"--bundle: runs on onnxruntime, and --to is {to}; use --to onnx")
    if bundle and precision == "bf16":
        raise ConfigError("--bundle: of fp32 or fp16; choose --precision fp16 for small files")
    if bundle and preprocess_inside:
        raise ConfigError("--bundle: brings its own preprocessing; leave out --preprocess-inside")


def _target(
    run: Path, out: Path | None, to: Any, precision: Any, size: tuple[int, int] | None, *, several: bool, bundle: bool
) -> Path | None:
    """Where to write; None for the default place of an export."""
    if out is not None and not several:
        return out
    if out is None and not bundle:
        return None
    from cmtvision.artefact.card import Card, model_folder
    from cmtvision.deploy.exporting.export import default_folder

    folder = model_folder(run)
    if size is None:
        size = Card.read(folder).preprocess.size
    named = default_folder(folder, "bundle" if bundle else to, precision, size)  # type: ignore[arg-type]
    return named if out is None else out / named.name


def _export(run: Path, to: Any, target: Path | None, bundle: bool, options: dict[str, Any]) -> "Exported":
    from cmtvision import deploy

    if not bundle:
        return deploy.export(run, to, target, **options)
    assert target is not None
    return deploy.export_bundle(run, target, **options)


def _show(done: "Exported", bundle: bool) -> None:
    from cmtvision.cli import output

    export = done.card.export
    assert export is not None
    height, width = export.img_size
    kind = " ".join(
        [export.runtime, export.precision, f"{height}x{width}"]
        + ([f"opset {export.opset}"] if export.opset else [])
        + (["pixels in"] if export.preprocess_inside else [])
        + (["compiled"] if export.compiled else [])
    )
    output.result(f"{done.folder}: {'bundle, ' if bundle else ''}{kind}, {done.num_bytes / 1e6:,.1f} MB")
    output.result(f"verified on {done.verification.headline()}")
    if done.card.trust is None and done.card.task == "single-label":
        output.note(f"its probabilities are not calibrated; run: cmtvision calibrate {done.folder} DATA")
    if bundle:
        output.note(f"next: python {done.folder}/predict.py photo.jpg")
    else:
        output.note(f"next: {done.card.command} predict {done.folder} PHOTO..., cmtvision bench {done.folder}")
