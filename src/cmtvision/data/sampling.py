"""The order in which photos are seen: a permutation that depends on (seed, epoch) alone and can stop anywhere."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from cmtvision.errors import CheckpointError, ConfigError


class EpochSampler:
    """Indices of one epoch, resumable in the middle; for ``DataLoader(sampler=...)``.

    Args:
        num_samples: size of the data set.
        seed: with the epoch it decides the order.
        shuffle: without it the order is 0, 1, 2, ...
        rank, num_replicas: this process and how many share the epoch. Each gets the same number of indices; what does
            not divide is filled up from the epoch's beginning, so this is for training, not for exact evaluation.
    """

    def __init__(
        self, num_samples: int, seed: int = 0, *, shuffle: bool = True, rank: int = 0, num_replicas: int = 1
    ) -> None:
        if num_samples < 1 or not 0 <= rank < num_replicas:
            raise ConfigError(f"sampler: {num_samples} samples, rank {rank} of {num_replicas}; expected at least one")
        self.num_samples = num_samples
        self.seed = seed
        self.shuffle = shuffle
        self.rank = rank
        self.num_replicas = num_replicas
        self.epoch = 0
        self._offset = 0  # where the next iteration starts
        self._position = 0  # what has been handed out of the current epoch

    def __len__(self) -> int:
        """Indices of a whole epoch of this process, whether or not it starts in the middle."""
        return math.ceil(self.num_samples / self.num_replicas)

    @property
    def remaining(self) -> int:
        """Indices that the next iteration will give."""
        return len(self) - self._offset

    def order(self, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """All indices of this process in the given epoch, (len,) int64."""
        if self.shuffle:
            indices = np.random.Generator(np.random.PCG64([self.seed, epoch])).permutation(self.num_samples)
        else:
            indices = np.arange(self.num_samples)
        return np.resize(indices, len(self) * self.num_replicas)[self.rank :: self.num_replicas]

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
        """Where the epoch stands.

        Args:
            consumed: indices of this epoch that training has used. Give it when a loader reads ahead: the sampler
                itself only knows what it has handed out, and that is the default.
        """
        offset = self._position if consumed is None else consumed
        return {"epoch": self.epoch, "offset": offset, "seed": self.seed, "num_samples": self.num_samples}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where ``state_dict`` stood; a finished epoch goes on with the next.

        Raises:
            CheckpointError: the state is of another data set size or seed.
        """
        for key in ("num_samples", "seed"):
            if state[key] != getattr(self, key):
                raise CheckpointError(
                    f"resume: the saved run had {key}={state[key]}, this one has {getattr(self, key)}; "
                    "resume with the same data and seed"
                )
        finished = state["offset"] >= len(self)
        self.epoch = state["epoch"] + finished
        self._offset = self._position = 0 if finished else state["offset"]
