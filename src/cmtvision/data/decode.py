"""Decoding: any image becomes upright 8-bit RGB or gray, or one clear error.

Files are read within limits on bytes and pixels, and only by Pillow's decoders for plain image formats (its EPS reader,
for example, would start another program). How unusual images are treated:

- EXIF orientation is applied, so the image is upright as the camera intended;
- transparency (RGBA, LA, a palette or PNG with a transparent colour) is composited on white;
- 16-bit gray is scaled by 1/257, rounded, not clipped; files of 32-bit integers (Pillow's mode I) must be within
  0..65535 and are taken as 16-bit, since that is how 16-bit images are kept there;
- arrays of integers are 8-bit pixels and must be within 0..255, whatever their type; only uint16 is 16-bit, so the
  interpretation of a dark image never depends on how dark it is;
- floats must be within 0..1 and are multiplied by 255, rounded;
- one-bit images become gray, palettes, CMYK and the other colour spaces RGB; of an animation the first frame is used.
"""

import io
import os
import sys
import threading
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any, Protocol, TypeAlias, TypeGuard, cast

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ..errors import DataError  # a bundle holds this file as it is, in a package of another name
from .photos import StoredPhoto


class Tensor(Protocol):
    """The part of a torch tensor's interface used here; PyTorch itself need not be installed."""

    def detach(self) -> Any:
        """The tensor without its gradient."""


ImageSource: TypeAlias = (
    str
    | os.PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | IO[bytes]
    | Image.Image
    | npt.NDArray[Any]
    | Tensor
    | StoredPhoto
)
MAX_PIXELS = 89_478_485  # Pillow's own warning limit
MAX_BYTES = 100_000_000
_PILLOWS_LIMIT = threading.RLock()
_CHANNELS = (1, 3, 4)
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")


