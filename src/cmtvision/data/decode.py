"""Any image a user has becomes upright 8-bit RGB or gray, or one clear error.

Files are read within limits on bytes and pixels, and only by Pillow's decoders for plain image formats (its EPS reader,
for one, would start another program). What is done to odd images:

- EXIF orientation is applied, so the picture stands as the camera meant it;
- transparency (RGBA, LA, a palette or PNG with a transparent colour) is composited on white;
- 16-bit gray is scaled by 1/257, rounded, not clipped; 32-bit integers must be within 0..65535 and are taken as 16-bit;
- floats must be within 0..1 and are multiplied by 255, rounded;
- one-bit images become gray, palettes, CMYK and the other colour spaces RGB; of an animation the first frame counts.
"""

import io
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from cmtvision.data.photos import StoredPhoto
from cmtvision.errors import DataError

ImageSource = str | os.PathLike[str] | bytes | Image.Image | npt.NDArray[Any] | StoredPhoto
MAX_PIXELS = 89_478_485  # Pillow's own warning limit
MAX_BYTES = 100_000_000
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")


@cache
def _formats() -> tuple[str, ...]:
    """Those of our formats that this build of Pillow can read."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def open_image(
    source: ImageSource, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES, name: str | None = None
) -> Image.Image:
    """Read an image as RGB or L (gray), 8 bits a channel, upright.

    Args:
        source: a path, a file's bytes, a PIL image, or an array (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA of
            bool, uint8, uint16, or float within 0..1; or a photo in a shard or table.
        max_pixels: refuse larger images, before decoding them.
        max_bytes: refuse larger files, before reading them.
        name: what an error calls the image; by default its path.

    Raises:
        DataError: missing, too big, damaged, or not an image; one line with the name.
    """
    if isinstance(source, StoredPhoto):
        source, name = source.read(max_bytes), name or str(source)
    if isinstance(source, Image.Image):
        if type(source) is Image.Image and source.mode in {"RGB", "L"} and not source.info:
            return source  # what this function gives: already decoded, so the limits have nothing left to protect
        return _plain(source, max_pixels, name or "image")
    if isinstance(source, np.ndarray):
        return _plain(_from_array(source, name or "array"), max_pixels, name or "array")
    if isinstance(source, bytes):
        data, name = source, name or "image bytes"
        if len(data) > max_bytes:
            raise DataError(f"{name}: {len(data):,} bytes, more than the limit of {max_bytes:,} (data.max_bytes)")
    else:
        name = name or os.fspath(source)
        data = _file_bytes(Path(source), max_bytes, name)
    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as picture:
            return _plain(picture, max_pixels, name)
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"{name}: not an image, or of a kind that cannot be read ({_kind(data)})") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError(f"{name}: more pixels than the limit of {max_pixels:,} (data.max_pixels)") from None
    except MemoryError:
        raise DataError(f"{name}: not enough memory to decode it") from None
    except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them to
        raise DataError(f"{name}: damaged image ({' '.join(str(error).split()) or type(error).__name__})") from None


def to_uint8(array: npt.NDArray[Any], name: str) -> npt.NDArray[np.uint8]:
    """Pixels of any supported type as 8 bits, same shape; the rules stand in the module's docstring.

    Raises:
        DataError: another type, or values outside its range.
    """
    if array.size == 0:
        raise DataError(f"{name}: an array of shape {array.shape} has no pixels")
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not (low >= 0.0 and high <= 1.0):  # also refuses NaN
            raise DataError(f"{name}: float pixels from {low:g} to {high:g}, expected 0..1; scale them, or pass uint8")
        scaled: npt.NDArray[np.uint8] = np.rint(array * 255).astype(np.uint8)
        return scaled
    if array.dtype.kind in "iu":
        if array.dtype != np.uint16 and (array.min() < 0 or array.max() > 65535):
            raise DataError(f"{name}: {array.dtype} pixels outside 0..65535; pass uint8 or uint16")
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    raise DataError(f"{name}: pixels of type {array.dtype}, expected bool, uint8, uint16 or float within 0..1")


def _file_bytes(path: Path, max_bytes: int, name: str) -> bytes:
    try:
        if not path.is_file():
            raise DataError(f"{name}: {'is not a file' if path.exists() else 'no such file'}")
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if size > max_bytes:
                raise DataError(f"{name}: {size:,} bytes, more than the limit of {max_bytes:,} (data.max_bytes)")
            data = file.readall()
    except (OSError, ValueError) as error:
        raise DataError(f"{name}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if not data:
        raise DataError(f"{name}: the file is empty")
    return data


def _from_array(array: npt.NDArray[Any], name: str) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] in (3, 4)):
        raise DataError(f"{name}: an array of shape {array.shape}, expected (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)")
    return Image.fromarray(np.ascontiguousarray(to_uint8(array, name)))


def _plain(picture: Image.Image, max_pixels: int, name: str) -> Image.Image:
    width, height = picture.size
    if width * height > max_pixels:
        raise DataError(f"{name}: {width} x {height} is more pixels than the limit of {max_pixels:,} (data.max_pixels)")
    if width * height == 0:
        raise DataError(f"{name}: {width} x {height}, no pixels")
    picture.load()
    plain = _rgb_or_gray(picture, name)
    if type(plain) is not Image.Image or plain is picture:
        plain = plain.copy()  # without the file behind it, which the caller is about to close
    plain.info = {}  # its orientation and transparency are dealt with
    return plain


def _rgb_or_gray(picture: Image.Image, name: str) -> Image.Image:
    if picture.info and _orientation(picture) in range(2, 9):
        picture = ImageOps.exif_transpose(picture)
    if picture.mode in {"RGB", "L"}:
        return _on_white(picture) if "transparency" in picture.info else picture
    if picture.mode == "1":
        return picture.convert("L")
    if picture.mode.startswith("I") or picture.mode == "F":
        return Image.fromarray(_deep(picture, name))
    if picture.has_transparency_data:
        return _on_white(picture)
    return picture.convert("RGB")


def _orientation(picture: Image.Image) -> int:
    try:
        return int(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a damaged EXIF block says nothing about the picture, which is then taken as it stands
        return 1


def _deep(picture: Image.Image, name: str) -> npt.NDArray[np.uint8]:
    pixels = np.asarray(picture)
    if pixels.dtype.kind in "iu" and pixels.dtype.itemsize == 2:
        pixels = pixels.astype(np.uint16)  # also turns big-endian files round
    return to_uint8(pixels, name)


def _on_white(picture: Image.Image) -> Image.Image:
    rgba = picture.convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba).convert("RGB")


def _kind(data: bytes) -> str:
    head = data[:64]
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        return "it is text"
    return f"it begins with {head[:8].hex(' ')}"
