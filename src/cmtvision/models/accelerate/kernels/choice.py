"""What "auto" does: time kernel and plain path once for each shape on each GPU, and remember the faster one.

The time measured is what a user waits for, launches included: wall time of calls one after another, forward and, where
gradients are wanted, backward. It happens in a thread of its own, where no saved-tensor hook (gradient checkpointing)
and no dispatch mode of the caller sees it, and uses the given tensors, so that nothing random is drawn.
"""

import statistics
import threading
import time
import warnings
from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from cmtvision.errors import one_line

ROUNDS = 5
SECONDS_A_ROUND = 0.004
MARGIN = 1.03  # a kernel that is only as fast as the plain path brings nothing but compiling

Path = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Choice:
    """One measurement.

    Attributes:
        kernel: whether the kernel is used.
        kernel_seconds: median wall time of one call of the kernel; infinite where it failed.
        plain_seconds: that of the plain path.
    """

    kernel: bool
    kernel_seconds: float
    plain_seconds: float


_choices: dict[Hashable, Choice] = {}
_lock = threading.Lock()


def choices() -> dict[Hashable, Choice]:
    """What was measured in this process, by (operation, shapes, dtype, device, ...)."""
    return dict(_choices)


def forget_choices() -> None:
    """Measure again when a shape is seen next."""
    _choices.clear()


def kernel_pays(key: Hashable, kernel: Path, plain: Path, inputs: Sequence[torch.Tensor | None]) -> bool:
    """Whether the kernel is the faster path for these inputs; measured when the key is seen for the first time.

    Args:
        key: what the times depend on.
        kernel: a function of the inputs without side effects.
        plain: another one with the same result.
        inputs: tensors on one device, the first one's; gradients of those that need them are timed too.
    """
    known = _choices.get(key)
    if known is not None:
        return known.kernel
    device = next(x.device for x in inputs if x is not None)
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return False  # a graph is recorded: nothing can be timed
    with _lock:
        if key not in _choices:
            _choices[key] = _measured(kernel, plain, inputs, device)
        return _choices[key].kernel


def _measured(kernel: Path, plain: Path, inputs: Sequence[torch.Tensor | None], device: torch.device) -> Choice:
    results: list[Choice] = []
    failures: list[Exception] = []
    train = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    autocast = torch.is_autocast_enabled(device.type)
    autocast_dtype = torch.get_autocast_dtype(device.type)

    def measure() -> None:
        with (
            torch.cuda.device(device) if device.type == "cuda" else nullcontext(),  # a new thread begins on the first
            torch.inference_mode(not train),
            torch.autocast(device.type, autocast_dtype, enabled=autocast, cache_enabled=False),
        ):
            copies = [None if x is None else x.detach().requires_grad_(train and x.requires_grad) for x in inputs]
            try:
                results.append(_race(_step(kernel, copies), _step(plain, copies), device))
            except Exception as error:  # of the plain path: it is for the caller to see
                failures.append(error)

    _wait(device)  # another thread, another current stream: the inputs must be there
    thread = threading.Thread(target=measure, name="cmtvision kernel choice")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]


def _step(path: Path, inputs: Sequence[torch.Tensor | None]) -> Callable[[], None]:
    wanted = [x for x in inputs if x is not None and x.requires_grad]

    def step() -> None:
        out = path(*inputs)
        if wanted:
            torch.autograd.grad(out, wanted, out.detach())

    return step


def _race(kernel: Callable[[], None], plain: Callable[[], None], device: torch.device) -> Choice:
    """Interleaved rounds of both, medians; a kernel that fails on this machine loses."""
    try:
        plain()
        plain_once = _seconds(plain, device, 1)
        try:
            kernel()  # compiled and tuned here
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            warnings.warn(f"a Triton kernel failed here, the plain path is used: {one_line(error)}", stacklevel=1)
            return Choice(False, float("inf"), plain_once)
        calls = max(3, int(SECONDS_A_ROUND / max(plain_once, 1e-6)))
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(ROUNDS):
            for path, taken in zip((kernel, plain), times, strict=True):
                taken.append(_seconds(path, device, calls))
    except torch.OutOfMemoryError:  # no room beside what is there
        return Choice(False, float("inf"), float("nan"))
    kernel_seconds, plain_seconds = (statistics.median(taken) for taken in times)
    return Choice(kernel_seconds * MARGIN < plain_seconds, kernel_seconds, plain_seconds)


def _seconds(step: Callable[[], None], device: torch.device, calls: int) -> float:
    _wait(device)
    begun = time.perf_counter()
    for _ in range(calls):
        step()
    _wait(device)
    return (time.perf_counter() - begun) / calls


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
