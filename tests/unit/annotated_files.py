"""Small annotated data sets in the formats that people have, for the tests of what reads them."""

import json
from pathlib import Path

import numpy as np
from data_files import photo
from PIL import Image

ROTATED = 6  # EXIF: the camera was held upright, and the image is stored lying


def jpeg(file: Path, height: int = 40, width: int = 60, seed: int = 0, orientation: int | None = None) -> Path:
    """A photo of that size as stored."""
    file.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    photo(height, width, seed).save(file, exif=exif)
    return file


def box(image=1, category=1, bbox=(5, 5, 20, 10), **more):
    """One annotation of COCO."""
    return {"image_id": image, "category_id": category, "bbox": list(bbox), **more}


def coco(root: Path, annotations, images=None, part: str = "train", **more) -> Path:
    """A folder with part/ and annotations/instances_part.json; two images of 40 x 60 unless they are given."""
    if images is None:
        images = [{"id": n, "file_name": f"{part}{n}.jpg", "width": 60, "height": 40} for n in (1, 2)]
        for entry in images:
            jpeg(root / part / entry["file_name"], seed=entry["id"] + len(part))
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "cat"}, {"id": 7, "name": "dog"}],
        **more,
    }
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))
    return root


def yolo(root: Path, labels: dict[str, str | None], part: str = "train") -> Path:
    """images/part and labels/part; the text of each label file by the image's name, None for none."""
    (root / "labels" / part).mkdir(parents=True, exist_ok=True)
    for number, (name, text) in enumerate(labels.items()):
        jpeg(root / "images" / part / f"{name}.jpg", seed=number + len(part))
        if text is not None:
            (root / "labels" / part / f"{name}.txt").write_text(text)
    return root


def voc(root: Path, objects: dict[str, list[tuple[str, tuple[int, int, int, int]]]], sets=None) -> Path:
    """Annotations/, JPEGImages/ and, with names by set, ImageSets/Main/."""
    (root / "Annotations").mkdir(parents=True)
    for number, (name, found) in enumerate(objects.items()):
        jpeg(root / "JPEGImages" / f"{name}.jpg", seed=number)
        body = "".join(
            f"<object><name>{label}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
            "</bndbox></object>"
            for label, (x0, y0, x1, y1) in found
        )
        size = "<size><width>60</width><height>40</height></size>"
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{size}{body}</annotation>")
    for name, members in (sets or {}).items():
        (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        (root / "ImageSets" / "Main" / f"{name}.txt").write_text("".join(f"{one}\n" for one in members))
    return root


def masks(root: Path, parts: dict[str, list[np.ndarray]]) -> Path:
    """part/images and part/masks; a photo of the size of each mask."""
    for part, found in parts.items():
        for number, mask in enumerate(found):
            jpeg(root / part / "images" / f"{number}.jpg", *mask.shape[:2], seed=number + len(part))
            file = root / part / "masks" / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(file)
    return root