@cache
def readable_formats() -> tuple[str, ...]:
    """Those of our formats that this build of Pillow can read."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


@contextmanager
def up_to(max_pixels: int) -> Iterator[None]:
    """Inside, Pillow reads images of as many pixels, where its own limit, which the whole process has, is lower.

    Whoever opens an image inside compares its size with ``max_pixels`` before decoding it, as ``open_image`` does.
    """
    if max_pixels <= MAX_PIXELS:
        yield
        return
    with _PILLOWS_LIMIT:  # one image at a time, so that the limit is what it was afterwards
        own = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None if own is None else max(own, max_pixels)
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = own


def open_image(
    source: ImageSource,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
    name: str | None = None,
    short_side: int | None = None,
) -> Image.Image:
    """Read an image as RGB or L (gray), 8 bits per channel, upright.

    Args:
        source: a path, a file's bytes, a file opened in binary (read from its beginning), a PIL image, or an array
            (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA of bool, uint8, another integer within 0..255, uint16 or
            float within 0..1; a torch tensor of the same, channels first (C, H, W) or else last; or an image in a shard
            or table.
        max_pixels: refuse larger images, before decoding them.
        max_bytes: refuse larger files, before reading them.
        name: the image's name in error messages; by default its path.
        short_side: shrink an image whose shorter side has more pixels than this to it. JPEG files are then decoded at a
            fraction of their size, which is fast, but not identical to shrinking the decoded image.

    Raises:
        DataError: missing, too big, damaged, or not an image; one line with the name.
    """
    if isinstance(source, StoredPhoto):
        source, name = source.read(max_bytes), name or str(source)
    if is_tensor(source):
        source, name = as_array(source, _CHANNELS), name or "tensor"
    if isinstance(source, np.ndarray):
        return shrunk(_plain(_from_array(source, name or "array"), max_pixels, name or "array"), short_side)
    if isinstance(source, Image.Image):
        if type(source) is Image.Image and source.mode in {"RGB", "L"} and not source.info:
            return shrunk(source, short_side)  # already decoded, so the limits have nothing left to protect
        data, name = b"", name or "image"
    else:
        data, name = _content(source, max_bytes, name)
    try:
        if isinstance(source, Image.Image):
            return shrunk(_plain(source, max_pixels, name), short_side)
        with up_to(max_pixels), Image.open(io.BytesIO(data), formats=readable_formats()) as picture:
            return shrunk(_plain(picture, max_pixels, name, short_side), short_side)
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


def image_size(
    source: ImageSource, max_bytes: int = MAX_BYTES, name: str | None = None, max_pixels: int = MAX_PIXELS
) -> tuple[int, int]:
    """Width and height of an image as stored, before EXIF rotation; nothing is decoded, so it may be damaged.

    Raises:
        DataError: missing, not an image, or larger than both ``max_pixels`` and what Pillow opens; one line with the
            name.
    """
    if isinstance(source, StoredPhoto):
        source, name = source.read(max_bytes), name or str(source)
    if isinstance(source, Image.Image):
        return source.size
    data, name = _content(source, max_bytes, name)
    try:
        with up_to(max_pixels), Image.open(io.BytesIO(data), formats=readable_formats()) as picture:
            return picture.size
    except UnidentifiedImageError:
        raise DataError(f"{name}: not an image, or of a kind that cannot be read ({_kind(data)})") from None
    except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them to
        raise DataError(f"{name}: not an image ({' '.join(str(error).split()) or type(error).__name__})") from None


def shrunk(picture: Image.Image, short_side: int | None) -> Image.Image:
    """The image shrunk so that its shorter side has at most that many pixels; unchanged if it already has."""
    if short_side is None or min(picture.size) <= short_side:
        return picture
    return picture.resize(_shrunk_size(picture.size, short_side), Image.Resampling.BICUBIC)


def _shrunk_size(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    scale = short_side / min(size)
    return max(short_side, round(size[0] * scale)), max(short_side, round(size[1] * scale))


def each_image(images: ImageSource | Iterable[ImageSource]) -> Iterable[ImageSource]:
    """The images in an argument: a single image, in any form, is a list of one.

    Args:
        images: any iterable of images; one image; or a batch, as an array (N, H, W, C) or a tensor (N, C, H, W) or
            (N, H, W, C). An array or tensor of three dimensions is always one image.

    Raises:
        DataError: neither.
    """
    if isinstance(images, np.ndarray) or is_tensor(images):
        array = cast(npt.NDArray[Any], images)  # a tensor has both, too
        if array.ndim == 4 or (isinstance(images, np.ndarray) and images.ndim == 1 and images.dtype.kind in "OUS"):
            return list(array)
        if array.ndim in (2, 3):
            return [array]
        given = f"shape {tuple(array.shape)}"
    elif isinstance(images, str | os.PathLike | bytes | bytearray | memoryview | Image.Image | StoredPhoto):
        return [images]
    elif hasattr(images, "read"):
        return [cast(IO[bytes], images)]
    elif isinstance(images, Iterable):
        return images
    else:
        given = _shown(images)
    raise DataError(f"images: got {given}, expected an image or several, as a list or an array (N, H, W, C)")


def is_tensor(source: object) -> TypeGuard[Tensor]:
    """Whether this is a torch tensor; PyTorch is not imported for it."""
    tensor = getattr(sys.modules.get("torch"), "Tensor", None)  # none yet while another thread imports it
    return tensor is not None and isinstance(source, tensor)


def as_array(tensor: Tensor, channels: Collection[int]) -> npt.NDArray[Any]:
    """The pixels of a tensor as (H, W) or (H, W, C): its first axis is C where its length is among ``channels``.

    Raises:
        DataError: its pixels cannot be read.
    """
    try:
        plain = tensor.detach().cpu()
        array: npt.NDArray[Any] = (plain.float() if str(plain.dtype) == "torch.bfloat16" else plain).numpy()
    except (TypeError, RuntimeError, NotImplementedError) as error:
        raise DataError(f"tensor: its pixels cannot be read ({' '.join(str(error).split())[:200]})") from None
    return np.moveaxis(array, 0, 2) if array.ndim == 3 and array.shape[0] in channels else array  # (H, W, C)


def to_uint8(array: npt.NDArray[Any], name: str) -> npt.NDArray[np.uint8]:
    """Pixels of any supported type as 8 bits, same shape; the rules are in the module's docstring.

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
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if array.dtype.kind in "iu":
        least, most = int(array.min()), int(array.max())
        if least < 0 or most > 255:
            raise DataError(
                f"{name}: {array.dtype} pixels from {least} to {most}, expected 0..255; pass 16-bit pixels as uint16"
            )
        return array.astype(np.uint8)
    raise DataError(f"{name}: pixels of type {array.dtype}, expected bool, an integer or float within 0..1")


def _content(source: Any, max_bytes: int, name: str | None) -> tuple[bytes, str]:
    """An encoded image, and its name."""
    if isinstance(source, str | os.PathLike):
        path = os.fsdecode(source)
        return _file_bytes(Path(path), max_bytes, name or path), name or path
    if isinstance(source, bytes | bytearray | memoryview):
        data, name = bytes(source), name or "image bytes"
    elif hasattr(source, "read"):
        found = getattr(source, "name", None)
        name = name or (found if isinstance(found, str) else "image file")
        data = _rest(source, max_bytes, name)
    else:
        raise DataError(
            f"{name or 'image'}: got {_shown(source)}, expected a path, a file's bytes, an open file, a PIL image, "
            "an array or a tensor"
        )
    if not data:
        raise DataError(f"{name}: empty")
    if len(data) > max_bytes:
        raise DataError(f"{name}: {len(data):,} bytes, more than the limit of {max_bytes:,} (data.max_bytes)")
    return data, name


def _rest(file: IO[bytes], max_bytes: int, name: str) -> bytes:
    """The content of an open file, from its beginning if it can seek; one byte more than the limit if it is longer."""
    try:
        if file.seekable():
            file.seek(0)  # as Pillow does: whoever has just written it stands at its end
        data = file.read(max_bytes + 1)
    except Exception as error:  # whatever stands behind it: a disk, a socket, an archive
        raise DataError(f"{name}: cannot be read ({' '.join(str(error).split()) or type(error).__name__})") from None
    if not isinstance(data, bytes):
        raise DataError(f"{name}: gives {type(data).__name__}; open the file in binary ('rb')")
    return data


def _file_bytes(path: Path, max_bytes: int, name: str) -> bytes:
    try:
        if not path.is_file():
            kind = (
                "is a folder, not an image" if path.is_dir() else "is not a file" if path.exists() else "no such file"
            )
            raise DataError(f"{name}: {kind}")
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
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] in _CHANNELS):
        raise DataError(
            f"{name}: shape {array.shape}, expected (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); a batch of images is "
            "(N, H, W, C)"
        )
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return Image.fromarray(np.ascontiguousarray(to_uint8(array, name)))


