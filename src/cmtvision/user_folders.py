"""Where a user's files are: home and cache folder, also if there is none.

A container that runs as a bare number (``docker run -u 12345``) has no entry in passwd, often no HOME, and may not
write to what it has. Downloads and indices are then kept in a folder of its own among the temporary files.
"""

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path


def home_folder() -> Path | None:
    """The user's home folder; None where neither HOME nor passwd names one."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def user_cache_folder() -> Path:
    """The user's cache folder, which need not be there yet: XDG_CACHE_HOME, else .cache at home, else a temporary one.

    Raises:
        OSError: there is no place for temporary files either.
    """
    chosen = os.environ.get("XDG_CACHE_HOME")
    if chosen:
        return Path(chosen)
    folder = home_folder()
    if folder is not None:
        nearest = next(
            (one for one in (folder / ".cache" / "cmtvision", folder / ".cache", folder) if one.exists()), None
        )
        if nearest is not None and os.access(nearest, os.W_OK):
            return folder / ".cache"
    return temporary_folder()


def temporary_folder() -> Path:
    """This user's own folder among the temporary files, the same one each time unless another user made it.

    Raises:
        OSError: there is no place for temporary files.
    """
    user = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(tempfile.gettempdir()) / f"cmtvision-{user}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if stat.S_ISDIR(folder.lstat().st_mode) and only_ours(folder):
        return folder
    return Path(tempfile.mkdtemp(prefix=f"cmtvision-{user}-"))  # whoever made that one could change what we keep in it


def only_ours(path: Path) -> bool:
    """Whether a file or folder itself, not what a link leads to, is this user's and writable by nobody else.

    Raises:
        OSError: it is not there.
    """
    found = path.lstat()
    user = os.getuid() if hasattr(os, "getuid") else found.st_uid
    others = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return not stat.S_ISLNK(found.st_mode) and found.st_uid == user and not others


def find_home() -> None:
    """Set HOME where there is no home folder, since libraries ask for it; for the process of a command."""
    if home_folder() is None:
        with suppress(OSError):
            os.environ["HOME"] = str(temporary_folder())
