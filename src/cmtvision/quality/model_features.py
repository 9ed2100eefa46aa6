"""Embeddings by a trained network: what its classifier sees, the pooled features."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cmtvision.artefact import load
from cmtvision.data import PhotoPath
from cmtvision.errors import CheckpointError

_BATCH = 64


class ModelFeatures:
    """A run's network without its classifier.

    Args:
        run: a run folder or artefact of PyTorch.
        device: 'auto', 'cpu', 'cuda' or 'mps'.

    Raises:
        CheckpointError: it cannot be opened, or its network does not give pooled features.
    """

    def __init__(self, run: str, device: str = "auto") -> None:
        self.predictor = load(run, device)
        self.network: Any = self.predictor.artefact.model
        if not hasattr(self.network, "forward_features") or not hasattr(self.network, "forward_head"):
            raise CheckpointError(f"{run}: its network gives no pooled features; leave --model out")

    def __call__(
        self, paths: Sequence[PhotoPath], progress: Callable[[int, int], None] | None = None
    ) -> npt.NDArray[np.float16]:
        """Embeddings (N, D) of images that can be read.

        Args:
            paths: the images.
            progress: called as progress(done, total).

        Raises:
            DataError: an image is gone or has changed.
        """
        found = []
        for start in range(0, len(paths), _BATCH):
            batch = np.stack([self.predictor.preprocess(path) for path in paths[start : start + _BATCH]])
            images = torch.from_numpy(batch).to(self.predictor.device, memory_format=torch.channels_last)
            with torch.inference_mode():
                pooled = self.network.forward_head(self.network.forward_features(images), pre_logits=True)
            found.append(pooled.flatten(1).float().cpu().numpy().astype(np.float16))
            if progress is not None:
                progress(min(start + _BATCH, len(paths)), len(paths))
        return np.concatenate(found)
