"""Reading a mask: a picture of class numbers, as palette (the index counts, not the colour), gray or one-bit pixels."""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from PIL import Image, UnidentifiedImageError

from cmtvision.data.annotations.limits import read_bytes
from cmtvision.data.annotations.orientation import turned_mask
from cmtvision.data.annotations.outlines import Outline
from cmtvision.data.annotations.samples import NO_CLASS, ClassMap
from cmtvision.data.decode import MAX_BYTES, MAX_PIXELS, up_to
from cmtvision.errors import DataError

SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif")
"""Files that keep class numbers as they are; JPEG would change them."""
JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")
MOST_CLASSES = 65_536
"""A mask of 16 bits has no more numbers."""
DEEP_NO_CLASS = 65_535
"""The largest number of 16 bits belongs to no class, as ``NO_CLASS`` does, the largest of 8 bits."""
Numbering: TypeAlias = Literal["plain", "void first", "0 and 255"]
_FORMATS = ("PNG", "BMP", "TIFF", "GIF")
_SCALED = {2: 85, 4: 17}
"""Pillow stretches gray values of so many bits to 0..255, by these factors."""
_TIFF_BITS = 258


@dataclass(frozen=True, slots=True)
class MaskFile:
    """A mask in a file of its own.

    Args:
        path: of the mask.
        turn: EXIF orientation of the image by which the mask becomes upright (see ``orientation``).
        max_pixels, max_bytes: refuse larger ones.
        numbering: what the numbers in the file mean. With 'void first', 0 belongs to no class, and 1 is the first class
            (ADE20K); with '0 and 255', any number but 0 is class 1 (a mask in black and white).
        void: the number that pixels of no class get.
    """

    path: Path
    turn: int = 1
    max_pixels: int = MAX_PIXELS
    max_bytes: int = MAX_BYTES
    numbering: Numbering = "plain"
    void: int = NO_CLASS

    def stored(self) -> ClassMap:
        """The class numbers (H, W) as the image is stored. DataError where ``read_mask`` refuses it."""
        numbers = read_mask(self.path, self.max_pixels, self.max_bytes)
        void = np.int32(self.void)
        if self.numbering == "0 and 255":
            return np.minimum(numbers, 1)
        if self.numbering == "void first":
            return np.where((numbers == 0) | (numbers == DEEP_NO_CLASS), void, numbers - 1)
        return np.where(numbers == DEEP_NO_CLASS, void, numbers)

    def read(self) -> ClassMap:
        """The class numbers (H, W) of the upright image. DataError where ``read_mask`` refuses it."""
        return np.ascontiguousarray(turned_mask(self.stored(), self.turn))

    def key(self) -> bytes:
        """The hash of the file: a mask that is drawn again often keeps its size in bytes.

        Raises:
            DataError: the file cannot be read, or is larger than the limit.
        """
        content = sha256(read_bytes(self.path, self.max_bytes)).digest()
        return content + (b" void first" if self.numbering == "void first" else b"")


@dataclass(frozen=True, slots=True, eq=False)
class DrawnMask:
    """A mask drawn from the outlines of objects; where they overlap, the later one is seen.

    Args:
        size: (height, width) of the upright image.
        outlines: of the objects, the largest first.
        labels: the class of each, or the number that belongs to no class; other pixels are class 0, the background.
    """

    size: tuple[int, int]
    outlines: tuple[Outline, ...]
    labels: tuple[int, ...]

    def read(self) -> ClassMap:
        """The class numbers (H, W)."""
        out = np.zeros(self.size, dtype=np.int32)
        for outline, label in zip(self.outlines, self.labels, strict=True):
            out[outline.mask()] = label
        return out

    def key(self) -> bytes:
        """The outlines and their classes."""
        pairs = zip(self.outlines, self.labels, strict=True)
        return b"|".join(f"{label} ".encode() + outline.key() for outline, label in pairs)


def no_class(num_classes: int) -> int:
    """The number of pixels that belong to no class, unless the data states another: 255 where that is no class."""
    return NO_CLASS if num_classes <= NO_CLASS else DEEP_NO_CLASS


def read_mask(path: Path, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES) -> ClassMap:
    """The class numbers (H, W) int32 of a mask file, as stored.

    Raises:
        DataError: missing, too big, damaged, or a picture of colours; one line with the file's name.
    """
    try:
        if not path.is_file():
            raise DataError(f"{path}: {'is not a plain file' if path.exists() else 'no such file'}")
        size = path.stat().st_size
        if size > max_bytes:
            raise DataError(f"{path}: {size:,} bytes, more than the limit of {max_bytes:,} (data.max_bytes)")
        with up_to(max_pixels), Image.open(path, formats=_FORMATS) as picture:
            if picture.width * picture.height > max_pixels:
                raise DataError(
                    f"{path}: {picture.width} x {picture.height} is more pixels than the limit of {max_pixels:,} "
                    "(data.max_pixels)"
                )
            picture.load()
            return _numbers(picture, path)
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"{path}: not a mask; expected a PNG, BMP, TIFF or GIF of class numbers") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError(f"{path}: more pixels than the limit of {max_pixels:,} (data.max_pixels)") from None
    except MemoryError:
        raise DataError(f"{path}: not enough memory to decode it") from None
    except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them to
        raise DataError(f"{path}: damaged mask ({' '.join(str(error).split()) or type(error).__name__})") from None


def _numbers(picture: Image.Image, path: Path) -> ClassMap:
    """The numbers in a picture that is loaded."""
    bits = _bits(path, picture)
    if picture.mode == "F":
        raise DataError(f"{path}: a mask of decimal numbers (float); save class numbers as an 8- or 16-bit PNG")
    if picture.mode not in ("P", "L", "1", "I", "I;16", "I;16B", "I;16L"):
        if bits == 16:
            raise DataError(f"{path}: a mask of 16-bit colours; save class numbers, as a palette or gray PNG")
        return _gray(np.asarray(picture.convert("RGB")), path)
    numbers = np.asarray(picture).astype(np.int64)
    if picture.mode == "L":
        numbers //= _SCALED.get(bits, 1)
    if numbers.size and (numbers.min() < 0 or numbers.max() >= MOST_CLASSES):
        raise DataError(f"{path}: values from {numbers.min()} to {numbers.max()}, expected class numbers")
    return numbers.astype(np.int32)


def _bits(path: Path, picture: Image.Image) -> int:
    """How many bits a value has in a PNG or TIFF file; 8 for other formats."""
    if picture.format == "PNG":
        with path.open("rb") as raw:
            return raw.read(25)[24]  # 8 bytes of signature, 8 before the header, width and height, then the depth
    tags = getattr(picture, "tag_v2", {})
    return int(tags.get(_TIFF_BITS, (8,))[0])


def _gray(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], path: Path) -> ClassMap:
    """Colours whose three values are equal are numbers all the same."""
    if (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all():
        return pixels[..., 0].astype(np.int32)
    raise DataError(f"{path}: a mask of colours; save class numbers, as a palette or gray PNG")
