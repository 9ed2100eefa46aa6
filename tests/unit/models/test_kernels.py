"""The switch and the choice of the Triton kernels, and the kernels: in Triton's interpreter, and compiled for GPUs.

What computes is tested in kernels_interpreted.py, which one test here runs; on a GPU by tests/gpu.
"""

import importlib.util
import os
import runpy
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cmtvision.errors import ConfigError
from cmtvision.models.accelerate import kernels
from cmtvision.models.accelerate.kernels import choice, choices, forget_choices, kernels_mode, switch, use_kernels

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
HERE = Path(__file__).parent


@needs_triton
@pytest.mark.slow
def test_kernels_in_the_interpreter() -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        HERE / "kernels_interpreted.py",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
    ]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    environment.pop("CMTVISION_KERNELS", None)
    done = subprocess.run(command, env=environment, cwd=HERE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


@needs_triton
@pytest.mark.slow
def test_kernels_compile_for_gpus(tmp_path: Path) -> None:
    """Triton and its assembler take every kernel, for the oldest GPU and in another precision for a newer one."""
    triton = importlib.util.find_spec("triton")
    assert triton is not None
    if shutil.which("ptxas", path=str(Path(str(triton.origin)).parent / "backends/nvidia/bin")) is None:
        pytest.skip("this Triton has no assembler")
    code = f"""
import sys; sys.path.insert(0, {str(HERE)!r})
from kernels_compiled import compile_all
compile_all()
"""
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_DEFAULT_FP_FUSION": "1"}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.split() == ["10", "kernels"]


def test_off_everywhere_on_a_cpu() -> None:
    """Nothing of Triton is imported, and the answer is None, whatever is chosen."""
    x, conv = torch.randn(1, 4, 5, 5), nn.Conv2d(4, 4, 3, padding=1, groups=4)
    for mode in ("auto", "off"):
        with use_kernels(mode):
            assert kernels.depthwise_by_kernel(x, conv) is None
            assert kernels.attention_by_kernel(x, x, x, torch.zeros(1, 4, 5, 5), 0.0) is None
    assert "cmtvision.models.accelerate.kernels.depthwise" not in sys.modules


def test_switch() -> None:
    before = kernels_mode()
    with pytest.raises(ZeroDivisionError), use_kernels("off"):
        raise ZeroDivisionError
    assert kernels_mode() == before
    use_kernels("off")
    assert kernels_mode() == "off"
    use_kernels(before)
    with pytest.raises(ConfigError, match="'fast' is none of auto, on, off"):
        use_kernels("fast")
    assert kernels_mode() == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_on_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("triton"):
        with pytest.raises(ConfigError, match=r'needs a GPU that torch can use .*; or use "auto"'):
            use_kernels("on")
    monkeypatch.setattr(switch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs Triton.*pip install triton"):
        use_kernels("on")
    assert kernels_mode() != "on"


def test_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    def at_the_start(value: str) -> Any:
        monkeypatch.setenv("CMTVISION_KERNELS", value)
        return runpy.run_path(str(switch.__file__))

    assert at_the_start("auto")["kernels_mode"]() == "auto"
    monkeypatch.delenv("CMTVISION_KERNELS")
    assert runpy.run_path(str(switch.__file__))["kernels_mode"]() == "off"
    mistyped = at_the_start("none")
    with pytest.raises(ConfigError, match="CMTVISION_KERNELS: 'none' is none of auto, on, off"):
        mistyped["kernels_mode"]()


def slow(x: torch.Tensor) -> torch.Tensor:
    time.sleep(0.003)
    return 2 * x


def fast(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


def test_the_faster_path_is_remembered() -> None:
    forget_choices()
    x = torch.randn(3, requires_grad=True)
    assert choice.kernel_pays("a", fast, slow, [x])
    assert not choice.kernel_pays("b", slow, fast, [x])
    assert choices()["b"].kernel_seconds > 0.003 > choices()["b"].plain_seconds

    def never(x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("measured again")

    assert choice.kernel_pays("a", never, never, [x])
    assert x.grad is None
    forget_choices()
    assert choices() == {}


def test_a_kernel_that_fails_is_not_used() -> None:
    forget_choices()

    def failing(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("out of resource: shared memory")

    with pytest.warns(UserWarning, match="a Triton kernel failed here, the plain path is used: .*shared memory"):
        assert not choice.kernel_pays("c", failing, fast, [torch.randn(3)])
    assert not choice.kernel_pays("c", failing, fast, [torch.randn(3)])  # without a second warning


def test_nothing_outside_sees_a_measurement() -> None:
    """Gradient checkpointing counts what is saved; autocast and gradients are as outside."""
    forget_choices()
    seen: list[Any] = []
    states: set[tuple[bool, bool]] = set()

    def watching(x: torch.Tensor) -> torch.Tensor:
        states.add((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
        return x * x

    x = torch.randn(3, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t) or t, lambda t: t):
        choice.kernel_pays("d", watching, watching, [x])
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        choice.kernel_pays("e", watching, watching, [x])
    assert seen == []
    assert states == {(True, False), (False, True)}
