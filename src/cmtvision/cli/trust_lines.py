"""What commands say of a calibration: its figures, and what to do where there is none."""

from shlex import quote
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from cmtvision.trust.block import TrustBlock


def calibrated_line(trust: "TrustBlock") -> str:
    """The figures of a calibration in a line."""
    before, after = trust.ece
    return (
        f"calibrated on {trust.num_images:,} held-out images: temperature {trust.temperature:.3g}, "
        f"calibration error {before:.1%} -> {after:.1%}"
    )


def not_calibrated_line(model: "Path") -> str:
    """What to say of a model whose probabilities are those of the bare network."""
    return f"probabilities are not calibrated; run: cmtvision calibrate {quote(str(model))} DATA"
