"""How long a network's forward pass takes on this machine: seconds, in rounds, by PyTorch's own benchmark timer.

A round is the median over forward passes that last at least ``SECONDS_A_ROUND`` together, after one that is not
counted; the timer waits for a GPU to finish. Networks are in eval mode and inference mode, with random images.
Convolutional ones are in channels-last memory, as the engine trains them and the Predictor runs them.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

SECONDS_A_ROUND = 0.2


def measure_latency(
    model: nn.Module, input_size: Sequence[int], batch: int = 1, device: str = "cpu", rounds: int = 5
) -> list[float]:
    """Time a network's forward pass.

    Args:
        model: any network; afterwards it is in eval mode, on the device.
        input_size: (C, H, W) of one image, in pixels.
        batch: images in a forward pass.
        device: 'cpu', 'cuda' or 'mps'.
        rounds: how often to measure.

    Returns:
        Seconds of one forward pass, a value for each round; their median is the figure to report.

    Raises:
        RuntimeError: the network cannot run on such images.
    """
    forward = forward_pass(ready(model, device), input_size, batch, device)
    forward()  # kernels are chosen and memory is fetched here
    return [time_round(forward) for _ in range(rounds)]


def ready(model: nn.Module, device: str) -> nn.Module:
    """The network itself, in eval mode on the device, in the memory format in which it is measured."""
    memory_format = torch.channels_last if is_convolutional(model) else torch.contiguous_format
    return model.eval().to(device).to(memory_format=memory_format)


def is_convolutional(model: nn.Module) -> bool:
    """Whether a network convolves maps; cutting an image into patches that do not overlap is no such convolution."""
    return any(
        isinstance(module, nn.Conv2d) and any(k > s for k, s in zip(module.kernel_size, module.stride, strict=True))
        for module in model.modules()
    )


def forward_pass(model: nn.Module, input_size: Sequence[int], batch: int, device: str) -> Callable[[], torch.Tensor]:
    """A function without arguments that computes the logits (B, num_classes) of random images (B, C, H, W).

    Args:
        model: from ``ready``.
        input_size: (C, H, W) of one image, in pixels.
        batch: B.
        device: where the model is.
    """
    memory_format = torch.channels_last if is_convolutional(model) else torch.contiguous_format
    images = torch.rand(batch, *input_size, generator=torch.Generator().manual_seed(0))  # (B, C, H, W)
    images = images.to(device=device, memory_format=memory_format)

    def forward() -> torch.Tensor:
        with torch.inference_mode():
            logits: torch.Tensor = model(images)
            return logits

    return forward


def time_round(forward: Callable[[], torch.Tensor]) -> float:
    """Median seconds of a forward pass, over ``SECONDS_A_ROUND``."""
    # its module looks for a compiler at import and warns where a GPU is lacking; nothing is compiled here
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    from torch.utils.benchmark import Timer

    timer = Timer("forward()", globals={"forward": forward}, num_threads=torch.get_num_threads())
    return float(timer.blocked_autorange(min_run_time=SECONDS_A_ROUND).median)


def timed_passes(step: Callable[[], Any], device: str, seconds: float, at_least: int) -> list[float]:
    """Seconds of each of many passes that follow one another, the first one left out.

    Args:
        step: one pass.
        device: whose work is waited for behind each.
        seconds: how long to go on.
        at_least: passes, however long they take.
    """
    finish = _finisher(device)
    step()
    finish()
    times: list[float] = []
    ends = time.perf_counter() + seconds
    last = -math.inf
    while len(times) < at_least or last < ends:
        begun = time.perf_counter()
        step()
        finish()
        last = time.perf_counter()
        times.append(last - begun)
    return times


def _finisher(device: str) -> Callable[[], Any]:
    if device.startswith("cuda"):
        return torch.cuda.synchronize
    return torch.mps.synchronize if device.startswith("mps") else lambda: None
