"""A photo that is no file of its own: one of many in a shard, a table or another library's data set.

A ``StoredPhoto`` is small, frozen and picklable, so a list of a million of them travels to loader processes. It names a
store, and the store knows how to open itself again in each process.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

from PIL import Image

from cmtvision_preprocess.errors import DataError


class PhotoStore(Protocol):
    """What holds photos: a frozen, picklable object that opens its files in whatever process reads from it."""

    def read(self, place: int, size: int) -> bytes | Image.Image:
        """The photo at a place, as a file's bytes, or decoded where the store has no file. DataError if it cannot."""

    def __str__(self) -> str: ...


@dataclass(frozen=True, slots=True)
class StoredPhoto:
    """A photo inside a store.

    Args:
        store: what holds it.
        name: its name, unique in the data set, with forward slashes; it decides order and split as a path would.
        place: where it stands there: an offset in bytes, or a row.
        size: bytes of its file, -1 where that is not known before it is read.
    """

    store: PhotoStore
    name: str
    place: int
    size: int = -1

    def read(self, max_bytes: int | None = None) -> bytes | Image.Image:
        """The photo as a file's bytes, or decoded where it never was a file.

        Raises:
            DataError: more than max_bytes, or the store cannot be read; one line with the photo's name.
        """
        if max_bytes is not None and self.size > max_bytes:
            raise DataError(f"{self}: {self.size:,} bytes, more than the limit of {max_bytes:,} (data.max_bytes)")
        try:
            content = self.store.read(self.place, self.size)
        except OSError as error:
            raise DataError(f"{self}: cannot be read ({error.strerror or error})") from None
        if isinstance(content, bytes) and not content:
            raise DataError(f"{self}: the file is empty")
        return content

    def __str__(self) -> str:
        return f"{self.store}:{self.name}"

    def __lt__(self, other: "StoredPhoto") -> bool:
        return self.name < other.name


PhotoPath: TypeAlias = Path | StoredPhoto
"""Where a photo is; ``str()`` of it is what a person is told."""
