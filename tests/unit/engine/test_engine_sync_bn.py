"""Batch norm over processes: in a group of one it is PyTorch's batch norm; over two it is tested in tests/system."""

import pytest
import timm
import torch
import torch.distributed as dist
from torch import nn

from cmtvision.engine.distributed.sync_bn import SynchronisedBatchNorm2d, synchronise_batch_norm


@pytest.fixture
def group(tmp_path):
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("momentum", [0.1, None])
def test_outputs_gradients_and_statistics_are_those_of_batch_norm(group, momentum):
    torch.manual_seed(0)
    plain, ours = nn.BatchNorm2d(5, momentum=momentum), SynchronisedBatchNorm2d(nn.BatchNorm2d(5, momentum=momentum))
    with torch.no_grad():
        plain.weight.uniform_(0.5, 2)
        plain.bias.uniform_(-1, 1)
    ours.load_state_dict(plain.state_dict())
    for _ in range(3):
        images = torch.randn(4, 5, 3, 2) * 3 + 100  # far from zero: cancellation would show
        grads = []
        for norm in (plain, ours):
            x = images.clone().requires_grad_()
            out = norm(x)
            (out * torch.arange(out.numel()).view_as(out).cos()).sum().backward()
            grads.append((out.detach(), x.grad, norm.weight.grad.clone(), norm.bias.grad.clone()))
        for expected, got in zip(*grads, strict=True):
            assert torch.allclose(expected, got, rtol=1e-3, atol=2e-4)
    for name, value in plain.state_dict().items():
        assert torch.allclose(value.float(), ours.state_dict()[name].float(), rtol=1e-5), name
    assert torch.allclose(plain.eval()(images), ours.eval()(images), atol=1e-4)


def test_a_network_keeps_its_names_and_all_its_norms_are_changed():
    model = timm.create_model("cmt_nano", num_classes=2)
    names = list(model.state_dict())
    synchronise_batch_norm(model, torch.device("cpu"))
    assert list(model.state_dict()) == names
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert all(type(module) is SynchronisedBatchNorm2d for module in norms)
