"""PNG without compression, so that a file's bytes depend on its pixels alone.

What a compressor makes of the same pixels differs between zlib and its successors, and with it the sizes of files, the
fingerprint of a data set and any checksum that a record states.
"""

import struct
import zlib

import numpy as np
import numpy.typing as npt

MADE_BY = b"cmtvision sample-data"
_BLOCK = 65_535  # bytes that one stored block may hold
_COLOURS, _INDICES = 2, 3  # PNG's colour types
Palette = npt.NDArray[np.uint8]  # (up to 256, 3)


def png_bytes(pixels: npt.NDArray[np.uint8], palette: Palette | None = None) -> bytes:
    """A PNG file of (H, W, 3) colours, or with a palette of (H, W) indices."""
    height, width = pixels.shape[:2]
    kind = _COLOURS if palette is None else _INDICES
    rows = np.zeros((height, 1 + pixels[0].size), dtype=np.uint8)  # each row begins with its filter: none
    rows[:, 1:] = pixels.reshape(height, -1)
    parts = [
        b"\x89PNG\r\n\x1a\n",
        _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)),
        _chunk(b"tEXt", b"Source\0" + MADE_BY),
    ]
    if palette is not None:
        parts.append(_chunk(b"PLTE", palette.tobytes()))
    return b"".join([*parts, _chunk(b"IDAT", _stored(rows.tobytes())), _chunk(b"IEND", b"")])


def _stored(data: bytes) -> bytes:
    """A zlib stream of stored blocks."""
    blocks = [data[start : start + _BLOCK] for start in range(0, len(data), _BLOCK)]
    heads = [
        struct.pack("<BHH", place == len(blocks) - 1, len(block), 0xFFFF - len(block))
        for place, block in enumerate(blocks)
    ]
    body = b"".join(head + block for head, block in zip(heads, blocks, strict=True))
    return b"\x78\x01" + body + struct.pack(">I", zlib.adler32(data))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
