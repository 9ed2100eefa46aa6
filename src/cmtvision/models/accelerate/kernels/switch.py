"""The one switch of the kernels, and where they can run at all."""

import importlib.util
import os
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType

import torch

from cmtvision.errors import ConfigError

MODES = ("auto", "on", "off")
VARIABLE = "CMTVISION_KERNELS"
# Triton runs kernels on tensors of the CPU then, one program at a time in numpy: for tests
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
OLDEST_GPU = (8, 0)

_mode = os.environ.get(VARIABLE, "off")
_is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)  # before torch 2.7 all is export


class use_kernels:  # noqa: N801  # reads as a function, like torch.no_grad
    """Choose when the networks use the Triton kernels, for all threads of this process.

    A call sets it for good; ``with use_kernels("off"): ...`` sets it back at the end. The environment variable
    CMTVISION_KERNELS says what holds at the start, "off" if it is not set: on an H100, launched one by one from
    Python, they slow a network down (docs/performance.md).

    Args:
        mode: "auto": on a GPU with compute capability 8.0 or more, in channels-last memory, each shape where the kernel
            was measured to be the faster one, once, when the shape is first seen; "on": wherever there is a kernel for
            the shape; "off": nowhere.

    Raises:
        ConfigError: another mode; or "on" where Triton or a GPU is missing.
    """

    def __init__(self, mode: str) -> None:
        global _mode
        _check(mode, "use_kernels")
        if mode == "on":
            missing = what_is_missing()
            if missing is not None:
                raise ConfigError(f'use_kernels("on") needs {missing}; or use "auto"')
        self._before, _mode = _mode, mode

    def __enter__(self) -> "use_kernels":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _mode  # noqa: PLW0603
        _mode = self._before


def kernels_mode() -> str:
    """What holds now: "auto", "on" or "off".

    Raises:
        ConfigError: CMTVISION_KERNELS is something else.
    """
    _check(_mode, VARIABLE)
    return _mode


def what_is_missing() -> str | None:
    """What kernels need and this environment lacks, with its fix; None where they can run."""
    if importlib.util.find_spec("triton") is None:
        return "Triton, which comes with the CUDA build of torch on Linux: pip install triton"
    if not torch.cuda.is_available() and not INTERPRETED:
        return "a GPU that torch can use (`cmtvision doctor` says what it sees)"
    return None


def could_run_on(x: torch.Tensor) -> bool:
    """Whether kernels may take part in what is computed from x, now; the shapes are another question.

    Raises:
        ConfigError: CMTVISION_KERNELS is not a mode, or is "on" without Triton.
    """
    # exact types only: an fx Proxy, a FakeTensor or another subclass asks for operations that it knows
    if type(x) is not torch.Tensor or not (x.is_cuda or (INTERPRETED and x.device.type == "cpu")):
        return False
    mode = kernels_mode()
    if mode == "off" or torch.jit.is_tracing() or _is_exporting():
        return False
    if mode == "on":
        if torch.compiler.is_compiling():  # the interpreter runs no compiled network
            return not INTERPRETED
        if importlib.util.find_spec("triton") is None:
            raise ConfigError(f"{VARIABLE}=on needs {what_is_missing()}; or set it to auto")
        return True
    return (
        x.is_cuda
        and not torch.compiler.is_compiling()  # the compiler fuses these chains itself, and nothing can be timed there
        and not torch.are_deterministic_algorithms_enabled()  # which path is the faster one may differ from run to run
        and importlib.util.find_spec("triton") is not None
        and torch.cuda.get_device_capability(x.device) >= OLDEST_GPU
    )


def _check(mode: str, where: str) -> None:
    if mode not in MODES:
        raise ConfigError(f"{where}: {mode!r} is none of {', '.join(MODES)}")


def device_of(x: torch.Tensor) -> AbstractContextManager[object]:
    """Within it a launch goes to the GPU that holds x: Triton launches on the thread's current one."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
