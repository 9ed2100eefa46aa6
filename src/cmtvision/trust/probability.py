"""Logits as probabilities: softmax(logits / T), in float64, the same in a run, an export and a bundle."""

from typing import Any

import numpy as np
import numpy.typing as npt


def probabilities(logits: npt.NDArray[Any], temperature: float = 1.0) -> npt.NDArray[np.float64]:
    """(B, C) of logits (B, C), whose order they keep: a temperature is positive."""
    scaled = np.asarray(logits, np.float64) / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    np.exp(scaled, out=scaled)
    scaled /= scaled.sum(axis=1, keepdims=True)
    return np.asarray(scaled)
