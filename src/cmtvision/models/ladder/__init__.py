"""From DeiT to CMT, one idea per rung, and the parts from which the rungs and the leave-one-outs are built."""

from cmtvision.models.ladder.rungs import LACKING, RUNGS, SIZES, LadderSize, ladder, ladder_name

__all__ = ["LACKING", "RUNGS", "SIZES", "LadderSize", "ladder", "ladder_name"]
