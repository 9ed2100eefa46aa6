"""CMT and its five ideas, equations only. Order of reading: cmt.py, stem.py, stage.py, lpu.py, lmhsa.py, irffn.py."""

from cmtvision.models.cmt.cmt import CMT

__all__ = ["CMT"]
