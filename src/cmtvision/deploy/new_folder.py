"""A folder that appears whole or not at all: filled under a temporary name next to its destination, then renamed."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cmtvision.artefact.card import CARD_FILE, Card
from cmtvision.artefact.run.exports import (
    BUNDLE_FILES,
    BUNDLE_FOLDERS,
    BUNDLE_PACKAGE,
    BUNDLE_SCRIPT,
    PYTHON_CACHE,
    QUANTIZATION_FILE,
    RUN_FILES,
    bundle_sources,
)
from cmtvision.errors import CheckpointError, ConfigError


def refuse_existing(out: Path, overwrite: bool) -> None:
    """Refuse to write an export over anything else.

    Raises:
        ConfigError: the target is a file, or a non-empty folder without ``overwrite``; or it is not an export or holds
            anything else, and is never replaced, since it may hold images or the run itself.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir():
        raise ConfigError(f"{out}: is a file; name a folder to write")
    if not overwrite:
        raise ConfigError(f"{out}: already exists; choose another --out, or use --overwrite")
    try:
        card = Card.read(out)
    except CheckpointError:
        card = None
    if card is None or card.export is None:
        raise ConfigError(
            f"{out}: holds something other than an export ({CARD_FILE} would say so); choose another --out"
        )
    foreign = _first_foreign(out, {CARD_FILE, QUANTIZATION_FILE, *RUN_FILES, *card.export.sha256})
    if foreign is not None:
        raise ConfigError(f"{out}: besides an export it holds {foreign}; move that away, or choose another --out")


def _first_foreign(out: Path, files: set[str]) -> str | None:
    """The first entry of a folder that was not written by us; None if there is none.

    Args:
        out: the folder of an export or a bundle.
        files: names of an export's files.
    """
    is_bundle = (out / BUNDLE_SCRIPT).is_file() and (out / BUNDLE_PACKAGE).is_dir()
    if is_bundle:
        files |= {*BUNDLE_FILES}
    for entry in sorted(out.iterdir()):
        if is_bundle and entry.name == BUNDLE_PACKAGE and not entry.is_symlink():
            inside = _first_foreign_source(entry)
            if inside is not None:
                return f"{entry.name}/{inside}"
        elif not _is_ours(entry, files, is_bundle):
            return entry.name
    return None


def _first_foreign_source(package: Path) -> str | None:
    sources = set(bundle_sources())
    names = {name for name in sources if "/" not in name}
    for entry in sorted(package.iterdir()):
        if entry.name in BUNDLE_FOLDERS and entry.is_dir() and not entry.is_symlink():
            inner = {name.partition("/")[2] for name in sources if name.startswith(f"{entry.name}/")}
            for one in sorted(entry.iterdir()):
                if not _is_ours(one, inner, True):
                    return f"{entry.name}/{one.name}"
        elif not _is_ours(entry, names, True):
            return entry.name
    return None


def _is_ours(entry: Path, files: set[str], is_bundle: bool) -> bool:
    if is_bundle and entry.name == PYTHON_CACHE and entry.is_dir() and not entry.is_symlink():
        return all(one.suffix == ".pyc" and one.is_file() for one in entry.iterdir())
    return entry.name in files and entry.is_file()


@contextmanager
def new_folder(out: Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder that becomes ``out`` if the block succeeds and is deleted otherwise.

    A link to a folder stays a link; the folder it points to is written.

    Raises:
        ConfigError: the target already exists, see ``refuse_existing``.
        CheckpointError: it cannot be written.
    """
    refuse_existing(out, overwrite)
    temporary: Path | None = None
    try:
        place = out.resolve()
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}."))
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        refuse_existing(out, overwrite)  # exporting takes minutes: somebody else may have written there
        _put(temporary, place)
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(f"{out}: cannot be written: {reason}; free some space or choose --out") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _put(temporary: Path, place: Path) -> None:
    """Rename a folder to its destination. Raises OSError after restoring what was there."""
    if not place.exists():
        temporary.rename(place)
        return
    former = temporary.with_name(f"{temporary.name}.former")
    place.rename(former)
    try:
        temporary.rename(place)
    except OSError:
        former.rename(place)
        raise
    shutil.rmtree(former, ignore_errors=True)  # the new one is in place: what cannot be deleted is no failure of it


def copy_run_files(run: Path | None, folder: Path) -> None:
    """Copy a run's recipe, data record and split, if present: they record which images it held out."""
    for name in RUN_FILES:
        if run is not None and (run / name).is_file():
            shutil.copyfile(run / name, folder / name)
