"""familiarity.safetensors beside a run's card: features of held-out images, to compare those of a new image with.

Apart from the card, since 2,000 images of 1,280 features are 5 MB. At most 16 MB.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open

from cmtvision.artefact.card import Card, sha256_of
from cmtvision.errors import CheckpointError
from cmtvision.trust.block import Distance
from cmtvision.trust.fit import Bank
from cmtvision.weights import write_safetensors

FEATURES_FILE = "familiarity.safetensors"
_MAX_BYTES = 32_000_000


def write_features(folder: Path, bank: Bank) -> Distance:
    """Write the file, whole or not at all, and return what the card says of it. Raises CheckpointError."""
    write_safetensors({"features": torch.from_numpy(bank.features)}, folder / FEATURES_FILE, {})
    return Distance(bank.reference, bank.neighbours, sha256_of(folder / FEATURES_FILE))


def read_features(folder: Path, card: Card) -> npt.NDArray[np.float32] | None:
    """Features (M, D) of unit length; None where the card has none, or the file was left behind.

    Raises:
        CheckpointError: a file that is torn or of another calibration.
    """
    path = folder / FEATURES_FILE
    if card.trust is None or card.trust.distance is None or card.export is not None or not path.is_file():
        return None
    advice = "remove it, or calibrate the model again (cmtvision calibrate RUN DATA --overwrite)"
    if path.stat().st_size > _MAX_BYTES or sha256_of(path) != card.trust.distance.sha256:
        raise CheckpointError(f"{path}: not the file that model.json describes (another SHA-256); {advice}")
    try:
        with safe_open(path, framework="numpy") as file:
            found = np.asarray(file.get_tensor("features"), np.float32)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); {advice}") from error
    if found.ndim != 2 or len(found) <= card.trust.distance.neighbours or not np.isfinite(found).all():
        raise CheckpointError(f"{path}: no features of images in it; {advice}")
    return found
