"""Zero padding at the bottom and right, for maps that a stride does not divide.

Every strided layer of CMT has kernel = stride, so a map of H x W becomes ceil(H / k) x ceil(W / k). Sizes that k
divides are passed on untouched: no copy, and the released networks' results are unchanged.
"""

import torch
import torch.nn.functional as F
from timm.models import register_notrace_function


def pad_to_multiple(x: torch.Tensor, k: int) -> torch.Tensor:
    """Zero-pad an image map (B, C, H, W) at the bottom and right until k divides H and W."""
    pad_h = (-x.shape[2]) % k
    pad_w = (-x.shape[3]) % k
    if torch.jit.is_scripting():
        return F.pad(x, [0, pad_w, 0, pad_h]) if pad_h > 0 or pad_w > 0 else x
    if type(pad_h) is int and type(pad_w) is int:
        return F.pad(x, (0, pad_w, 0, pad_h)) if pad_h > 0 or pad_w > 0 else x
    # An exporter with a dynamic size sees symbols here: deciding on them would freeze the size. A stride of k leaves
    # unused what is padded too much, and a plain k - 1 keeps the exporter's algebra of sizes to seconds, not minutes.
    return F.pad(x, (0, k - 1, 0, k - 1))


register_notrace_function(pad_to_multiple)
