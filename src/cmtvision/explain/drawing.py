"""Explanations as pictures: the image beside its map, with a legend, in perceptually uniform colours.

Maps from 0 up are drawn in magma, values with a sign in berlin, whose middle is 0. The map by itself keeps its own
cells, so that one sees how fine it really is; over the image it is smooth, because edges of cells would hide the
image's.

Shapes: H W image in pixels, h w grid of a map.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import CenteredNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cmtvision.errors import ConfigError
from cmtvision.explain.kernels import LocalPerception
from cmtvision.explain.position_bias import BiasMaps
from cmtvision.files import atomic_write

Picture = npt.NDArray[np.uint8]  # (H, W, 3)
Values = npt.NDArray[np.float32]

SUFFIX = ".png"
_POSITIVE, _SIGNED = "magma", "berlin"
_INK, _WARNING, _MARK = "#1f2937", "#b45309", "#22d3ee"
_DOTS_PER_INCH = 160
_MOST_CHANNELS, _MOST_HEADS = 8, 8
_OUTLIERS = 99.5  # percentile at which colours of a map with a pixel's detail end: single pixels would darken the rest


def draw_map(picture: Picture, values: Values, title: str, legend: str, remark: str = "") -> Figure:
    """The image, a map over it, and the map in its own cells with its colour bar.

    Args:
        picture: (H, W, 3), as the network saw it.
        values: (h, w); signed colours are used if any value is negative.
        title: what is shown.
        legend: what the values are, with their unit, beside the colour bar.
        remark: what must not be missed, below the title.
    """
    figure, axes = _figure(1, 3, (10.2, 3.9), title, remark)
    image, over, alone = axes[0]
    height, width = picture.shape[:2]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    colours, norm = _scale(values, height * width)
    _show(image, picture, "image")
    _show(over, _gray(picture), "map over the image")
    over.imshow(values, cmap=colours, norm=norm, extent=extent, alpha=0.62, interpolation="bilinear")
    shown = alone.imshow(values, cmap=colours, norm=norm, extent=extent, interpolation="nearest")
    _bare(alone, f"map, {values.shape[0]} x {values.shape[1]} cells")
    bar = figure.colorbar(shown, ax=alone, fraction=0.047, pad=0.03)
    bar.set_label(legend, color=_INK, fontsize=8)
    bar.ax.tick_params(labelsize=7, colors=_INK)
    bar.outline.set_visible(False)
    return figure


def draw_bias(picture: Picture, bias: BiasMaps, title: str, remark: str = "") -> Figure:
    """For five places of the image, marked, what the bias adds to each key's logit: a row for each head."""
    heads, rows, columns, *_ = bias.maps.shape
    shown_heads = min(heads, _MOST_HEADS)
    places = _five_places(rows, columns)
    size = (1.55 * len(places) + 1.5, 1.6 * (shown_heads + 1) + 0.9)
    figure, axes = _figure(shown_heads + 1, len(places), size, title, remark)
    height, width = picture.shape[:2]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    maps = bias.maps.cpu().numpy()
    norm = CenteredNorm(0, float(np.abs(maps).max()) or 1.0)
    for column, (row, place) in enumerate(places):
        _show(axes[0][column], picture, f"from row {row + 1}, column {place + 1}")
        for head in range(shown_heads):
            axis = axes[head + 1][column]
            drawn = axis.imshow(maps[head, row, place], cmap=_SIGNED, norm=norm, extent=extent)
            _bare(axis, "")
            if not column:
                axis.set_ylabel(f"head {head + 1}", color=_INK, fontsize=8)
        for axis in axes[:, column]:
            corner = (place * width / columns - 0.5, row * height / rows - 0.5)
            axis.add_patch(
                Rectangle(corner, width / columns, height / rows, fill=False, edgecolor=_MARK, linewidth=1.4)
            )
    bar = figure.colorbar(drawn, ax=axes[1:, :], fraction=0.04, pad=0.02, aspect=28)
    bar.set_label("added to the attention's logit", color=_INK, fontsize=8)
    bar.ax.tick_params(labelsize=7, colors=_INK)
    bar.outline.set_visible(False)
    return figure


