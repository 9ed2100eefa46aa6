"""The subject of a command: a model's name, or a run folder."""

from pathlib import Path


def is_run(name: str) -> bool:
    """Whether a word means a folder or file on disk rather than a model's name."""
    return "/" in name or "\\" in name or Path(name).is_dir() or name in (".", "..")
