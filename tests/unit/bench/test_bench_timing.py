"""What is timed is the network in eval and inference mode, on the batch that was asked for; figures of seconds."""

import time

import numpy as np
import pytest
import torch
from torch import nn

from cmtvision.bench import timing
from cmtvision.bench.opening import is_convolutional, open_target
from cmtvision.bench.runtimes import PRECISIONS
from cmtvision.bench.target import Target
from cmtvision.bench.timing import Samples, measure_latency, percentile, timed_passes, times_as_fast

SLEEP = 0.004


@pytest.fixture(autouse=True)
def _brief(monkeypatch):
    monkeypatch.setattr(timing, "SECONDS_A_ROUND", 0.01)


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


@pytest.mark.parametrize("runtime", ["eager", "channels-last", "fused"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_pytorch_runs_in_every_precision(runtime, precision):
    opened, note = open_target(Target("cmt_nano", "cmt_nano", runtime=runtime, precision=precision), "cpu", (3, 32, 32))
    logits = opened(2)()
    assert (logits.shape, logits.dtype, note) == ((2, 1000), torch.float32, None)


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


def test_the_first_pass_is_not_counted_and_a_turn_has_its_least():
    calls = []
    assert len(timed_passes(lambda: calls.append(0), "cpu", 0.0, 4)) == 4
    assert len(calls) == 5


@pytest.mark.parametrize("percent", [0, 50, 95, 99, 100])
def test_percentiles_are_those_of_numpy(percent):
    values = list(np.random.default_rng(0).exponential(size=137))
    assert percentile(values, percent) == pytest.approx(np.percentile(values, percent), rel=1e-12)


def test_percentiles_that_too_few_passes_cannot_tell_are_none():
    few = Samples([[0.2, 0.1], [0.4]])
    assert few.latency() == {"p50": 0.2, "p95": None, "p99": None, "min": 0.1, "max": 0.4}
    some = Samples([[0.001 * n for n in range(1, 21)]]).latency()
    assert some["p95"] == pytest.approx(0.01905)
    assert some["p99"] is None
    many = Samples([[0.001 * n for n in range(1, 102)]]).latency()
    assert many["p99"] == pytest.approx(0.100)


def test_rates_are_of_rounds_and_a_ratio_is_of_their_medians():
    samples = Samples([[0.1, 0.3], [0.1, 0.1], [0.5, 0.5]])
    assert samples.rates(4) == pytest.approx([20, 40, 8])
    assert samples.medians == pytest.approx([0.2, 0.1, 0.5])
    ratio = times_as_fast([20, 40, 8], [10, 10, 8])
    assert ratio == pytest.approx({"median": 2.0, "min": 1.0, "max": 4.0})
