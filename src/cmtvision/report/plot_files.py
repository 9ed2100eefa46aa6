"""Figures as files: SVG or PNG by the suffix, whole or not at all, the same bytes for the same figure."""

from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from cmtvision.errors import ConfigError
from cmtvision.files import atomic_write

SUFFIXES = (".svg", ".png")


def check_suffix(path: str | Path) -> None:
    """Refuse a name that is neither SVG nor PNG. Raises ConfigError."""
    if Path(path).suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{path}: a figure is written as {' or '.join(SUFFIXES)}; choose such a name")


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure.

    Raises:
        ConfigError: a suffix other than .svg and .png.
        CheckpointError: it cannot be written.
    """
    check_suffix(path)
    path = Path(path)
    kind = path.suffix.lower()[1:]
    metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": "cmtvision"}

    def write(temporary: str) -> None:
        with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "cmtvision"}):
            figure.savefig(temporary, format=kind, dpi=150, metadata=metadata)

    atomic_write(path, write)
    return path
