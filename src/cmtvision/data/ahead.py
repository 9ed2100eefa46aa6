"""Images opened ahead of their turn, in threads, while others are computed or a program is still loading."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from cmtvision.data.preprocess import Preprocess
from cmtvision.machine import default_threads

Item = TypeVar("Item")
Done = TypeVar("Done")
_BYTES = 64_000_000
"""Pixels that are kept until their turn."""


def ahead(work: Callable[[Item], Done], items: Iterable[Item], preprocess: Preprocess, batch: int) -> Iterator[Done]:
    """``work`` of each item, in order, begun now.

    Of a list, the next items are worked on while the caller is busy with others. Of an iterator, which may wait for a
    person or a network, one batch is taken, and the next when all of it has been handed out.

    Args:
        work: gives the prepared pixels of an item, in a thread; what it raises is raised when it is the item's turn.
        items: any number.
        preprocess: says how large prepared pixels are, and so how many are kept.
        batch: items that will be computed at a time.
    """
    height, width = preprocess.size
    room = max(1, _BYTES // (height * width * preprocess.channels))
    return _Ahead(work, items, max(room, batch) if isinstance(items, Sized) else batch)


class _Ahead(Iterator[Done]):
    def __init__(self, work: Callable[[Item], Done], items: Iterable[Item], at_once: int) -> None:
        self._work: Callable[[Item], Done] = work
        self._waiting = iter(items)
        self._at_once = at_once
        self._slides = isinstance(items, Sized)
        self._begun: deque[Future[Done]] = deque()
        self._pool = ThreadPoolExecutor(default_threads(), "cmtvision-images")
        if self._slides:
            self._begin()

    def _begin(self) -> None:
        wanted = islice(self._waiting, self._at_once - len(self._begun))
        self._begun.extend(self._pool.submit(self._work, item) for item in wanted)

    def __next__(self) -> Done:
        if self._slides or not self._begun:
            self._begin()
        if not self._begun:
            self._pool.shutdown()
            raise StopIteration
        return self._begun.popleft().result()

    def __del__(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
