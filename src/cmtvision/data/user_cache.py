"""The folder where downloads and indices are kept: cmtvision in the user's cache folder."""

from pathlib import Path

from cmtvision.errors import DataError
from cmtvision.user_folders import user_cache_folder


def cache_folder(*parts: str) -> Path:
    """A folder in it, created if it does not exist; XDG_CACHE_HOME moves the whole cache.

    Without a writable home folder, it is among the temporary files.

    Raises:
        DataError: it cannot be created.
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
