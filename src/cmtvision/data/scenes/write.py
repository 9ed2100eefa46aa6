"""Writing scenes as a data set: for detection with COCO JSON, for segmentation with masks.

The photos are split into train and val before anything is composed, as for classification, so no product of a
validation scene was ever seen in training. The same seed gives the same bytes on every machine (see ``draws`` and
``png``).
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cmtvision.data.annotations.outlines import counts_to_text, encode_counts, mask_box
from cmtvision.data.annotations.samples import BACKGROUND
from cmtvision.data.sample import CLASSES, MARK, Photos, licence, photos_in_parts
from cmtvision.data.scenes.compose import Scene, compose
from cmtvision.data.scenes.draws import Draws
from cmtvision.data.scenes.items import Item, cut_out, silhouette
from cmtvision.data.scenes.png import MADE_BY, png_bytes
from cmtvision.data.whole_folder import below, check_target, move_into_place, partial_folder
from cmtvision.errors import DataError

Progress = Callable[[int, int], None]
Task = Literal["detection", "segmentation"]
NUM_SCENES, MOST_SCENES = 1_000, 100_000
SIZE, LEAST_SIZE, MOST_SIZE = 128, 64, 1_024
_VAL_SHARE = 5  # one scene of so many is held out
_PALETTE = np.array(
    [(0, 0, 0), (230, 80, 80), (80, 120, 230), (240, 160, 60), (200, 90, 190), (120, 180, 80), (250, 220, 90),
     (80, 190, 190), (150, 110, 220), (180, 130, 90), (240, 150, 180)], dtype=np.uint8,
)  # fmt: skip
_INFO = f"{MADE_BY.decode()}: scenes of Fashion-MNIST (MIT licence)"


@dataclass(frozen=True)
class SceneSummary:
    """What was written: the folder, its task, scenes in each part, objects in them, class names, the photos' origin."""

    directory: Path
    task: str
    num_train: int
    num_val: int
    num_objects: int
    classes: tuple[str, ...]
    source: str


