"""What is chosen of a recipe where nobody named one: how large images are, by those that there are."""

from statistics import median
from typing import Any

from cmtvision.data.annotations.samples import AnnotationIndex
from cmtvision.recipe import Recipe

LARGEST, STEP, LEAST = 512, 32, 64
"""Pixels of a side: of the recipe, which is right for photos; sides are multiples; the least that is chosen."""
LONGEST = 5 / 3
"""Of the longer side of an image, in shorter ones: as 1333 to 800."""
SMALL, SMALL_ANCHORS = 256, 0.5
"""Up to this side objects are small, and so are anchors then, as a share of the usual ones."""


def settings_for(index: AnnotationIndex[Any], recipe: Recipe) -> dict[str, Any]:
    """Settings for small images, which would only be enlarged otherwise; none for photos.

    Args:
        index: the images.
        recipe: with the user's settings; its network decides which settings there are.
    """
    short = median(min(sample.size) for sample in index.train) if index.train else LARGEST
    side = max(LEAST, -(-round(short) // STEP) * STEP)
    if side >= LARGEST:
        return {}
    chosen: dict[str, Any] = {
        "scene.size": [side, side],
        "scene.eval_short_side": side,
        "scene.eval_longest": round(side * LONGEST),
    }
    kind = recipe.model.name.rpartition("_")[2]
    if side <= SMALL and kind in ("retinanet", "fasterrcnn", "maskrcnn"):
        chosen["model.options.anchor_scale"] = SMALL_ANCHORS
    return chosen
