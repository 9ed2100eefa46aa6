"""The calibration section: of the images on which a model is 80% sure, are 80% right?"""

from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from cmtvision.report.answers import Answers
from cmtvision.report.figures import STAND_INS, inline, plain_axes
from cmtvision.report.intervals import Interval, mean_interval
from cmtvision.trust.calibration import Bin, calibration_bins, expected_calibration_error


class Calibration(NamedTuple):
    """How well stated probabilities agree with what happens.

    Attributes:
        error: the expected calibration error, 0 to 1.
        gap: mean probability minus accuracy with its interval; above 0 the model is too sure of itself.
        bins: the bins of the diagram that have images, from low to high.
        svg: the diagram.
        verdict: what the gap says, in words.
    """

    error: float
    gap: Interval
    bins: list[Bin]
    svg: Markup
    verdict: str


def calibration(answers: Answers) -> Calibration:
    """The calibration of answers with one label each; at least one of them."""
    confidence = np.clip(answers.probability, 0.0, 1.0)  # float32 may exceed 1 by a rounding
    bins = calibration_bins(confidence, answers.right)
    gap = mean_interval(confidence - answers.right)
    error = expected_calibration_error(confidence, answers.right)
    filled = [one for one in bins if one.images]
    return Calibration(error, gap, filled, _diagram(bins, error), _verdict(gap))


def _verdict(gap: Interval) -> str:
    said = f"{abs(100 * gap.value):.1f} percentage points"
    if gap.low > 0:
        return f"Too sure of itself: on average it states {said} more than it keeps."
    if gap.high < 0:
        return f"Too modest: on average it states {said} less than it keeps."
    return "On average neither too sure nor too modest, as far as this number of images allows to say."


def _diagram(bins: list[Bin], error: float) -> Markup:
    filled = [one for one in bins if one.accuracy is not None and one.confidence is not None]
    figure = Figure(figsize=(4.8, 4.6), layout="constrained")
    FigureCanvasSVG(figure)
    axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    for part in (axes, counts):
        plain_axes(part)
    axes.plot([0, 100], [0, 100], "--", color=STAND_INS["ink"], linewidth=1, label="as stated")
    middles = [50 * (one.low + one.high) for one in filled]
    width = 100 * (bins[0].high - bins[0].low) * 0.86
    axes.bar(middles, _percent(one.accuracy for one in filled), width, color=STAND_INS["accent"], alpha=0.75)
    axes.plot(
        _percent(one.confidence for one in filled), _percent(one.accuracy for one in filled), "o",
        color=STAND_INS["ink"], markersize=4, label="mean of a bin",
    )  # fmt: skip
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)
    axes.set_ylabel("right (%)", color=STAND_INS["ink"])
    axes.legend(frameon=False, labelcolor=STAND_INS["ink"], fontsize=9, loc="upper left")
    counts.bar(middles, [one.images for one in filled], width, color=STAND_INS["warn"], alpha=0.75)
    counts.set_ylabel("images", color=STAND_INS["ink"])
    counts.set_xlabel("stated probability (%)", color=STAND_INS["ink"])
    counts.locator_params(axis="y", nbins=3)
    words = "; ".join(
        f"stated {100 * (one.confidence or 0):.0f}%, right {100 * (one.accuracy or 0):.0f}% of {one.images:,}"
        for one in filled
    )
    return inline(figure, "calibration", f"Calibration diagram, expected calibration error {100 * error:.1f}%: {words}")


def _percent(values: Any) -> list[float]:
    return [100 * value for value in values]
