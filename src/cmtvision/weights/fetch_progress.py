"""Download progress: a bar with rate and time left on a terminal, elsewhere plain lines of our logger."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Show = Callable[[int, int | None], None]
SECONDS_BETWEEN_LINES = 10.0
_log = logging.getLogger(__name__)


@contextmanager
def shown_progress(url: str, name: str) -> Iterator[Show]:
    """A callback(bytes downloaded, total bytes or None) for a download.

    Args:
        url: the address of the download.
        name: the label of the bar.
    """
    if not sys.stderr.isatty():
        yield _lines(url, name)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"downloading {name}", total=None)
        yield lambda have, total: bar.update(task, completed=have, total=total)


def _lines(url: str, name: str) -> Show:
    started = last = 0.0
    first = 0

    def show(have: int, total: int | None) -> None:
        nonlocal started, last, first
        now = time.monotonic()
        if not started:
            started = last = now
            first = have
            begun = f", {_size(have)} are here" if have else ""
            _log.info("downloading %s%s%s", url, f" ({_size(total)})" if total else "", begun)
        elif now - last >= SECONDS_BETWEEN_LINES:
            last = now
            rate = max((have - first) / (now - started), 1.0)
            of, left = (f" of {_size(total)}", f", {(total - have) / rate:.0f} s left") if total else ("", "")
            _log.info("downloading %s: %s%s, %s/s%s", name, _size(have), of, _size(rate), left)

    return show


def _size(count: float) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e5 else f"{count / 1e3:,.1f} kB"
