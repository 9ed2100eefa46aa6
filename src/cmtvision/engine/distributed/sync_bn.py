"""Batch norm over the photos of all processes.

PyTorch's own SyncBatchNorm runs on GPUs only. This one runs anywhere, with the same result as one process that sees the
whole batch: mean and variance are those of all photos (the variance from centred values, so nothing is lost to
cancellation), and gradients flow through both.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import nn


class AllReduceSum(torch.autograd.Function):
    """Sum over processes; its gradient is the sum of all their gradients."""

    @staticmethod
    def forward(_: Any, value: torch.Tensor) -> torch.Tensor:
        """Any shape -> the same shape."""
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, gradient: torch.Tensor) -> torch.Tensor:
        """The processes' gradients, added up."""
        total = gradient.contiguous()
        dist.all_reduce(total)
        return total


class SynchronisedBatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d whose statistics are those of all processes; it has the parameters and buffers of a plain one."""

    def __init__(self, plain: nn.BatchNorm2d) -> None:
        super().__init__(
            plain.num_features, plain.eps, plain.momentum, plain.affine, plain.track_running_stats, device="meta"
        )
        for name, parameter in plain.named_parameters():
            setattr(self, name, parameter)
        for name, buffer in plain.named_buffers():
            setattr(self, name, buffer)
        self.train(plain.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if not self.training:
            return super().forward(x)
        channels = x.shape[1]
        wide = x.float()
        own = torch.cat([wide.sum((0, 2, 3)), wide.new_tensor([x.numel() / channels])])
        total = AllReduceSum.apply(own)
        count = total[channels].detach()
        mean = total[:channels] / count  # (C,)
        centred = wide - mean[:, None, None]
        variance = AllReduceSum.apply(centred.square().sum((0, 2, 3))) / count
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            with torch.no_grad():
                self.num_batches_tracked += 1
                momentum = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
                self.running_mean.lerp_(mean.detach(), momentum)
                self.running_var.lerp_(variance.detach() * count / (count - 1), momentum)
        scale = torch.rsqrt(variance + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        out = centred * scale[:, None, None]
        if self.bias is not None:
            out = out + self.bias[:, None, None]
        return out.to(x.dtype)


def synchronise_batch_norm(model: nn.Module, device: torch.device) -> nn.Module:
    """The network with every batch norm taken over all processes; parameters, buffers and their names stay the same.

    Args:
        model: changed in place.
        device: on a GPU PyTorch's own SyncBatchNorm is used, which is faster there.
    """
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return converted
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.BatchNorm2d:
                setattr(module, name, SynchronisedBatchNorm2d(child))
    return model
