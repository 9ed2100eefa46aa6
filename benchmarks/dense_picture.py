"""Draw docs/figures/dense.png: held-out scenes, what a detector finds in them, and a segmenter.

    python benchmarks/dense_picture.py DETECTOR SEGMENTER SCENES

The runs in the figure are two of dense_study.py, which began as a classifier and learned 800 scenes for 14 and for 6
minutes on one core: DIR/runs/scenes-mask-r-cnn-cmt_micro-pretrained-0 and DIR/runs/scenes-fpn-cmt_micro-pretrained-0.

The scenes are the first four that were held out with three to five objects, not the best ones.
"""

import json
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from cmtvision import load
from cmtvision.data import open_image
from cmtvision.report.drawn import with_boxes, with_classes

FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "dense.png"
SIDE, GAP, COLUMNS = 280, 6, 4  # pixels of a scene and between two


def scenes_of(folder: Path) -> list[Path]:
    """The scenes to draw."""
    listed = json.loads((folder / "annotations" / "instances_val.json").read_text())
    objects = [entry["image_id"] for entry in listed["annotations"]]
    chosen = [one for one in listed["images"] if 3 <= objects.count(one["id"]) <= 5]
    return [folder / "val" / one["file_name"] for one in chosen[:COLUMNS]]


def main() -> None:
    detector, segmenter = (load(run) for run in sys.argv[1:3])
    rows: list[list[Image.Image]] = [[], [], []]
    for file in scenes_of(Path(sys.argv[3])):
        scene = open_image(file)
        boxes: Any = detector.predict(scene)[0]
        classes: Any = segmenter.predict(scene)[0]
        rows[0].append(scene)
        rows[1].append(with_boxes(scene, boxes, detector.classes))
        rows[2].append(with_classes(scene, classes, segmenter.classes))
    canvas = Image.new("RGB", (COLUMNS * (SIDE + GAP) - GAP, len(rows) * (SIDE + GAP) - GAP), "white")
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            small = picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            canvas.paste(small, (column * (SIDE + GAP), row * (SIDE + GAP)))
    canvas.quantize(128).save(FIGURE, optimize=True)
    print(f"wrote {FIGURE}")


if __name__ == "__main__":
    main()
