"""What exports leave in a run folder, and how they go when the run is replaced: an export is of the model before."""

from contextlib import suppress
from pathlib import Path

from cmtvision.artefact.card import CARD_FILE, Card, read_card
from cmtvision.artefact.run_files import RECIPE_FILE, RUN_FILE, SPLIT_FILE
from cmtvision.errors import CheckpointError

EXPORTS_FOLDER = "exports"
QUANTIZATION_FILE = "quantization.json"
RUN_FILES = (RECIPE_FILE, RUN_FILE, SPLIT_FILE)
BUNDLE_SCRIPT, BUNDLE_PACKAGE = "predict.py", "cmtvision_preprocess"
BUNDLE_FILES = (BUNDLE_SCRIPT, "requirements.txt", "README.md")
PYTHON_CACHE = "__pycache__"  # Python leaves it beside a bundle's sources when they run


def clear_exports(run: Path) -> None:
    """Delete the exports in a run folder; whatever else somebody put there, or beside their files, stays.

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
        card = Card.from_dict(read_card(folder), folder / CARD_FILE)
    except CheckpointError:
        return
    if card.export is None:
        return
    names = [QUANTIZATION_FILE, *RUN_FILES, *card.export.sha256]
    package = folder / BUNDLE_PACKAGE
    if (folder / BUNDLE_SCRIPT).is_file() and package.is_dir() and not package.is_symlink():
        names += BUNDLE_FILES
        _clear_sources(package, "*.py")
        _clear_sources(folder / PYTHON_CACHE, "*.pyc")
    for name in [*names, CARD_FILE]:  # the card last: what is cut off here is found again
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def _clear_sources(folder: Path, pattern: str) -> None:
    if folder.is_symlink() or not folder.is_dir():
        return
    _clear_sources(folder / PYTHON_CACHE, "*.pyc")
    for file in folder.glob(pattern):
        file.unlink()
    with suppress(OSError):
        folder.rmdir()
