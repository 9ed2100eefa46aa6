"""The one-line message of a failed command, and its exit code."""

import errno
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

from cmtvision.cli import launch
from cmtvision.errors import CmtvisionError, ExportError

FAILED = 1  # all was asked for rightly, and the result is not good enough to keep
USAGE = 2
INTERRUPTED = 130
_PATIENCE = 6.0  # seconds until a process among several speaks for itself

_DISK = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is too large",
}
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code != ord("\t")}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}


class CommandInterrupted(Exception):  # noqa: N818
    """Ctrl-C, under a name that typer does not know: it would end the command without a message."""


def interruptible(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose Ctrl-C is handled here; options and help stay its own."""

    @wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        try:
            command(*arguments, **options)
        except KeyboardInterrupt as error:
            raise CommandInterrupted(str(error)) from None

    return run


def _forget_interrupt() -> None:
    """Let this process end with the exit code it returns.

    A Ctrl-C that comes while Python runs source text, as ``dataclass`` does in many an import, leaves a mark in
    CPython: under ``python -m`` the process dies of SIGINT at its end although the interrupt was caught. Running
    another text removes the mark.
    """
    exec("")


def exit_code(error: BaseException, words: Sequence[str]) -> int:
    """Print on stderr what went wrong and return the matching exit code.

    Args:
        error: what ended the command.
        words: the command line, repeated in the advice for a bug of ours.
    """
    if isinstance(error, KeyboardInterrupt | CommandInterrupted) or type(error).__name__ == "Abort":
        # whoever knows what was being done, and what is left of it, has said so in the error
        say(str(error) or "stopped by Ctrl-C before it was done; start again with the same command", prefix="")
        _forget_interrupt()
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if isinstance(error, CmtvisionError):
        return _our_own(error)
    if hasattr(error, "format_message"):  # a usage error of typer, whichever module this version keeps it in
        say(_usage_line(error))
        return int(getattr(error, "exit_code", USAGE))
    if isinstance(error, OSError) and (error.errno in _DISK or error.errno in _REFUSED):
        where = f"{error.filename}: " if error.filename else ""
        if error.errno in _DISK:
            say(f"{where}{_DISK[error.errno]}; free some space or write elsewhere")
        else:
            say(f"{where}{(error.strerror or 'refused').lower()}; choose a place that you may write to")
        return USAGE
    reason = " ".join(str(error).split())
    again = shlex.join(["cmtvision", "--debug", *words])
    say(f"unexpected {type(error).__name__}: {reason[:300]}; run with --debug for the traceback: {again}")
    return 1


def _our_own(error: CmtvisionError) -> int:
    interrupted = type(error).__name__ == "TrainingInterrupted"
    if not launch.is_first():
        if interrupted:
            return INTERRUPTED
        # all processes find the same fault, and the first one says it; where only this one did, nobody ends it
        time.sleep(_PATIENCE)
    say(str(error), prefix="" if interrupted else "error: ")
    return INTERRUPTED if interrupted else FAILED if isinstance(error, ExportError) else USAGE


def say(message: str, prefix: str = "error: ") -> None:
    """Write each line of a message to stderr with a prefix."""
    colour = sys.stderr.isatty() and not os.environ.get("NO_COLOR") and prefix
    shown = f"\033[31m{prefix}\033[0m" if colour else prefix
    for line in message.splitlines() or [""]:
        print(f"{shown}{printable(line)}", file=sys.stderr, flush=True)  # noqa: T201


def printable(text: str) -> str:
    """Text without terminal control sequences, which names of files and classes may contain."""
    return text.translate(_CONTROLS)


def quiet_libraries() -> None:
    """Keep the log messages of libraries off the terminal; --debug shows them."""
    import logging
    import warnings

    warnings.simplefilter("ignore")
    # workers and children of ours start their own interpreter
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    logging.basicConfig(format="%(message)s", level=logging.ERROR, stream=sys.stderr)
    logging.getLogger("cmtvision").setLevel(logging.INFO)
    for name in ("pytorch_lightning", "lightning", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _usage_line(error: BaseException) -> str:
    message = " ".join(error.format_message().split())  # type: ignore[attr-defined]
    message = re.sub(r"[.!]$", "", message).replace(": Value error, ", ": ")
    message = re.sub(r" \(Possible options: (.*)\)$", r"; did you mean \1?", message)
    message = re.sub(r"\. Did you mean", "; did you mean", message)
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "cmtvision"
    end = "" if message.endswith("?") else ";"
    return f"{message[:1].lower()}{message[1:]}{end} see `{command} --help`"
