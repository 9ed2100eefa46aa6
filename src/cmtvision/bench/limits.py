"""The machine's own limit, measured beside the networks: matrix products in each precision, and copying memory.

Matrix products are ``torch.mm`` of square matrices (oneDNN or cuBLAS), in several sizes, of which the fastest counts;
int8 products are PyTorch's where it has them. A copy reads and writes an array larger than most caches: its rate counts
both, as networks do. fp32 on a GPU is without TF32, PyTorch's default.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from statistics import median
from typing import Any

import torch

from cmtvision.bench.comparison import spread
from cmtvision.bench.measure import timed_passes

SIDES = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192)}
COPY_BYTES = 256 * 2**20
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8}
KINDS = (*_DTYPES, "copy")


def measure_limits(
    kinds: Sequence[str],
    device: str,
    seconds: float,
    sides: Sequence[int] | None = None,
    copy_bytes: int = COPY_BYTES,
) -> dict[str, float]:
    """One round: what this process reaches, with as many threads as PyTorch uses.

    Args:
        kinds: of ``KINDS``.
        device: where.
        seconds: to spend on each kind, about.
        sides: of the matrices.
        copy_bytes: of the array that is copied.

    Returns:
        FLOP/s, for 'fp32 1024' and so on, and 'copy' in bytes/s. What PyTorch cannot do here, for want of a kernel or
        of memory, is left out.
    """
    sides = sides or SIDES.get(device.partition(":")[0], SIDES["cpu"])
    found: dict[str, float] = {}
    for kind in kinds:
        if kind == "copy":
            with suppress(RuntimeError):  # no room for two arrays
                step = _copy(copy_bytes, device)
                found[kind] = 2 * copy_bytes / _steady(step, device, seconds)
            continue
        for side in sides:
            with suppress(RuntimeError):  # no such kernel here: int8 on some GPUs
                step = _product(_DTYPES[kind], side, device)
                found[f"{kind} {side}"] = 2 * side**3 / _steady(step, device, seconds / len(sides))
    return found


def summarise(rounds: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Over rounds, for each kind: median and extremes, of the size of matrices with the best median.

    Args:
        rounds: what ``measure_limits`` gave.
    """
    best: dict[str, dict[str, Any]] = {}
    for name in sorted({name for one in rounds for name in one}):
        kind, _, side = name.partition(" ")
        found = spread([one[name] for one in rounds if name in one])
        assert found is not None
        if kind not in best or found["median"] > best[kind]["median"]:
            best[kind] = {**found, **({"side": int(side)} if side else {})}
    return best


def _product(dtype: torch.dtype, side: int, device: str) -> Callable[[], Any]:
    if dtype is torch.int8:
        a = torch.randint(-100, 100, (side, side), dtype=dtype, device=device)
        return lambda: torch._int_mm(a, a)
    a = torch.randn(side, side, device=device).to(dtype)
    out = torch.empty_like(a)
    return lambda: torch.mm(a, a, out=out)


def _copy(num_bytes: int, device: str) -> Callable[[], Any]:
    a = torch.ones(num_bytes // 4, device=device)
    b = torch.zeros_like(a)
    return lambda: b.copy_(a)


def _steady(step: Callable[[], Any], device: str, seconds: float) -> float:
    """Median seconds of a step: a limit is what the machine does steadily, not at its luckiest."""
    return median(timed_passes(step, device, seconds, 3))