def write_sample_scenes(
    directory: str | os.PathLike[str],
    task: Task,
    *,
    scenes: int = NUM_SCENES,
    size: int = SIZE,
    seed: int = 0,
    full: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    source: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> SceneSummary:
    """Write scenes of several products each, one of five held out.

    For detection train/NNNNNN.png, val/NNNNNN.png and annotations/instances_{train,val}.json, with boxes and the masks
    of what can be seen as run lengths. For segmentation {train,val}/images and {train,val}/masks, palette PNG in which
    the index is the class and 0 the background, and classes.txt. No pixel is void. A seed gives the same scenes for
    both.

    Args:
        directory: where to; it appears only when everything is written.
        task: 'detection' or 'segmentation'.
        scenes: how many, at least 5.
        size: their edge in pixels.
        seed: decides everything.
        full: cut the products out of all 70,000 photos instead of 10,000.
        overwrite: replace scenes written here before (never other files).
        progress: called as progress(done, total).
        source, cache_dir: as for ``write_sample_data``.

    Raises:
        DataError: the directory is not empty, the photos cannot be fetched, the disk is full, numbers out of range.
    """
    if not _VAL_SHARE <= scenes <= MOST_SCENES:
        raise DataError(f"scenes: got {scenes:,}, expected {_VAL_SHARE} to {MOST_SCENES:,}")
    if not LEAST_SIZE <= size <= MOST_SIZE:
        raise DataError(f"size: got {size:,}, expected {LEAST_SIZE} to {MOST_SIZE:,} pixels")
    if task not in ("detection", "segmentation"):
        raise DataError(f"task: got {task!r}, expected detection or segmentation")
    target = Path(directory)
    check_target(target, overwrite, "scenes", _foreign)
    parts, origin = photos_in_parts(full, source, cache_dir)
    numbers = {"train": scenes - scenes // _VAL_SHARE, "val": scenes // _VAL_SHARE}
    partial = partial_folder(target)
    write = _write_detection if task == "detection" else _write_segmentation
    num_objects = done = 0
    try:
        for part, count in numbers.items():
            made = _scenes(part, count, size, seed, *parts[part])
            for objects in write(partial, part, made):
                num_objects, done = num_objects + objects, done + 1
                if progress is not None and (done % 50 == 0 or done == scenes):
                    progress(done, scenes)
        if task == "segmentation":
            (partial / "classes.txt").write_bytes(_class_lines())
        (partial / MARK).write_bytes(licence())
        move_into_place(partial, target, _foreign)
    except OSError as error:
        raise DataError(f"{target}: the scenes cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    classes = CLASSES if task == "detection" else (BACKGROUND, *CLASSES)
    return SceneSummary(target, task, numbers["train"], numbers["val"], num_objects, classes, origin)


def _scenes(
    part: str, count: int, size: int, seed: int, photos: Photos, places: npt.NDArray[np.int64]
) -> Iterator[Scene]:
    """The scenes of a part; its photos are used in random order, each once before one is used again."""
    order = Draws(seed, part, "order").order(len(places))
    images, labels = photos
    used = 0

    def next_item(long_side: int, draws: Draws) -> tuple[Item, int]:
        nonlocal used
        while True:
            place = places[order[used % len(order)]]
            used += 1
            mask = silhouette(images[place])
            if mask is not None:
                return cut_out(images[place], mask, long_side, draws), int(labels[place])

    for number in range(count):
        yield compose(size, Draws(seed, part, number), next_item)


def _write_detection(folder: Path, part: str, scenes: Iterator[Scene]) -> Iterator[int]:
    (folder / part).mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, scene in enumerate(scenes):
        size = len(scene.pixels)
        (folder / part / f"{number:06d}.png").write_bytes(png_bytes(scene.pixels))
        images.append({"id": number + 1, "file_name": f"{number:06d}.png", "width": size, "height": size})
        for label, mask in zip(scene.labels, scene.masks, strict=True):
            counts = encode_counts(mask)
            x0, y0, x1, y1 = map(int, mask_box(mask))
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": number + 1, "category_id": label + 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0], "area": int(mask.sum()), "iscrowd": 0,
                    "segmentation": {"size": [size, size], "counts": counts_to_text(counts)},
                }
            )  # fmt: skip
        yield len(scene.labels)
    content = {
        "info": {"description": _INFO},
        "categories": [{"id": label + 1, "name": name} for label, name in enumerate(CLASSES)],
        "images": images,
        "annotations": annotations,
    }
    (folder / "annotations").mkdir(exist_ok=True)
    file = folder / "annotations" / f"instances_{part}.json"
    file.write_bytes(json.dumps(content, separators=(",", ":")).encode() + b"\n")


def _write_segmentation(folder: Path, part: str, scenes: Iterator[Scene]) -> Iterator[int]:
    images, masks = folder / part / "images", folder / part / "masks"
    images.mkdir(parents=True)
    masks.mkdir()
    for number, scene in enumerate(scenes):
        numbers = np.zeros(scene.pixels.shape[:2], dtype=np.uint8)
        for label, mask in zip(scene.labels, scene.masks, strict=True):
            numbers[mask] = label + 1
        (images / f"{number:06d}.png").write_bytes(png_bytes(scene.pixels))
        (masks / f"{number:06d}.png").write_bytes(png_bytes(numbers, _PALETTE))
        yield len(scene.labels)


def _class_lines() -> bytes:
    return "".join(f"{name}\n" for name in (BACKGROUND, *CLASSES)).encode()


def _foreign(folder: Path) -> str | None:
    """What ``write_sample_scenes`` did not write there: another name, a link, or a file that is not such a one."""
    folders = {"annotations", *(f"{part}{tail}" for part in ("train", "val") for tail in ("", "/images", "/masks"))}
    picture = re.compile(r"(train|val)/((images|masks)/)?[0-9]{6}\.png")
    table = re.compile(r"annotations/instances_(train|val)\.json")
    for name, item in below(folder):
        if item.is_symlink() or item.is_dir():
            ours = name in folders and not item.is_symlink()
        elif name == MARK:
            ours = True
        elif name == "classes.txt":
            ours = item.read_bytes() == _class_lines()
        else:
            ours = bool(picture.fullmatch(name) or table.fullmatch(name)) and _is_ours(item)
        if not ours:
            return f"it holds {name}"
    return None if (folder / MARK).is_file() else f"it has no {MARK}"


def _is_ours(file: Path) -> bool:
    """Whether a file says in its first bytes that it was written here."""
    if not file.is_file():
        return False
    with file.open("rb") as opened:
        return MADE_BY in opened.read(100)
