"""The plot of a learning-rate sweep: losses against the rate, the suggested one marked."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from cmtvision.engine.lr_find import LrCurve
from cmtvision.report.plot_files import save_figure


def write_lr_curve(curve: LrCurve, path: str | Path) -> Path:
    """Draw a sweep into a file, an SVG or a PNG by its suffix.

    Raises:
        ConfigError: another suffix.
        CheckpointError: the file cannot be written.
    """
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes: Any = figure.add_subplot()
    axes.plot(curve.lrs, curve.losses, color="#b8c4d0", linewidth=1, label="loss of each step")
    axes.plot(curve.lrs, curve.smoothed, color="#1f5fa8", linewidth=2, label="smoothed")
    if curve.suggestion is not None:
        axes.axvline(curve.suggestion, color="#c2410c", linewidth=1.5, label=f"suggested {curve.suggestion:.2g}")
    axes.axvline(curve.recipe_lr, color="#6b7280", linewidth=1, linestyle=":", label=f"recipe {curve.recipe_lr:.2g}")
    axes.set_xscale("log")
    axes.set_xlim(curve.lrs[0], curve.lrs[-1])
    axes.xaxis.set_major_locator(LogLocator(numticks=12))
    low, high = min(curve.losses), max(curve.smoothed)
    axes.set_ylim(low - 0.1 * (high - low or 1), high + 0.15 * (high - low or 1))
    axes.set_xlabel(f"learning rate of a step of {curve.effective_batch} photos")
    axes.set_ylabel("training loss")
    axes.grid(color="#e5e7eb", linewidth=0.8)
    for name in ("top", "right"):
        axes.spines[name].set_visible(False)
    axes.legend(frameon=False)
    return save_figure(figure, path)
