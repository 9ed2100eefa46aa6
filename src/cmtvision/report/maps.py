"""Where the model looked: a map of the class that it named, drawn over the picture as the network saw it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image

from cmtvision.artefact import Predictor
from cmtvision.data.photos import PhotoPath
from cmtvision.errors import CmtvisionError, DataError, first_line
from cmtvision.explain.grad_cam import grad_cam
from cmtvision.explain.integrated_gradients import integrated_gradients
from cmtvision.report.pictures import THUMBNAIL, address

MIN_GRID = 7
"""Places on a side of the last stage, below which its map shows too little: at 224 px it has 7."""
_CELLS = 8  # cells on a side that the attributions of pixels are summed over
_STEPS = 32  # of integrated gradients
_BATCH = 16


def explanation_maps(predictor: Predictor, paths: Sequence[PhotoPath]) -> tuple[list[str], str]:
    """For each image the picture that the network saw with the map over it, as a data: address, and a note.

    The map is Grad-CAM of the last stage where this has at least MIN_GRID places on a side. Of small images it has one
    or two; there it is integrated gradients, summed over cells, which is what names the places that count in small
    images (docs/explain.md).

    Returns:
        '' for an image that cannot be read; and in words what the maps are, or why there are none.
    """
    nothing = [""] * len(paths)
    if predictor.card.export is not None:
        return nothing, "An export has no gradients, so there are no explanation maps; report the run itself."
    if predictor.preprocess.channels not in (1, 3):
        return nothing, "There are explanation maps for images of 1 or 3 channels only."
    drawn: dict[int, str] = {}
    network, note = predictor.artefact.model, ""
    try:
        for start in range(0, len(paths), _BATCH):
            pixels = _pixels(predictor, paths[start : start + _BATCH])
            if not pixels:
                continue
            batch = torch.from_numpy(np.stack([predictor.preprocess.finish(one) for one in pixels.values()]))
            maps, note = _maps(network, batch.to(predictor.device))
            for place, one, heat in zip(pixels, pixels.values(), maps.float().cpu().numpy(), strict=True):
                drawn[start + place] = address(overlay(one, heat))
    except (CmtvisionError, TypeError, ValueError, RuntimeError) as error:  # a network whose stages it cannot read
        return nothing, f"No explanation maps: {first_line(error)}."
    return [drawn.get(place, "") for place in range(len(paths))], note


def _maps(network: torch.nn.Module, batch: torch.Tensor) -> tuple[torch.Tensor, str]:
    """Maps (B, h, w) of the classes that the network names, and what they are, in words."""
    maps = grad_cam(network, batch, None, -1)
    grid = maps.shape[1:]
    if min(grid) >= MIN_GRID:
        return maps, f"The maps are Grad-CAM of the last stage, on a grid of {_size(grid)} places."
    pixels = integrated_gradients(network, batch, steps=_STEPS).attributions.sum(1)  # (B, H, W)
    cells = F.adaptive_avg_pool2d(pixels, (min(_CELLS, pixels.shape[1]), min(_CELLS, pixels.shape[2])))
    return cells, (
        f"The maps are integrated gradients, summed over {_size(cells.shape[1:])} cells: what each adds to the class's "
        f"logit. For images as small as these the last stage has {_size(grid)} places, too few for Grad-CAM."
    )


def _size(grid: torch.Size) -> str:
    return " by ".join(str(side) for side in grid)


def overlay(pixels: npt.NDArray[np.uint8], heat: npt.NDArray[np.float32]) -> Image.Image:
    """A map over a picture: gray where the model did not look, its colours and warmth where it did.

    Args:
        pixels: what the network saw, (H, W, 1 or 3).
        heat: (h, w), any scale; the largest value is drawn strongest.
    """
    from matplotlib import colormaps

    size = _shown(pixels.shape[1], pixels.shape[0])
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
    picture = picture.resize(size, Image.Resampling.BICUBIC)
    heat = np.maximum(np.nan_to_num(heat.astype(np.float32)), 0)
    scaled = heat / max(float(heat.max()), 1e-12)
    smooth = np.asarray(Image.fromarray(scaled).resize(size, Image.Resampling.BILINEAR)).clip(0, 1)
    warm = np.asarray(colormaps["inferno"](0.15 + 0.85 * smooth)[..., :3])
    gray = np.asarray(picture.convert("L"), np.float32)[..., None] / 255
    share = (0.25 + 0.45 * smooth)[..., None]
    mixed: npt.NDArray[Any] = gray * (1 - share) + warm * share
    return Image.fromarray((255 * mixed.clip(0, 1)).astype(np.uint8))


def _shown(width: int, height: int) -> tuple[int, int]:
    scale = THUMBNAIL / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _pixels(predictor: Predictor, paths: Sequence[PhotoPath]) -> dict[int, npt.NDArray[np.uint8]]:
    """What the network sees of each readable image, by its place."""
    found = {}
    for place, path in enumerate(paths):
        try:
            found[place] = predictor.preprocess.prepare(path)
        except DataError:
            continue
    return found
