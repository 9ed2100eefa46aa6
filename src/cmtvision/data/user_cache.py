"""The folder where downloads and indices are kept: cmtvision in the user's cache folder."""

from pathlib import Path

from cmtvision.errors import DataError
from cmtvision.user_folders import user_cache_folder


def cache_folder(*parts: str) -> Path:
    """A folder in it, made if it is not there; XDG_CACHE_HOME moves the whole.

    Where there is no home folder, or none that may be written to, it is among the temporary files.

    Raises:
        DataError: it cannot be made.
    """
    folder = Path("cmtvision", *parts)
    try:
        folder = user_cache_folder() / folder
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(
            f"{folder}: cannot be made ({reason}); set XDG_CACHE_HOME to a folder to keep data in"
        ) from None
    return folder
