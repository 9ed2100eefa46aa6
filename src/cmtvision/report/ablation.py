"""Figure and table of an ablation, drawn from its record: accuracy along the ladder, and the cost of omitting an idea.

A record is the JSON that ``cmtvision ablate`` writes; see ``cmtvision.study.ablation``.
"""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from cmtvision.files import write_text
from cmtvision.report.plot_files import save_figure

_DOT, _LINE, _PALE = "#1f5fa8", "#1f5fa8", "#93b7de"
_LABELS = {
    "0_deit": "DeiT",
    "1_stem": "+ stem",
    "2_stages": "+ stages",
    "3_lpu": "+ LPU",
    "4_lmhsa": "+ LMHSA",
    "5_irffn": "+ IRFFN = CMT",
    "no_lpu": "without LPU",
    "no_bias": "without position bias",
    "no_kv_reduction": "without reduced keys",
    "no_irffn_shortcut": "without IRFFN shortcut",
    "ln_for_bn": "LN instead of BN",
}


def label(row: Mapping[str, Any]) -> str:
    """A row's name in a table or figure; its key if it is not part of the ablation."""
    return next((said for part, said in _LABELS.items() if part in row["key"]), str(row["key"]))


def in_points(interval: Mapping[str, float | None], signed: bool = True) -> str:
    """An interval of shares in percentage points: '+1.20 (+0.40 to +2.00)'; only the bounds if unsigned."""
    low, high = interval["low"], interval["high"]
    if low is None or high is None:
        return f"{100 * (interval['mean'] or 0):+.2f}" if signed else "one seed"
    if not signed:
        return f"{100 * low:.2f} to {100 * high:.2f}"
    return f"{100 * (interval['mean'] or 0):+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"


def write_ablation_csv(record: Mapping[str, Any], out: Path) -> Path:
    """Write ablation.csv: one row per network. Raises CheckpointError if it cannot be written."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    seeds = [str(seed) for seed in record["seeds"]]
    bounds = [(what, part) for what in ("top1", "difference") for part in ("mean", "low", "high")]
    writer.writerow(
        ["network", "part", "parameters", "gmacs", "photos"]
        + [f"correct_seed_{seed}" for seed in seeds]
        + [f"{what}_{part}" for what, part in bounds]
        + ["compared_with", "failure"]
    )
    for row in record["rows"]:
        writer.writerow(
            [row["key"], row["part"], row["parameters"], row["gmacs"], row["num_images"]]
            + [row["correct"].get(seed) for seed in seeds]
            + [(row[what] or {}).get(part) for what, part in bounds]
            + [row["compared_with"], row["failure"]]
        )
    path = out / "ablation.csv"
    write_text(path, text.getvalue())
    return path


def write_ablation_figures(record: Mapping[str, Any], out: Path) -> list[Path]:
    """Write ablation.svg and ablation.png. Raises CheckpointError if they cannot be written."""
    return [save_figure(ablation_figure(record), out / f"ablation{suffix}") for suffix in (".svg", ".png")]


def ablation_figure(record: Mapping[str, Any]) -> Figure:
    """The ladder on the left, the leave-one-outs on the right, whichever the record holds."""
    rungs = [row for row in record["rows"] if row["part"] == "ladder" and row["top1"]]
    without = [row for row in record["rows"] if row["part"] == "leave-one-out" and row["difference"]]
    panels = [panel for panel in ((len(rungs) > 1, _ladder, rungs), (bool(without), _without, without)) if panel[0]]
    panels = panels or [(True, _ladder, rungs)]
    figure = Figure(figsize=(6.6 * len(panels), 4.2), layout="constrained")
    for place, (_, draw, rows) in enumerate(panels):
        draw(figure.add_subplot(1, len(panels), place + 1), rows)
    count = len(record["seeds"])
    figure.suptitle(
        f"cmt_{record['size']}: {record['num_train']:,} photos, {record['epochs']} epochs, {count} "
        f"seed{'s' if count > 1 else ''}, tested on {record['num_val']:,}; bars: 95% over seeds",
        fontsize=9, color="#4b5563",
    )  # fmt: skip
    return figure


def _ladder(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Accuracy of each rung, DeiT at the bottom."""
    heights = range(len(rows))
    for height, row in zip(heights, rows, strict=True):
        _bar(axes, height, row["top1"], [count / row["num_images"] for count in row["correct"].values()])
        axes.annotate(
            f"{row['top1']['mean']:.1%}", (row["top1"]["mean"], height), xytext=(0, 9), textcoords="offset points",
            ha="center", fontsize=9, color="#111827",
        )  # fmt: skip
    axes.plot([row["top1"]["mean"] for row in rows], heights, color=_PALE, linewidth=1, zorder=1)
    axes.set_yticks(list(heights), [f"{label(row)}\n{_gmacs(row['gmacs'])}" for row in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel("top-1 on the held-out photos")
    _tidy(axes)


def _without(axes: Any, rows: list[dict[str, Any]]) -> None:
    """The effect of removing one idea from CMT, in percentage points."""
    heights = range(len(rows))
    for height, row in zip(heights, rows, strict=True):
        _bar(axes, height, row["difference"], [])
    axes.axvline(0, color="#6b7280", linewidth=1)
    axes.set_yticks(list(heights), [f"{label(row)}\n{_gmacs(row['gmacs'])}" for row in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:+.1f}"))
    axes.set_xlabel("difference to CMT, percentage points of top-1")
    _tidy(axes)


def _bar(axes: Any, height: int, interval: Mapping[str, float | None], seeds: list[float]) -> None:
    if interval["low"] is not None:
        axes.plot([interval["low"], interval["high"]], [height, height], color=_LINE, linewidth=2, zorder=2)
    axes.scatter(seeds, [height] * len(seeds), s=14, color=_PALE, zorder=3)
    axes.scatter([interval["mean"]], [height], s=36, color=_DOT, zorder=4)


def _gmacs(value: float) -> str:
    return f"{value:.2f} GMACs" if value >= 0.1 else f"{1000 * value:.2f} MMACs"


def _tidy(axes: Any) -> None:
    axes.grid(axis="x", color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    for name in ("top", "right"):
        axes.spines[name].set_visible(False)
