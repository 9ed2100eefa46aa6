"""Draw the figures of the README and the docs that show records: python benchmarks/figures.py [NAME ...].

docs/figures/published.svg: published accuracy against the latency of records/published-cpu.json, a comparison of
``cmtvision compare --runtime best``; published-gpu.svg: the same against records/gpu-h100.json, each network in the
faster of its forms. ideas-at-work.svg and robustness.svg: records/ideas-at-work.json.
"""

import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from tables import IDEAS, STAGES, mean_percent, record, system_of

from cmtvision.bench.compare import family, published_accuracy
from cmtvision.bench.comparison import Row, in_order, row_record, with_fronts
from cmtvision.bench.target import Target
from cmtvision.models.peers.systems import is_of_paper
from cmtvision.report.comparison import latency_figure
from cmtvision.report.plot_files import save_figure

LOWEST = 70.0  # per cent: MobileNetV3-S, at 67.7%, would press all others together
MOVES = {"sizes": "side of the test image (px)", "shifts": "moved by (px)", "turns": "turned by (degrees)"}
COLOURS = ("#1f5fa8", "#d55e00", "#009e73", "#56b4e9", "#cc79a7", "#8b5e3c")
HERE = Path(__file__).parent
FIGURES = HERE.parent / "docs" / "figures"


def on_the_cpu() -> dict[str, Any]:
    """The CPU's record: what a reader compares. Networks that an exporter refuses are left out (docs/comparison.md)."""
    found = record("published-cpu")
    rows = [row for row in found["rows"] if not row["refused"] and row["published"]["percent"] > LOWEST]
    for row in rows:
        row["published"].setdefault("system", system_of(row))
    return {**found, "rows": rows}


def on_the_gpu() -> dict[str, Any]:
    """The GPU's record as a comparison."""
    found = record("gpu-h100")
    rows = []
    for name, measured in found["parts"]["inference"]["rows"].items():
        size = tuple(measured["input_size"])
        target = Target(name, name, img_size=size[1:])
        one, many = (
            min(form["median_seconds"] for form in measured[f"batch {batch}"].values() if "median_seconds" in form)
            for batch in (1, 64)
        )
        work = target.work()
        rows.append(
            Row(
                name,
                name,
                family(name),
                input_size=work.input_size,
                parameters=work.parameters,
                macs=work.macs,
                activations=work.activations,
                latency=(one,),
                batch_seconds=(many,),
                published=published_accuracy(target, work.input_size),
                of_paper=is_of_paper(name),
            )
        )
    ordered = with_fronts(in_order(rows))
    shown = {"accuracy": "published", "device": f"{found['device']}, bfloat16, CUDA graph"}
    hardware = {**found["hardware"], "processor": found["device"]}
    return {**found, **shown, "hardware": hardware, "rows": [row_record(row, 64) for row in ordered]}


def ideas_figure(found: dict[str, Any]) -> Figure:
    """What is left of cmt_micro's accuracy without an idea, by stage."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    whole = mean_percent(found, found["ideas"]["nothing"])
    panels: Any = figure.subplots(1, len(IDEAS), sharey=True)
    for axes, (idea, title) in zip(panels, IDEAS.items(), strict=True):
        axes.axhline(whole, color="#9ca3af", linewidth=1)
        for how, mark, colour in (("averaged", "o", "#1f5fa8"), ("zeroed", "X", "#d55e00")):
            counts = [found["ideas"].get(f"{idea} {how} {place}") for place in STAGES]
            points = [(at, mean_percent(found, each)) for at, each in enumerate(counts) if each is not None]
            axes.plot(*zip(*points, strict=True), mark, color=colour, markersize=8, label=how)
        axes.set_title(title, fontsize=10)
        axes.set_xticks(range(len(STAGES)), STAGES)
        axes.set_xlim(-0.5, len(STAGES) - 0.5)
        axes.set_xlabel("stage")
        plain(axes)
    panels[0].set_ylabel("test photos recognised (%)")
    panels[0].set_ylim(bottom=0)
    keys = [*panels[0].get_legend_handles_labels()[0], Line2D([], [], color="#9ca3af", label="as trained")]
    figure.legend(handles=keys, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def robustness_figure(found: dict[str, Any]) -> Figure:
    """Accuracy of cmt_micro and its peers at other sizes, moved, and turned."""
    figure = Figure(figsize=(13, 4.5), layout="constrained")
    panels: Any = figure.subplots(1, len(MOVES))
    colours = dict(zip(found["seeds"], COLOURS, strict=True))
    for axes, (what, label) in zip(panels, MOVES.items(), strict=True):
        for name, counts in found[what].items():  # of sizes, networks that take others
            points = [(int(at), mean_percent(found, each)) for at, each in counts.items()]
            style: dict[str, Any] = {"color": colours[name], "linewidth": 2.2 if name.startswith("cmt") else 1.3}
            axes.plot(*zip(*points, strict=True), "-o", markersize=4, label=name, **style)
        axes.set_xlabel(label)
        plain(axes)
    panels[0].set_ylabel("test photos recognised (%)")
    keys = panels[1].get_legend_handles_labels()[0]
    figure.legend(handles=keys, loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    return figure


def plain(axes: Any) -> None:
    axes.grid(color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    for name in ("top", "right"):
        axes.spines[name].set_visible(False)


def main() -> None:
    drawn = {
        "published": lambda: latency_figure(on_the_cpu()),
        "published-gpu": lambda: latency_figure(on_the_gpu()),
        "ideas-at-work": lambda: ideas_figure(record("ideas-at-work")),
        "robustness": lambda: robustness_figure(record("ideas-at-work")),
    }
    for name in sys.argv[1:] or drawn:
        print(save_figure(drawn[name](), FIGURES / f"{name}.svg"))


if __name__ == "__main__":
    main()
