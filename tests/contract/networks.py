"""Which networks the contract is asked of: the paper's CMTs in full, the ladder and CeiT at their smallest size."""

from cmtvision.models import list_models
from cmtvision.models.ladder import ladder

CMTS = [name for name in list_models("cmt_*") if not name.startswith("cmt_ladder_")]
RUNGS = ladder("nano")[:-1]  # the last is cmt_nano
LARGER = ("cmt_micro", "cmt_ti", "cmt_xs", "cmt_s", "cmt_b", "cmt_ladder_3_lpu_nano", "cmt_ladder_4_lmhsa_nano")
"""Those that differ in numbers, or options tested apart, from one that is asked everything."""
PYRAMIDS = RUNGS[2:]
TOKENS = [*RUNGS[:2], "ceit_nano"]
