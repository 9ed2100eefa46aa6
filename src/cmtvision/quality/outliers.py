"""Images unlike their class: those whose nearest images of the same class are unusually far away.

An image's distance is the mean cosine distance to its 5 nearest neighbours of its class, copies of itself apart. It is
unusual where it exceeds the class's median by more than 6 times the median absolute deviation (times 1.48, which makes
it a standard deviation where distances are normal).
"""

import numpy as np
import numpy.typing as npt
import torch

LEAST_PER_CLASS = 20
_NEIGHBOURS = 5
_UNUSUAL = 6.0
_BLOCK = 1024
_SAMPLE = 4_000  # images that the reduction is fitted on


def reduced(features: npt.NDArray[np.float16], width: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Embeddings (N, D) standardised and reduced to (N, width) by PCA of a sample, each of length 1."""
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(features))[:_SAMPLE]
    sample = features[order].astype(np.float32)
    mean = sample.mean(axis=0)
    scale = sample.std(axis=0)
    scale += 1e-3 * scale.mean() + 1e-6
    with torch.random.fork_rng(devices=[]):  # the randomised decomposition draws from the global generator
        torch.manual_seed(seed)
        _, _, axes = torch.svd_lowrank(torch.from_numpy((sample - mean) / scale), q=min(width, *sample.shape), niter=2)
    out = np.empty((len(features), axes.shape[1]), dtype=np.float32)
    for start in range(0, len(features), _BLOCK):
        block = ((features[start : start + _BLOCK].astype(np.float32) - mean) / scale) @ axes.numpy()
        out[start : start + _BLOCK] = block / (np.linalg.norm(block, axis=1, keepdims=True) + 1e-9)
    return out


def unlike_their_class(
    embeddings: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], groups: npt.NDArray[np.int64]
) -> list[tuple[int, float]]:
    """Positions of the images unlike their class with their distance in deviations, the most unusual first.

    Args:
        embeddings: (N, D), each of length 1.
        labels: class numbers (N,).
        groups: (N,); images with the same number are copies of each other.
    """
    found: list[tuple[int, float]] = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < LEAST_PER_CLASS:
            continue
        own = embeddings[members]
        far = np.empty(len(members), dtype=np.float32)
        for start in range(0, len(members), _BLOCK):
            block = slice(start, start + _BLOCK)
            alike = own[block] @ own.T  # (block, members)
            alike[groups[members[block]][:, None] == groups[members][None]] = -1.0
            far[block] = 1.0 - np.partition(alike, -_NEIGHBOURS, axis=1)[:, -_NEIGHBOURS:].mean(axis=1)
        middle = float(np.median(far))
        deviation = 1.48 * float(np.median(np.abs(far - middle))) + 1e-6
        found += [
            (int(members[place]), float((far[place] - middle) / deviation))
            for place in np.flatnonzero(far > middle + _UNUSUAL * deviation)
        ]
    return sorted(found, key=lambda one: -one[1])
