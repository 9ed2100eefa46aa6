"""How unlike the held-out images an image is: the energy of its logits, and its distance in the space of features.

    energy(x)   = -log sum_c exp(logit_c)                       Liu et al., Energy-based out-of-distribution detection,
                                                                NeurIPS 2020; higher is less familiar
    distance(x) = |z - z_(k)|,  z = features / |features|       Sun et al., Out-of-distribution detection with deep
                                                                nearest neighbors, ICML 2022

with z_(k) the k-th nearest of the held-out images' features, which are what the classifier is given (after pooling).

An image's familiarity is the share of held-out images that are at least as strange: by distance where the features are
at hand, by energy where a model gives logits alone. At most 5% of images like the held-out ones come out as unfamiliar;
nothing is promised the other way: a strange image may look familiar.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

NEIGHBOURS = 5
UNFAMILIAR = 0.05
"""An image is unfamiliar where its familiarity is no more than this."""
_CHUNK = 1 << 22  # numbers of a matrix of distances at a time


def energy(logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """(B,) of logits (B, C)."""
    given = np.asarray(logits, np.float64)
    highest = given.max(axis=1)
    return np.asarray(-highest - np.log(np.exp(given - highest[:, None]).sum(axis=1)))


def of_unit_length(features: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Features (N, D) divided by their length; a vector of zeros stays one."""
    given = np.asarray(features, np.float32)
    return np.asarray(given / np.maximum(np.linalg.norm(given, axis=1, keepdims=True), 1e-12))


def neighbour_distance(
    features: npt.NDArray[Any], bank: npt.NDArray[Any], neighbours: int, *, own: bool = False
) -> npt.NDArray[np.float64]:
    """(B,) the distance to the k-th nearest vector of a bank.

    Args:
        features: (B, D) of unit length.
        bank: (M, D) of unit length.
        neighbours: k, at most M, or M - 1 with ``own``.
        own: the features are those of the bank, and each leaves itself out.
    """
    known = np.asarray(bank, np.float32)
    found = []
    step = max(1, _CHUNK // len(known))
    for start in range(0, len(features), step):
        given = np.asarray(features[start : start + step], np.float32)
        squares = 2 - 2 * given @ known.T  # (b, M)
        if own:
            squares[np.arange(len(given)), np.arange(start, start + len(given))] = np.inf
        nearest = np.partition(squares, neighbours - 1, axis=1)[:, neighbours - 1]
        found.append(np.sqrt(np.maximum(nearest, 0)))
    return np.concatenate(found).astype(np.float64) if found else np.zeros(0)
