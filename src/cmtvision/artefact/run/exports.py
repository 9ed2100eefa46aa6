"""The exports in a run folder, and their deletion when the run is replaced, since they belong to the previous model."""

from contextlib import suppress
from pathlib import Path

from cmtvision.artefact.card import CARD_FILE, Card
from cmtvision.artefact.run.names import EXPORTS_FOLDER, RECIPE_FILE, RUN_FILE, SPLIT_FILE
from cmtvision.errors import CheckpointError

QUANTIZATION_FILE = "quantization.json"
RUN_FILES = (RECIPE_FILE, RUN_FILE, SPLIT_FILE)
BUNDLE_SCRIPT, BUNDLE_PACKAGE = "predict.py", "cmtvision_preprocess"
BUNDLE_FILES = (BUNDLE_SCRIPT, "requirements.txt", "README.md")
BUNDLE_FOLDERS = ("data", "trust")
BUNDLE_SOURCES = (
    "errors.py",
    *(f"data/{name}.py" for name in ("photos", "decode", "preprocess")),
    *(f"trust/{name}.py" for name in ("answers", "block", "conformal", "familiarity", "order", "probability")),
)
"""Modules of ours that a bundle's package holds, by the same names."""
PYTHON_CACHE = "__pycache__"  # Python leaves it beside a bundle's sources when they run


def clear_exports(run: Path) -> None:
    """Delete the exports in a run folder; other files there, or next to the exports' files, are kept.

    Raises:
        OSError: a file that cannot be deleted.
    """
    exports = run / EXPORTS_FOLDER
    if exports.is_symlink() or not exports.is_dir():
        return
    for folder in sorted(exports.iterdir()):
        if not folder.is_symlink() and folder.is_dir():
            _clear(folder)
    with suppress(OSError):  # something of somebody else's is in it
        exports.rmdir()


def _clear(folder: Path) -> None:
    try:
        card = Card.read(folder)
    except CheckpointError:
        return
    if card.export is None:
        return
    names = [QUANTIZATION_FILE, *RUN_FILES, *card.export.sha256]
    package = folder / BUNDLE_PACKAGE
    if (folder / BUNDLE_SCRIPT).is_file() and package.is_dir() and not package.is_symlink():
        names += [*BUNDLE_FILES, *(f"{BUNDLE_PACKAGE}/{name}" for name in bundle_sources())]
        for place in (folder, package, *(package / name for name in BUNDLE_FOLDERS)):
            _clear_cache(place / PYTHON_CACHE)
    for name in [*names, CARD_FILE]:  # the card last: what is cut off here is found again
        (folder / name).unlink(missing_ok=True)
    for place in (*(package / name for name in BUNDLE_FOLDERS), package, folder):
        with suppress(OSError):
            place.rmdir()


def bundle_sources() -> list[str]:
    """Files of a bundle's package, those of earlier versions, which had no folder in it, included."""
    inits = ["__init__.py", *(f"{name}/__init__.py" for name in BUNDLE_FOLDERS)]
    return [*inits, *BUNDLE_SOURCES, *(name.removeprefix("data/") for name in BUNDLE_SOURCES if "data/" in name)]


def _clear_cache(folder: Path) -> None:
    if folder.is_symlink() or not folder.is_dir():
        return
    for file in folder.glob("*.pyc"):
        file.unlink()
    with suppress(OSError):
        folder.rmdir()
