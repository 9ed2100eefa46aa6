"""Which form of a network is exported: the one that runtimes run fastest.

For CMT that is the fused network with unpacked weights (fuse.py), for every runtime: fewer and larger products, no norm
but LayerNorm, one attention operation a block. Measured against the network as it is written: docs/deploying.md. Other
networks are exported as they are.
"""

import copy

from torch import nn

from cmtvision.deploy.fuse import fuse
from cmtvision.models.cmt import CMT
from cmtvision.models.lmhsa import Grid


def export_form(model: nn.Module, runtime: str, img_size: Grid) -> nn.Module:
    """A network to trace, in eval mode, that shares nothing with the given one.

    Args:
        model: any network that maps images (B, C, H, W) to logits.
        runtime: 'onnx', 'openvino' or 'torch'; today all get the same form.
        img_size: (height, width) in pixels of the images to come.
    """
    if isinstance(model, CMT):
        return fuse(model, img_size, packed=False)
    return copy.deepcopy(model).eval()
