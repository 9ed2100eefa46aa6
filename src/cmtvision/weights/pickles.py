"""What a pickle would call, found by reading its instructions without executing any.

PyTorch's restricted unpickler already refuses anything but weights; this finds the name to put in the message,
whatever the protocol of the pickle.
"""

import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

MAX_BYTES = 64_000_000  # of instructions read; tensors lie outside them
_STRINGS = {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING"}
# what torch.save itself needs to put tensors back together
_HARMLESS = re.compile(
    r"torch\._utils\._rebuild_\w+|torch\.(\w+Storage|Size|device|\w*(float|int|bool)\w*)|torch\.nn\.parameter\.Parameter"
    r"|collections\.OrderedDict|argparse\.Namespace|_codecs\.encode"
)


def suspicious_names(path: Path) -> list[str]:
    """The callables that reading a checkpoint as an ordinary pickle would run, beyond those of PyTorch's own files.

    Args:
        path: a file of torch.save, old or new, or a bare pickle.

    Returns:
        Dotted names in the order of the file; empty where there are none, or if it is not a pickle.
    """
    try:
        if not zipfile.is_zipfile(path):
            with path.open("rb") as file:
                return _suspicious(file)
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(".pkl")]
            return [found for name in names for found in _suspicious(archive.open(name))]
    except (OSError, zipfile.BadZipFile, RuntimeError):
        return []


def _suspicious(file: IO[bytes]) -> list[str]:
    return [name for name in _globals(file) if not _HARMLESS.fullmatch(name)]


def _globals(file: IO[bytes]) -> Iterator[str]:
    """Every name that the pickles in a file look up, one pickle after another (old torch files hold several)."""
    while file.tell() < MAX_BYTES:
        recent: list[str] = []
        memo: dict[int, str] = {}
        try:
            for opcode, argument, _ in pickletools.genops(file):
                if opcode.name in _STRINGS:
                    recent.append(str(argument))
                elif opcode.name == "MEMOIZE":
                    memo[len(memo)] = recent[-1] if recent else ""
                elif opcode.name in ("BINPUT", "LONG_BINPUT", "PUT"):
                    memo[int(argument or 0)] = recent[-1] if recent else ""
                elif opcode.name in ("BINGET", "LONG_BINGET", "GET"):
                    recent.append(memo.get(int(argument or 0), ""))
                elif opcode.name in ("GLOBAL", "INST"):
                    yield str(argument).replace(" ", ".")
                elif opcode.name == "STACK_GLOBAL":
                    yield ".".join(recent[-2:])
        except Exception:  # no pickle from here on: tensors of an old file, a torn end, other bytes
            return
