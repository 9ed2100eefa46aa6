"""The input of a graph that has scale, normalisation and layout in it: pixels as they are after resize and crop."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from cmtvision.data import Preprocess


@dataclass(frozen=True)
class PixelInput(Preprocess):
    """A preprocess contract that stops at the pixels: (H, W, C) uint8, a gray image's plane repeated C times."""

    @classmethod
    def of(cls, preprocess: Preprocess) -> "PixelInput":
        """The same contract, stopped at the pixels."""
        return cls(**{field.name: getattr(preprocess, field.name) for field in fields(preprocess)})

    def finish(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        """Pixels (H, W, C or 1) as (H, W, C) uint8."""
        return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], self.channels)))
