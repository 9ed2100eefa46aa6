"""Which floating-point tensors of an 8-bit file may be stored as float16, and which would lose precision."""

from typing import Any

import numpy as np
import numpy.typing as npt

_RELATIVE = 1e-3  # of a value: float16 keeps 5e-4 of those above 6e-5, and ever less of smaller ones
_OF_LARGEST = 1e-5  # of a weight's largest: what a value that small may be off by


def fits_float16(values: npt.NDArray[Any]) -> bool:
    """Whether a tensor is the same in float16 for all that it is used for.

    Each value must be within 1e-3 of itself. In a weight, a value that is negligible relative to the largest may be
    further off; in a vector (a scale for each channel, a norm's factors) none may: each one multiplies a channel of its
    own, and a scale of 6e-8 would become 0 or half as large again.
    """
    values = np.asarray(values, dtype=np.float32)
    largest = float(np.abs(values).max(initial=0.0))
    if not largest <= float(np.finfo(np.float16).max):
        return False
    is_vector = values.size == max(values.shape, default=1)
    slack = 0.0 if is_vector else _OF_LARGEST * largest
    lost = np.abs(values.astype(np.float16).astype(np.float32) - values)
    return bool((lost <= _RELATIVE * np.abs(values) + slack).all())
