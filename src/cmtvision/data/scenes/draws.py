"""Random numbers that are the same on every machine and in every version of NumPy.

Only the raw 64 bits of PCG64 are used, whose stream NumPy promises to keep, and integer arithmetic on them; what NumPy
makes of such bits (shuffles, normal numbers) may change with its version.
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import TypeVar

import numpy as np
import numpy.typing as npt

_T = TypeVar("_T")


class Draws:
    """A stream of numbers decided by its key, such as (seed, 'train', 17)."""

    def __init__(self, *key: int | str) -> None:
        digest = blake2b("\0".join(map(str, key)).encode(), digest_size=16).digest()
        self._bits = np.random.PCG64(int.from_bytes(digest, "little"))

    def between(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return low + int(self._bits.random_raw()) % (high - low + 1)

    def chance(self, percent: int) -> bool:
        """True that often."""
        return self.between(1, 100) <= percent

    def one_of(self, choices: Sequence[_T]) -> _T:
        """One of them."""
        return choices[self.between(0, len(choices) - 1)]

    def array(self, low: int, high: int, *shape: int) -> npt.NDArray[np.int64]:
        """Whole numbers from low to high, both included, in an array of that shape."""
        raw = np.asarray(self._bits.random_raw(int(np.prod(shape))), dtype=np.uint64)
        return (raw % np.uint64(high - low + 1)).astype(np.int64).reshape(shape) + low

    def order(self, count: int) -> npt.NDArray[np.int64]:
        """The numbers from 0 to count - 1 in random order."""
        return np.argsort(np.asarray(self._bits.random_raw(count), dtype=np.uint64), kind="stable")
