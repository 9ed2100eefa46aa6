"""Writing a data set as WebDataset shards: tar files of images as they are, with their labels, and an index.

An image is ``000000123.jpg`` with its class number in ``000000123.cls``, or where it may have several classes
``000000123.json`` with {"labels": [...]} by name. index.json has what allows any image to be read at once: shard,
offset, size, and its original name, so that split and fingerprint of the shards are those of the original data. The
same data and seed give the same bytes.
"""

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from cmtvision.data.decode import MAX_BYTES, image_size, open_image, shrunk
from cmtvision.data.listing.index import DatasetIndex, Sample
from cmtvision.data.listing.own_folders import SHARD_FORMAT
from cmtvision.data.photos import PhotoPath
from cmtvision.data.shards.shard_index import CLASSES_FILE, INDEX_FILE, VERSION, shard_files
from cmtvision.data.whole_folder import below, check_target, move_into_place, partial_folder
from cmtvision.errors import DataError

Progress = Callable[[int, int], None]
SHARD_BYTES = 256_000_000
_BLOCK = 512


@dataclass(frozen=True)
class ShardSummary:
    """What was written: the folder, its shards, images in each part (train is all where none is set apart), bytes."""

    directory: Path
    num_shards: int
    num_train: int
    num_val: int
    num_bytes: int
    classes: tuple[str, ...]
    num_test: int = 0


