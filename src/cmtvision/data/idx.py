"""The idx format of MNIST and its successors: a short header, then bytes; here gzipped and of known sizes.

Header: two zero bytes, type (8 is unsigned byte), number of axes, then axis lengths as big-endian 32-bit integers.
"""

import gzip
import math
import struct
import zlib
from importlib.resources.abc import Traversable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cmtvision.errors import DataError


def read_idx(file: Path | Traversable, expected_shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Read a gzipped idx file of unsigned bytes.

    Args:
        file: the .gz file.
        expected_shape: the required shape; nothing beyond its size is ever decompressed.

    Raises:
        DataError: missing, damaged, or of another shape.
    """
    header_size = 4 + 4 * len(expected_shape)
    size = math.prod(expected_shape)
    try:
        with file.open("rb") as raw, gzip.open(raw) as unpacked:
            data = unpacked.read(header_size + size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file}: cannot be read as a gzipped idx file ({error})") from None
    expected_header = struct.pack(f">BBBB{len(expected_shape)}I", 0, 0, 8, len(expected_shape), *expected_shape)
    if data[:header_size] != expected_header or len(data) != header_size + size:
        raise DataError(f"{file}: not an idx file of unsigned bytes of shape {expected_shape}; fetch it again")
    return np.frombuffer(data, dtype=np.uint8, offset=header_size).reshape(expected_shape)
