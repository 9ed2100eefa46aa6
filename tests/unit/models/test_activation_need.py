"""What activations need: the largest sum of tensors that are held at one operation."""

import pytest
import torch
from torch import nn

from cmtvision.errors import ConfigError
from cmtvision.models.analysis.activation_need import activation_need


def test_what_activations_need_is_what_is_read_later_and_what_is_made():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1))
    assert activation_need(net, (3, 16, 16)) == 4 * 16 * 16 * (8 + 8)  # the image is read no more

    class Residual(nn.Module):
        def forward(self, x):
            return x + x.relu().flatten(1).view_as(x).exp()  # a view is no second tensor

    assert activation_need(Residual(), (2, 8, 8), batch=3) == 4 * 3 * 2 * 8 * 8 * 3

    class Attention(nn.Module):
        def forward(self, x):
            q = x.flatten(2).transpose(1, 2)[:, None]
            return torch.nn.functional.scaled_dot_product_attention(q, q, q)

    assert activation_need(Attention(), (2, 32, 32)) == 2 * 4 * 2 * 32 * 32  # no 1024 x 1024 scores
    with pytest.raises(ConfigError, match="Sequential on"):
        activation_need(net, (4, 16, 16))