def write_shards(
    index: DatasetIndex,
    directory: str | os.PathLike[str],
    *,
    shard_bytes: int = SHARD_BYTES,
    seed: int = 0,
    overwrite: bool = False,
    max_bytes: int = MAX_BYTES,
    short_side: int | None = None,
    progress: Progress | None = None,
) -> ShardSummary:
    """Write the images of an index as shards, mixed by the seed so that a window of shards has all classes.

    With a validation or test part they are in train/, val/ and test/; else in the folder itself, and are split when
    they are read, exactly as the original would be.

    Args:
        index: what ``read_dataset`` gave; images that it skipped are left out.
        directory: where to; it appears only when everything is written.
        shard_bytes: size at which the next shard begins; the last of a part may be smaller.
        seed: decides the order.
        overwrite: replace shards written here before (never other files).
        max_bytes: refuse larger images.
        short_side: shrink images whose shorter side has more pixels than this to it, since decoding what is thrown away
            afterwards costs most of a loader's time; JPEG (quality 95) if they were JPEG, else PNG. None keeps
            every image's file as it is, byte for byte.
        progress: called as progress(done, total).

    Raises:
        DataError: the folder is not empty, an image cannot be read any more, the disk is full.
    """
    target = Path(directory)
    if shard_bytes < 1:
        raise DataError(f"shard size: got {shard_bytes} bytes, expected at least 1")
    if short_side is not None and short_side < 1:
        raise DataError(f"short side: got {short_side} pixels, expected at least 1")
    check_target(target, overwrite, "shards", _foreign)
    take = partial(_shrunk_file, max_bytes=max_bytes, short_side=short_side)
    parts: dict[str | None, list[Sample]] = {"train": index.train, "val": index.val, "test": index.test}
    parts = {part: samples for part, samples in parts.items() if samples}
    if list(parts) == ["train"]:
        parts = {None: index.train}
    total = len(index.samples)
    unfinished = partial_folder(target)
    shards: list[dict[str, Any]] = []
    done = 0
    try:
        for part, samples in parts.items():
            (unfinished / (part or "")).mkdir(parents=True)
            order = np.random.Generator(np.random.PCG64([seed, len(samples)])).permutation(len(samples))
            rest = iter(samples[place] for place in order.tolist())
            while shard := _write_shard(rest, unfinished, part, len(shards), done, index, shard_bytes, take):
                shards.append(shard)
                done += len(shard["names"])
                if progress is not None:
                    progress(done, total)
        content = {
            "format": SHARD_FORMAT, "version": VERSION, "classes": index.classes, "multi_label": index.multi_label,
            "seed": seed, "short_side": short_side, "fingerprint": index.fingerprint, "shards": shards,
        }  # fmt: skip
        # Bytes of a name that are not UTF-8 become \udcXX, which is how JSON spells them too.
        (unfinished / CLASSES_FILE).write_bytes(_json(index.classes) + b"\n")
        with (unfinished / INDEX_FILE).open("w", encoding="utf-8", errors="backslashreplace") as file:
            json.dump(content, file, separators=(",", ":"), ensure_ascii=False)
        move_into_place(unfinished, target, _foreign)
    except OSError as error:
        raise DataError(f"{target}: the shards cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    num_bytes = sum(shard["size"] for shard in shards)
    counts = len(index.train), len(index.val)
    return ShardSummary(target, len(shards), *counts, num_bytes, tuple(index.classes), len(index.test))


def _write_shard(
    samples: Iterator[Sample],
    folder: Path,
    part: str | None,
    number: int,
    first_key: int,
    index: DatasetIndex,
    shard_bytes: int,
    take: Callable[[PhotoPath], tuple[bytes, str]],
) -> dict[str, Any] | None:
    """Write samples until the shard is full; its entry of the index, or None where no sample is left."""
    sample = next(samples, None)
    if sample is None:
        return None
    name = f"{part}/{number:06d}.tar" if part else f"{number:06d}.tar"
    entry: dict[str, Any] = {"file": name, "part": part, "names": [], "offsets": [], "sizes": [], "labels": []}
    with (folder / name).open("wb") as raw, tarfile.open(fileobj=raw, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        while sample is not None:
            key = f"{first_key + len(entry['names']):09d}"
            photo, extension = take(sample.path)
            tar.addfile(_member(f"{key}.{extension}", photo), io.BytesIO(photo))
            # An image's bytes are followed by zeros up to the next block.
            entry["offsets"].append(tar.offset - -(-len(photo) // _BLOCK) * _BLOCK)
            entry["sizes"].append(len(photo))
            entry["names"].append(index.relative(sample.path))
            entry["labels"].append(list(sample.labels) if index.multi_label else sample.label)
            label = _label(sample, index)
            tar.addfile(_member(f"{key}.{'json' if index.multi_label else 'cls'}", label), io.BytesIO(label))
            sample = next(samples, None) if tar.offset < shard_bytes else None
    digest = sha256()
    with (folder / name).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return {**entry, "size": (folder / name).stat().st_size, "sha256": digest.hexdigest()}


def _label(sample: Sample, index: DatasetIndex) -> bytes:
    if index.multi_label:
        return _json({"labels": [index.classes[label] for label in sample.labels]})
    return str(sample.label).encode()


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode(errors="backslashreplace")


def _shrunk_file(path: PhotoPath, max_bytes: int, short_side: int | None) -> tuple[bytes, str]:
    """An image's file and its extension, shrunk if it is larger than wanted."""
    content, extension = _file(path, max_bytes)
    if short_side is None:
        return content, extension
    if min(image_size(content, max_bytes, str(path))) <= short_side:
        return content, extension
    small, out = shrunk(open_image(content), short_side), io.BytesIO()
    if extension in ("jpg", "jpeg", "jpe", "jfif"):
        small.save(out, format="JPEG", quality=95)
        return out.getvalue(), "jpg"
    small.save(out, format="PNG")
    return out.getvalue(), "png"


def _file(path: PhotoPath, max_bytes: int) -> tuple[bytes, str]:
    """An image's file as it is, and its extension; an image that never was a file becomes a PNG."""
    if isinstance(path, Path):
        try:
            content: bytes | Image.Image = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    else:
        content = path.read(max_bytes)
    if isinstance(content, Image.Image):
        out = io.BytesIO()
        content.save(out, format="PNG")
        return out.getvalue(), "png"
    suffix = PurePosixPath(path.name).suffix.lower().removeprefix(".")
    return content, suffix or _kind(content, path)


def _kind(content: bytes, path: PhotoPath) -> str:
    try:
        with Image.open(io.BytesIO(content)) as picture:
            kind = (picture.format or "").lower()
    except Exception:  # Pillow's decoders raise whatever a damaged file leads them to
        raise DataError(f"{path}: not an image any more; read the data again") from None
    return {"jpeg": "jpg", "mpo": "jpg", "jpeg2000": "jp2"}.get(kind, kind)


def _member(name: str, content: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)  # of nobody, dated 1970: the same bytes whoever writes them, and when
    member.size = len(content)
    return member


def _foreign(folder: Path) -> str | None:
    """What ``write_shards`` did not write there."""
    shards = shard_files(str(folder / INDEX_FILE))
    files = {CLASSES_FILE, INDEX_FILE, *shards}
    folders = {PurePosixPath(name).parent.as_posix() for name in shards}
    for name, item in below(folder):
        if item.is_symlink() or name not in (folders if item.is_dir() else files):
            return f"it holds {name}"
    return None if shards else f"it has no {INDEX_FILE} of shards"
