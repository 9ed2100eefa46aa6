"""Output: results to stdout, everything else to stderr; coloured tables on a terminal, plain text in a pipe."""

import io
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from cmtvision.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

Progress = Callable[[int, int], None]
BEGAN = "cmtvision.began"
"""In a command's context: when it began, of time.perf_counter."""
_SECONDS_BETWEEN_LINES = 10.0


def show_anything() -> None:
    """From now on, characters that stdout and stderr cannot encode are written as \\xe9 or \\udcff instead."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def can_show(text: str) -> bool:
    """Whether both stdout and stderr can encode every character of a text."""
    try:
        for stream in (sys.stdout, sys.stderr):
            text.encode(getattr(stream, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def json_text(value: Any, indent: int | None = None) -> str:
    """A value as JSON that is valid in stdout's encoding: escaped if necessary."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return text if can_show(text) else json.dumps(value, indent=indent)


def note(message: str) -> None:
    """A message for the waiting user, on stderr."""
    print(message, file=sys.stderr, flush=True)  # noqa: T201


def result(text: str) -> None:
    """A line of the result, on stdout."""
    print(text)  # noqa: T201


def result_json(value: Any) -> None:
    """The whole result as one JSON document on stdout."""
    print(json_text(value, indent=2))  # noqa: T201


def stderr_console() -> "Console":
    """A rich console for messages and progress bars."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = (), title: str = "") -> None:
    """Print a table to stdout; ``right`` names the columns to align right. In a pipe it is padded text, never cut."""
    if not sys.stdout.isatty():
        if title:
            result(title)
        widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
        for row in [columns, *rows]:
            cells = [
                cell.rjust(width) if name in right else cell.ljust(width)
                for name, cell, width in zip(columns, row, widths, strict=True)
            ]
            result("  ".join(cells).rstrip())
        return
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    drawn = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left")
    for name in columns:
        drawn.add_column(escape(name), justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*map(escape, row))
    Console(highlight=False).print(drawn)


@contextmanager
def progress(label: str) -> Iterator[Progress]:
    """A callback(done, total) that draws a bar with rate and time left on a terminal, and plain lines in a log."""
    if not sys.stderr.isatty():
        yield _plain_progress(label)
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr_console(), transient=True) as bar:
        task = bar.add_task(label, total=None, rate="")
        started = time.monotonic()

        def show(done: int, total: int) -> None:
            rate = done / max(time.monotonic() - started, 1e-3)
            bar.update(task, completed=done, total=total, rate=_rate(rate))

        yield show


def _plain_progress(label: str) -> Progress:
    started = last = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < _SECONDS_BETWEEN_LINES and done < total:
            return
        if done == total and now - started < 1:  # over before anyone could wonder
            return
        last = now
        rate = done / max(now - started, 1e-3)
        note(f"{label}: {done:,} of {total:,}, {_rate(rate)}, {(total - done) / max(rate, 1e-9):.0f} s left")

    return show


def _rate(per_second: float) -> str:
    return f"{per_second:,.0f}/s" if per_second >= 1 else f"{1 / max(per_second, 1e-9):.0f} s each"


def duration(seconds: float) -> str:
    """Seconds as a user would write them: '41 s', '3 min 05 s', '2 h 10 min'."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def refuse_overwrite(path: Path, overwrite: bool) -> None:
    """Raise ConfigError where a file to write already exists and --overwrite is not given."""
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; name a file to write")
    if path.exists() and not overwrite:
        raise ConfigError(f"{path}: already exists; choose another name, or use --overwrite")


@contextmanager
def new_text_file(path: Path, overwrite: bool) -> Iterator[IO[str]]:
    """Open a text file for writing; it appears under its name only when complete."""
    refuse_overwrite(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8", newline="") as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