def _plain(picture: Image.Image, max_pixels: int, name: str, short_side: int | None = None) -> Image.Image:
    width, height = picture.size
    if width * height > max_pixels:
        raise DataError(f"{name}: {width} x {height} is more pixels than the limit of {max_pixels:,} (data.max_pixels)")
    if width * height == 0:
        raise DataError(f"{name}: {width} x {height}, no pixels")
    if short_side is not None:
        picture.draft(None, _shrunk_size(picture.size, short_side))  # only JPEG's decoder can
    picture.load()
    plain = _rgb_or_gray(picture, name)
    if type(plain) is not Image.Image or plain is picture:
        plain = plain.copy()  # without the file behind it, which the caller is about to close
    plain.info = {}  # its orientation and transparency are dealt with
    return plain


def _rgb_or_gray(picture: Image.Image, name: str) -> Image.Image:
    if picture.info and orientation(picture) in range(2, 9):
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


def orientation(picture: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1, upright, where the image says nothing or nothing readable."""
    try:
        return int(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a damaged EXIF block says nothing about the picture, which is then taken as it stands
        return 1


def _deep(picture: Image.Image, name: str) -> npt.NDArray[np.uint8]:
    pixels = np.asarray(picture)
    if pixels.dtype.kind in "iu":
        if pixels.dtype.itemsize > 2 and (pixels.min() < 0 or pixels.max() > 65535):
            raise DataError(f"{name}: {pixels.dtype} pixels outside 0..65535; save it as 8 or 16 bits")
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


def _shown(value: object) -> str:
    return f"{type(value).__name__} {' '.join(repr(value).split())[:60]}"
