"""The order of images: it depends only on (seed, epoch), can resume anywhere, and is divided among processes.

Images in shards (``groups``) come in an order that keeps reading local: the shards are permuted, their sequence is cut
into one piece per process, and within a piece the images of ``window`` shards at a time are mixed.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from cmtvision.errors import CheckpointError, ConfigError

Indices: TypeAlias = npt.NDArray[np.int64]
_REPEATED_UNIT = 256


class EpochSampler:
    """Indices of one epoch, resumable in the middle; for ``DataLoader(sampler=...)``.

    Args:
        num_samples: size of the data set.
        seed: with the epoch it decides the order.
        shuffle: without it the order is 0, 1, 2, ...
        rank, num_replicas: this process and how many share the epoch. Each gets the same number of indices; a
            remainder is filled up from the epoch's beginning, so this is for training, not for exact evaluation.
        repeats: repeated augmentation (Hoffer et al., 'Augment your batch'; DeiT): each image of the permutation comes
            this many times in a row, process r takes every num_replicas-th, and the epoch ends after
            num_samples // 256 * 256 // num_replicas indices (num_samples // num_replicas below 256 images).
        weights: one for each image; num_samples images are drawn with replacement, each with a chance in proportion to
            its weight. See ``balanced_weights``.
        groups: the shard number of each image, to keep reading local; see the module's docstring.
        window: shards whose images are mixed.
        uneven: every image exactly once over all processes, whose lengths then differ by one at most.

    Yields:
        index + repetition * num_samples; the repetition counts how often the image came before in the epoch, where
        ``repeats`` or ``weights`` let it come again. ``ImageDataset`` changes each repetition differently.

    Raises:
        ConfigError: fewer images than processes, or settings that contradict each other.
    """

    def __init__(
        self,
        num_samples: int,
        seed: int = 0,
        *,
        shuffle: bool = True,
        rank: int = 0,
        num_replicas: int = 1,
        repeats: int = 1,
        weights: Sequence[float] | npt.NDArray[Any] | None = None,
        groups: Sequence[int] | npt.NDArray[Any] | None = None,
        window: int = 8,
        uneven: bool = False,
    ) -> None:
        if num_samples < 1 or not 0 <= rank < num_replicas:
            raise ConfigError(f"sampler: {num_samples} samples, rank {rank} of {num_replicas}; expected at least one")
        if num_samples < num_replicas and not uneven:
            raise ConfigError(f"sampler: {num_samples} photos for {num_replicas} processes; start fewer processes")
        if repeats < 1 or window < 1:
            raise ConfigError(f"sampler: repeats {repeats}, window {window}; expected at least 1")
        if uneven and (repeats > 1 or weights is not None):
            raise ConfigError("sampler: uneven gives each photo exactly once; repeats and weights contradict that")
        if not shuffle and (repeats > 1 or weights is not None or groups is not None):
            raise ConfigError("sampler: repeats, weights and groups need shuffle=True, or nothing would read them")
        self.num_samples = num_samples
        self.seed = seed
        self.shuffle = shuffle
        self.rank = rank
        self.num_replicas = num_replicas
        self.repeats = repeats
        self.window = window
        self.uneven = uneven
        self._cumulative = None if weights is None else _cumulative(weights, num_samples)
        self._groups = None if groups is None else _group_numbers(groups, num_samples)
        self.epoch = 0
        self._offset = 0  # where the next iteration starts
        self._position = 0  # what has been handed out of the current epoch

    def __len__(self) -> int:
        """Indices of a whole epoch of this process, whether or not it starts in the middle."""
        if self.uneven:
            return self.num_samples // self.num_replicas + (self.rank < self.num_samples % self.num_replicas)
        if self.repeats > 1:
            whole = self.num_samples // _REPEATED_UNIT * _REPEATED_UNIT or self.num_samples
            return whole // self.num_replicas
        return math.ceil(self.num_samples / self.num_replicas)

    @property
    def without_fill(self) -> int:
        """Indices of a whole epoch before filling up, equal in every process: what training uses."""
        return min(len(self), self.num_samples // self.num_replicas)

    @property
    def remaining(self) -> int:
        """Number of indices that the next iteration will give."""
        return max(0, len(self) - self._offset)

    def order(self, epoch: int) -> Indices:
        """All indices of this process in the given epoch, (len,) int64."""
        if not self.shuffle:
            return self._strided(np.arange(self.num_samples))
        generator = np.random.Generator(np.random.PCG64([self.seed, epoch]))
        if self._cumulative is None:
            order = generator.permutation(self.num_samples)
        else:
            order = np.searchsorted(self._cumulative, generator.random(self.num_samples), side="right")
        if self.repeats > 1:
            if self._groups is not None:
                order = self._mixed(*self._by_shard(order, generator), generator)
            order = np.repeat(order, self.repeats)
            return self._strided(_with_repetitions(order, self.num_samples))[: len(self)]
        if self._cumulative is not None:
            order = _with_repetitions(order, self.num_samples)
        if self._groups is None:
            return self._strided(order)
        order, places = self._by_shard(order, generator)
        return self._mixed(self._piece(order), self._piece(places), generator)

    def __iter__(self) -> Iterator[int]:
        # An iteration that starts in the middle does so once: the next one of the same epoch is whole again.
        start, self._offset = self._offset, 0
        self._position = start
        for index in self.order(self.epoch)[start:].tolist():
            self._position += 1
            yield index

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch. A new one starts at its beginning; naming the current one keeps the restored position."""
        if epoch != self.epoch:
            self.epoch = epoch
            self._offset = self._position = 0

    def state_dict(self, consumed: int | None = None) -> dict[str, int]:
        """The position in the epoch; the same in every process that has got as far.

        Args:
            consumed: indices of this epoch that training has used. Give it when a loader reads ahead: the sampler
                itself only knows what it has handed out, and that is the default.
        """
        return {
            "epoch": self.epoch,
            "offset": self._position if consumed is None else consumed,
            "seed": self.seed,
            "num_samples": self.num_samples,
            "num_replicas": self.num_replicas,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where ``state_dict`` stood; after a finished epoch, with the next.

        Raises:
            CheckpointError: the state has another data set size, seed or number of processes.
        """
        for key in ("num_samples", "seed"):
            if state[key] != getattr(self, key):
                raise CheckpointError(
                    f"resume: the saved run had {key}={state[key]}, this one has {getattr(self, key)}; "
                    "resume with the same data and seed"
                )
        before = state.get("num_replicas", 1)  # checkpoints of one process did not always name it
        if before != self.num_replicas:
            raise CheckpointError(
                f"resume: the saved run had {before} process{'' if before == 1 else 'es'}, this one has "
                f"{self.num_replicas}; start as many as before"
            )
        # The same number in every process, so that all of them go on in the same epoch.
        longest = math.ceil(self.num_samples / self.num_replicas) if self.uneven else len(self)
        finished = state["offset"] >= longest
        self.epoch = state["epoch"] + finished
        self._offset = self._position = 0 if finished else state["offset"]

    def _strided(self, order: Indices) -> Indices:
        """Every num_replicas-th of the epoch's order, filled up from its beginning unless the lengths may differ."""
        if not self.uneven:
            order = np.resize(order, math.ceil(len(order) / self.num_replicas) * self.num_replicas)
        return order[self.rank :: self.num_replicas]

    def _piece(self, row: Indices) -> Indices:
        """This process's part of a row that is cut into one piece for each; filled up as above."""
        if self.uneven:
            return np.array_split(row, self.num_replicas)[self.rank]
        length = len(self)
        return np.resize(row, length * self.num_replicas)[self.rank * length : (self.rank + 1) * length]

    def _by_shard(self, order: Indices, generator: np.random.Generator) -> tuple[Indices, Indices]:
        """The order with the shards in a random sequence, and for each index its shard's position in that sequence."""
        assert self._groups is not None
        places = generator.permutation(int(self._groups.max()) + 1)[self._groups[order % self.num_samples]]
        row = np.argsort(places, kind="stable")
        return order[row], places[row]

    def _mixed(self, order: Indices, places: Indices, generator: np.random.Generator) -> Indices:
        """A random order within each ``window`` shards of a sequence of shards."""
        shuffled = generator.permutation(len(order))
        block = np.unique(places, return_inverse=True)[1] // self.window
        return order[shuffled[np.argsort(block[shuffled], kind="stable")]]


def balanced_weights(labels: Sequence[int]) -> list[float]:
    """For each image 1 / the number of images of its class, so that every class is drawn equally often."""
    counts = Counter(labels)
    return [1.0 / counts[label] for label in labels]


def _with_repetitions(order: Indices, num_samples: int) -> Indices:
    """Each index + how often it came before * num_samples."""
    by_index = np.argsort(order, kind="stable")
    in_turn = order[by_index]
    first = np.searchsorted(in_turn, in_turn, side="left")
    before = np.empty_like(order)
    before[by_index] = np.arange(len(order)) - first
    return order + before * num_samples


def _cumulative(weights: Sequence[float] | npt.NDArray[Any], num_samples: int) -> npt.NDArray[np.float64]:
    values = np.asarray(weights, dtype=np.float64)
    if values.shape != (num_samples,) or not np.isfinite(values).all() or (values < 0).any() or not values.any():
        raise ConfigError(f"sampler: expected {num_samples} weights, none negative and not all zero")
    total = np.cumsum(values)
    return np.asarray(total / total[-1])


def _group_numbers(groups: Sequence[int] | npt.NDArray[Any], num_samples: int) -> Indices:
    values = np.asarray(groups)
    if values.shape != (num_samples,):
        raise ConfigError(f"sampler: got {values.size} group numbers for {num_samples} photos")
    return np.unique(values, return_inverse=True)[1].astype(np.int64)
