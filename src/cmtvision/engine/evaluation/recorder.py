"""Keeps the logits and features of some photos while an evaluation goes through all of them."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from cmtvision.artefact import Predictor
from cmtvision.engine.distributed.processes import SINGLE, Processes
from cmtvision.trust.fit import num_to_fit

Keep: TypeAlias = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]


class Recorded(NamedTuple):
    """Of N photos in the order of their indices.

    ``logits`` (N, C) float32, ``targets`` (N,) class numbers, ``features`` (N, D) float32 or None.
    """

    logits: npt.NDArray[np.float32]
    targets: npt.NDArray[np.int64]
    features: npt.NDArray[np.float32] | None


class Recorder:
    """Records a seeded choice of photos, as many as a calibration uses (``num_to_fit``).

    Args:
        predictor: computes the logits.
        num_images: photos that will be seen, by all processes together.
        seed: which of them are kept.
    """

    def __init__(self, predictor: Predictor, num_images: int, seed: int = 0) -> None:
        self._predictor = predictor
        count = num_to_fit(num_images, len(predictor.classes))
        self._wanted = np.zeros(num_images, dtype=bool)
        self._wanted[np.random.default_rng(seed).permutation(num_images)[:count]] = True
        self._features: npt.NDArray[np.float32] | None = None
        self._with_features: bool | None = None  # whether the network gives features, once it was tried
        self._kept: list[tuple[Any, ...]] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (B, C) of a batch, as of the predictor's own ``forward``."""
        if self._with_features is False:
            return self._predictor.forward(images)
        logits, self._features = self._predictor.with_features(images)
        if self._with_features is None:
            # a network may do more in its forward than go from features to head
            plain = self._predictor.forward(images)
            self._with_features = self._features is not None and torch.allclose(logits, plain, rtol=1e-4, atol=1e-4)
            return plain
        return logits

    def keep(self, logits: torch.Tensor, targets: torch.Tensor, indices: torch.Tensor) -> None:
        """Record those of a batch that are wanted."""
        chosen = self._wanted[indices.numpy()]
        rows = [indices.numpy()[chosen], targets.numpy()[chosen], logits.numpy()[chosen]]
        self._kept.append(
            (*rows, self._features[chosen] if self._with_features and self._features is not None else None)
        )

    def gather(self, processes: Processes = SINGLE) -> Recorded:
        """What all processes recorded; each must call it."""
        columns = list(zip(*self._kept, strict=True))
        whole = all(features is not None for features in columns[3])
        own = (*(np.concatenate(column) for column in columns[:3]), np.concatenate(columns[3]) if whole else None)
        indices, targets, logits, features = zip(*processes.gather(own), strict=True)
        order = np.argsort(np.concatenate(indices))
        return Recorded(
            np.concatenate(logits)[order],
            np.concatenate(targets)[order],
            np.concatenate(features)[order] if all(one is not None for one in features) else None,
        )
