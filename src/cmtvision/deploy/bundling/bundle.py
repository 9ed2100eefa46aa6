"""A folder that predicts with numpy, pillow and onnxruntime alone: no torch, no cmtvision.

Its preprocessing consists of the source files that training and evaluation use (errors, photos, decode, preprocess),
and its calibrated answers of those that serve them (trust/), copied unchanged into a package of its own: the pixels
that the model sees are the same bit for bit, and its prediction sets by the same arithmetic.
"""

import html
import shutil
from dataclasses import replace
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cmtvision.artefact import Artefact
from cmtvision.artefact.card import CARD_FILE, Card
from cmtvision.artefact.run.exports import BUNDLE_FILES, BUNDLE_FOLDERS, BUNDLE_PACKAGE, BUNDLE_SOURCES
from cmtvision.artefact.runtimes.onnx import import_onnxruntime
from cmtvision.deploy.exporting.export import Exported, export
from cmtvision.deploy.exporting.subject import open_subject
from cmtvision.deploy.new_folder import new_folder
from cmtvision.errors import ConfigError

PACKAGE = BUNDLE_PACKAGE
SCRIPT_FILE, REQUIREMENTS_FILE, README_FILE = BUNDLE_FILES
_FEW_CLASSES = 20


def write_bundle(export_folder: str | Path, out: str | Path, overwrite: bool = False) -> Path:
    """Write a bundle: predict.py, the ONNX model with its card, the preprocessing, requirements.txt and README.md.

    Args:
        export_folder: an export for ONNX.
        out: the folder to write; it appears whole or not at all.
        overwrite: replace an existing bundle or export.

    Returns:
        The folder.

    Raises:
        ConfigError: an export for another runtime, or a folder in the way.
        CheckpointError: no export there, one that is torn, or files that cannot be written.
    """
    out = Path(out)
    card = _checked(Path(export_folder))
    with new_folder(out, overwrite) as folder:
        _fill(folder, Path(export_folder), card)
    return out


def export_bundle(
    source: str | Path | Artefact, out: str | Path, *, overwrite: bool = False, **options: Any
) -> Exported:
    """Export a trained model for ONNX, verified, and keep it as a bundle only.

    Args:
        source: a run folder, an artefact's folder, or an artefact.
        out: the folder to write; it appears whole or not at all.
        overwrite: replace an existing bundle or export.
        options: of ``export``.

    Raises:
        As ``export`` and ``write_bundle`` do.
    """
    out = Path(out)
    open_subject(source)[0].card.check_classifier(source)
    with new_folder(out, overwrite) as folder:
        exported = export(source, "onnx", folder / "export", **options)
        _fill(folder, exported.folder, _checked(exported.folder))
        shutil.rmtree(exported.folder)
    return replace(exported, folder=out)


def _checked(source: Path) -> Card:
    """The card of an export that can be bundled. Raises as ``write_bundle`` does."""
    card = Card.read(source)
    card.check_classifier(source)
    if card.export is None or card.export.runtime != "onnx":
        found = "a PyTorch model" if card.export is None else f"an export for {card.export.runtime}"
        raise ConfigError(f"{source}: {found}; a bundle is made of an export for onnx (cmtvision export --to onnx)")
    import_onnxruntime("a bundle")
    card.export.check_files(source)
    return card


def _fill(folder: Path, source: Path, card: Card) -> None:
    assert card.export is not None
    for name in (CARD_FILE, *card.export.sha256):
        shutil.copyfile(source / name, folder / name)
    root = Path(str(resources.files("cmtvision")))
    shutil.copyfile(root / "deploy" / "bundling" / "bundle_files" / SCRIPT_FILE, folder / SCRIPT_FILE)
    told = f'"""Preprocessing and calibration of cmtvision {version("cmtvision")} (Apache-2.0), unchanged."""\n'
    for place in ("", *BUNDLE_FOLDERS):
        (folder / PACKAGE / place).mkdir(exist_ok=True)
        (folder / PACKAGE / place / "__init__.py").write_text(told, encoding="utf-8")
    for name in BUNDLE_SOURCES:
        shutil.copyfile(root / name, folder / PACKAGE / name)
    (folder / REQUIREMENTS_FILE).write_text("\n".join(requirements()) + "\n", encoding="utf-8")
    (folder / README_FILE).write_text(_readme(card), encoding="utf-8")


