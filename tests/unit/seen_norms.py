"""A network whose norms have seen something, so that folding them is more than multiplying by one."""

import torch
from torch import nn

from cmtvision.models import create_model


def network(name="cmt_nano", **options):
    """A network of five classes in eval mode, always the same."""
    torch.manual_seed(0)
    model = create_model(name, num_classes=5, **options).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.bias, std=0.3)
    return model
