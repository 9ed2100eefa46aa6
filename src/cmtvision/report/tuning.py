"""The plot of a search: every trial's score with the best so far, and what the scores depend on."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from cmtvision.report.plot_files import save_figure
from cmtvision.study.tune import TuneResult

_STATES = {"complete": ("o", "#1f5fa8"), "pruned": ("x", "#9ca3af")}


def write_tuning_plots(found: TuneResult) -> list[Path]:
    """Draw tuning.svg and tuning.png into the search's folder; returns their paths.

    Raises:
        CheckpointError: they cannot be written.
    """
    return [save_figure(_figure(found), found.out / f"tuning{suffix}") for suffix in (".svg", ".png")]


def _figure(found: TuneResult) -> Figure:
    panels = 2 if found.importances else 1
    figure = Figure(figsize=(6.4 * panels, 4.0), layout="constrained")
    axes: Any = figure.add_subplot(1, panels, 1)
    ordered = sorted(found.trials, key=lambda trial: trial.number)
    for state, (marker, colour) in _STATES.items():
        shown = [trial for trial in ordered if trial.state == state and trial.score is not None]
        if shown:
            axes.scatter(
                [trial.number for trial in shown], [trial.score for trial in shown], marker=marker, color=colour,
                label=state, zorder=3,
            )  # fmt: skip
    complete = [
        (trial.number, trial.score) for trial in ordered if trial.state == "complete" and trial.score is not None
    ]
    best = [max(score for _, score in complete[: place + 1]) for place in range(len(complete))]
    axes.step([number for number, _ in complete], best, where="post", color="#c2410c", label="best so far")
    axes.set_xlabel("trial")
    axes.set_ylabel("held-out " + {"val_top1": "top-1", "val_map": "mAP"}[found.measure])
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _tidy(axes)
    axes.legend(frameon=False)
    if found.importances:
        bars: Any = figure.add_subplot(1, panels, 2)
        keys = sorted(found.importances, key=lambda key: found.importances[key])
        bars.barh(keys, [found.importances[key] for key in keys], color="#1f5fa8")
        bars.set_xlabel("share in what the scores differ by")
        bars.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        _tidy(bars)
    return figure


def _tidy(axes: Any) -> None:
    axes.grid(color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    for name in ("top", "right"):
        axes.spines[name].set_visible(False)