def draw_lpu(picture: Picture, found: LocalPerception, title: str, remark: str = "") -> Figure:
    """The channels that an LPU changes most: kernel, map before, map after (of the first image)."""
    channels = found.change.argsort(descending=True)[:_MOST_CHANNELS].tolist()
    figure, axes = _figure(3, len(channels) + 1, (1.28 * (len(channels) + 1) + 0.9, 4.9), title, remark)
    kernels = found.kernels.cpu().numpy()
    before, after = found.before[0].cpu().numpy(), found.after[0].cpu().numpy()
    _show(axes[0][0], picture, "image")
    for axis in axes[1:, 0]:
        axis.set_axis_off()
    kernel_norm = CenteredNorm(0, float(np.abs(kernels[channels]).max()))
    for column, channel in enumerate(channels, start=1):
        low = float(min(before[channel].min(), after[channel].min()))
        high = float(max(before[channel].max(), after[channel].max()))
        kernel = axes[0][column].imshow(kernels[channel], cmap=_SIGNED, norm=kernel_norm)
        _bare(axes[0][column], f"channel {channel + 1}")
        for axis, values in ((axes[1][column], before), (axes[2][column], after)):
            axis.imshow(values[channel], cmap="viridis", vmin=low, vmax=high)
            _bare(axis, "")
    for axis, name in zip(axes[:, 1], ("kernel + identity", "before", "after"), strict=True):
        axis.set_ylabel(name, color=_INK, fontsize=8)
    bar = figure.colorbar(kernel, ax=axes[0, 1:], fraction=0.02, pad=0.01)
    bar.set_label("kernel", color=_INK, fontsize=8)
    bar.ax.tick_params(labelsize=7, colors=_INK)
    bar.outline.set_visible(False)
    scale = "before and after share one colour scale in each channel: dark is low, yellow is high"
    figure.supxlabel(scale, color=_INK, fontsize=8)
    return figure


def save_png(figure: Figure, path: str | Path) -> Path:
    """Write a figure, whole or not at all.

    Raises:
        ConfigError: a name that does not end in .png.
        CheckpointError: it cannot be written.
    """
    path = Path(path)
    check_png(path)
    FigureCanvasAgg(figure)
    metadata = {"Software": "cmtvision"}
    atomic_write(path, lambda partial: figure.savefig(partial, format="png", dpi=_DOTS_PER_INCH, metadata=metadata))
    return path


def check_png(path: str | Path) -> None:
    """Refuse a name that does not end in .png. Raises ConfigError."""
    if Path(path).suffix.lower() != SUFFIX:
        raise ConfigError(f"{path}: pictures are written as {SUFFIX}; choose such a name")


def _figure(rows: int, columns: int, size: tuple[float, float], title: str, remark: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    figure.suptitle(title + ("\n " if remark else ""), color=_INK, fontsize=10.5)
    if remark:
        lines = size[1] * 72
        figure.text(0.5, 1 - 24 / lines, remark, ha="center", va="top", color=_WARNING, fontsize=8.5)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _scale(values: Values, pixels: int) -> tuple[str, Normalize]:
    """Colours of a map: signed where it has both signs, and without outliers where it is as fine as the image."""
    percentile = _OUTLIERS if values.size >= pixels else 100
    limit = float(np.percentile(np.abs(values), percentile)) or 1.0
    return (_SIGNED, CenteredNorm(0, limit)) if values.min() < 0 else (_POSITIVE, Normalize(0, limit))


def _five_places(rows: int, columns: int) -> list[tuple[int, int]]:
    """The centre and the middles of the four quarters, each once."""
    quarters = [(rows // 4, columns // 4), (rows // 4, 3 * columns // 4), (rows // 2, columns // 2)]
    quarters += [(3 * rows // 4, columns // 4), (3 * rows // 4, 3 * columns // 4)]
    return list(dict.fromkeys(quarters))


def _gray(picture: Picture) -> Picture:
    gray = picture.mean(axis=2, keepdims=True)
    return np.repeat(gray, 3, axis=2).astype(np.uint8)


def _show(axis: Any, picture: Picture, name: str) -> None:
    axis.imshow(picture, interpolation="nearest")
    _bare(axis, name)


def _bare(axis: Any, name: str) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)
    if name:
        axis.set_title(name, color=_INK, fontsize=8.5)
