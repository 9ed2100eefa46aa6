"""Published figures of the models, to compare with; nothing here was measured by this project."""

PAPER_TOP1: dict[str, float] = {"cmt_ti": 79.1, "cmt_xs": 81.8, "cmt_s": 83.5, "cmt_b": 84.5}
"""ImageNet top-1 in percent (CMT paper, CVPR 2022), each at the model's own input size."""