def requirements() -> list[str]:
    """The three packages, from the versions that are tested here up to the next that may change the arithmetic."""
    numpy, pillow = version("numpy"), version("pillow")
    # the module's own word: the package may be onnxruntime-gpu; without what a build puts after its version
    runtime = str(import_onnxruntime("a bundle").__version__).partition("+")[0]
    major = int(pillow.partition(".")[0])
    return [
        f"numpy>=2.0,<{int(numpy.partition('.')[0]) + 1}",
        f"pillow>={major}.0,<{major + 1}",
        f"onnxruntime>={runtime},<2",
    ]


def _readme(card: Card) -> str:
    assert card.export is not None
    height, width = card.export.img_size
    kind = "grayscale" if card.preprocess.channels == 1 else f"{card.preprocess.channels} channels"
    shown = ", ".join(card.classes[:_FEW_CLASSES])
    more = f" and {len(card.classes) - _FEW_CLASSES} more (model.json)" if len(card.classes) > _FEW_CLASSES else ""
    facts = {
        "network": card.architecture,
        "task": "any number of labels an image" if card.task == "multi-label" else "one label an image",
        "classes": f"{len(card.classes)}: {shown}{more}",
        "input": f"{height} x {width} px, {kind}",
        "arithmetic": card.export.precision,
        "accuracy": _accuracy(card),
        "probabilities": _calibrated(card),
        "verified": _verified(card.export.verification),
        "made with": f"cmtvision {card.provenance.get('exported', {}).get('cmtvision', version('cmtvision'))}",
    }
    rows = "\n".join(f"| {name} | {_cell(value)} |" for name, value in facts.items() if value)
    return f"""# An image classifier

Needs Python 3.11 or newer and three packages; neither PyTorch nor cmtvision.

```
pip install -r requirements.txt
python predict.py photo.jpg --top 3
python predict.py *.jpg --json
```

From Python, with this folder on the path (`sys.path` or `PYTHONPATH`):

```python
from predict import Predictor

predictor = Predictor()
print(predictor.predict(["photo.jpg"])[0].label)
```

Images are paths, bytes of a file, open files, PIL images or arrays (H, W, C), one or a list of them. An image that
cannot be read is named in one line; the command goes on with the others and exits with 2.

| | |
|---|---|
{rows}

`model.json` holds everything that is known of the model, the SHA-256 of its file included; it is checked each time the
model is opened. `{PACKAGE}/` is the preprocessing that the model was trained and evaluated with, and the arithmetic of
its calibrated answers.
"""


def _accuracy(card: Card) -> str:
    """The accuracy of the network in the bundle: as measured by quantisation if there was one, else by its run."""
    for measured in (card.metrics.get("quantized"), card.metrics):
        found = measured if isinstance(measured, dict) else {}
        top1, count = found.get("top1"), found.get("num_images")
        if isinstance(top1, float) and isinstance(count, int):
            each = "the labels of " if card.task == "multi-label" else ""
            return f"{top1:.2%} of {each}{count:,} held-out photos"
    return ""


def _calibrated(card: Card) -> str:
    if card.trust is None:
        return ""
    return (
        f"calibrated on {card.trust.num_images:,} held-out images (temperature {card.trust.temperature:.3g}); "
        "`--conformal 0.9` names sets of classes, `--abstain` says where the model is unsure"
    )


def _verified(found: dict[str, Any] | None) -> str:
    if not found or "max_difference" not in found or "num_images" not in found:
        return ""
    return f"logits within {found['max_difference']:.1e} of the trained model's on {found['num_images']} images"


def _cell(text: str) -> str:
    return " ".join(html.escape(text, quote=False).replace("|", "\\|").split())
