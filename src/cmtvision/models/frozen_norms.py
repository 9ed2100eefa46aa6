"""Batch norm with fixed statistics, for images so large that a batch is one or two of them.

The statistics of two images are too noisy to normalise by. Held norms use those of the backbone's own training and
never update them; their scale and shift go on learning. Parameters, buffers and the state dict stay what they are, so
weights move freely between a network with held norms and one without.
"""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def hold_norms(module: nn.Module) -> None:
    """Put every batch norm inside a module in evaluation mode; ``module.train()`` releases them again."""
    for norm in module.modules():
        if isinstance(norm, _BatchNorm):
            norm.eval()
