"""What is timed is the network in eval and inference mode, on the batch that was asked for, and in seconds a pass."""

import time

import pytest
import torch
from torch import nn

from cmtvision.bench import measure
from cmtvision.bench.measure import is_convolutional, measure_latency

SLEEP = 0.004


@pytest.fixture(autouse=True)
def _brief(monkeypatch):
    monkeypatch.setattr(measure, "SECONDS_A_ROUND", 0.01)


class Seen(nn.Module):
    """Takes a known time, and remembers how it was called."""

    def __init__(self, conv=None):
        super().__init__()
        self.conv = conv
        self.calls = []

    def forward(self, x):
        time.sleep(SLEEP)
        last = x.is_contiguous(memory_format=torch.channels_last)
        self.calls.append((tuple(x.shape), self.training, torch.is_inference_mode_enabled(), last))
        return x.mean((1, 2, 3))


def test_a_round_is_the_seconds_of_one_pass():
    values = measure_latency(Seen(), (3, 4, 4), rounds=3)
    assert len(values) == 3
    assert all(SLEEP <= value < 10 * SLEEP for value in values), values


def test_the_network_sees_the_batch_in_eval_and_inference_mode():
    network = Seen().train()
    measure_latency(network, (3, 6, 4), batch=2, rounds=1)
    assert {call[:3] for call in network.calls} == {((2, 3, 6, 4), False, True)}


@pytest.mark.parametrize(
    ("conv", "wanted"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), True),
        (nn.Conv2d(3, 8, 7, stride=2), True),
        (nn.Conv2d(3, 8, 4, stride=4), False),  # patches
        (nn.Conv2d(3, 8, 1), False),
    ],
)
def test_networks_with_overlapping_windows_run_in_channels_last(conv, wanted):
    network = Seen(conv)
    assert is_convolutional(network) is wanted
    measure_latency(network, (3, 8, 8), rounds=1)
    assert {call[3] for call in network.calls} == {wanted}


def test_what_a_network_refuses_is_raised():
    with pytest.raises(RuntimeError, match="shapes"):
        measure_latency(nn.Sequential(nn.Flatten(), nn.Linear(5, 2)), (3, 4, 4))
