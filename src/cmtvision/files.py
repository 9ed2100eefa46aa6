"""Atomic writing: files are written under another name and renamed, so that no kill or full disk tears one."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from cmtvision.errors import CheckpointError


def atomic_write(path: Path, write: Callable[[str], object]) -> None:
    """Call write(temporary path) and rename what it wrote to path; on failure nothing is left behind.

    Raises:
        CheckpointError: with the file and the system's reason.
    """
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        write(temporary)
        with open(temporary, "rb") as file:  # noqa: PTH123
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        os.replace(temporary, path)  # noqa: PTH105
    except (OSError, RuntimeError) as error:  # torch.save meets a full disk with a RuntimeError
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise CheckpointError(f"{path}: cannot be written: {reason}; free some space or choose --out") from error
    finally:
        if temporary:
            Path(temporary).unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all; bytes of a file's name that are not UTF-8 are spelled ``\\udcXX``.

    Raises:
        CheckpointError: it cannot be written.
    """
    content = text.encode("utf-8", "backslashreplace")
    atomic_write(path, lambda temporary: Path(temporary).write_bytes(content))
