"""The form in which a network is exported: the one that runtimes run fastest.

For CMT this is the fused network with unpacked weights (fuse.py), for every runtime: fewer and larger products, no norm
but LayerNorm, one attention operation per block. Measured against the network as it is written: docs/performance.md.
timm's networks that have a form for inference (RepViT, FastViT, LeViT, TinyViT, ...) are exported in it; others as they
are.
"""

import copy

from timm.models import reparameterize_model
from torch import nn

from cmtvision.models.accelerate.fusing.fuse import fuse
from cmtvision.models.cmt import CMT
from cmtvision.models.cmt.position import Grid


def export_form(model: nn.Module, runtime: str, img_size: Grid) -> nn.Module:
    """A network to trace, in eval mode, independent of the given one (nothing is shared).

    Args:
        model: any network that maps images (B, C, H, W) to logits.
        runtime: 'onnx', 'openvino' or 'torch'; currently all get the same form.
        img_size: (height, width) in pixels of the expected images.
    """
    if isinstance(model, CMT):
        return fuse(model, img_size, packed=False)
    own = copy.deepcopy(model).eval()
    return reparameterize_model(own, inplace=True) if type(model).__module__.startswith("timm.") else own
