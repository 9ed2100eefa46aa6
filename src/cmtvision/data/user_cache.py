"""The folder where downloads and indices are kept: cmtvision in the user's cache folder."""

import os
from pathlib import Path

from cmtvision.errors import DataError


def cache_folder(*parts: str) -> Path:
    """A folder in it, made if it is not there; XDG_CACHE_HOME moves the whole.

    Raises:
        DataError: it cannot be made.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base.joinpath("cmtvision", *parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(
            f"{folder}: cannot be made ({reason}); set XDG_CACHE_HOME to a folder to keep data in"
        ) from None
    return folder
