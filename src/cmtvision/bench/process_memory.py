"""How much memory this process holds, and the most it held: in bytes, from the system or from a GPU's allocator.

On a GPU it is what PyTorch's allocator held; on a CPU the resident size (VmRSS, VmHWM), of which Linux can begin a new
maximum at any time.
"""

import ctypes
import sys
from contextlib import suppress
from pathlib import Path

import torch
import torch.nn.functional as F


def die_first() -> None:
    """Where memory runs out, Linux is to end this process rather than the user's others."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def settle(device: str) -> int | None:
    """Run each kind of kernel once, so that libraries are in memory, and begin to look for the peak; bytes now."""
    x = torch.rand(1, 8, 8, 8, device=device)  # (B, C, H, W)
    with torch.inference_mode():
        for layout in (torch.contiguous_format, torch.channels_last):
            y = F.conv2d(x.contiguous(memory_format=layout), torch.rand(8, 8, 3, 3, device=device), padding=1)
            y = F.conv2d(y, torch.rand(8, 1, 3, 3, device=device), padding=1, groups=8)
        tokens = F.linear(y.flatten(2).transpose(1, 2), torch.rand(8, 8, device=device))  # (B, N, C)
        F.gelu(F.layer_norm(F.scaled_dot_product_attention(tokens, tokens, tokens), (8,)))
    return restart_peak(device)


def restart_peak(device: str) -> int | None:
    """Give back to the system what is not used, begin to look for the peak anew; bytes now, None where nobody says."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)  # what building a network freed is not to be taken for a later need
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM starts anew at VmRSS
    return peak_bytes(device)


def peak_bytes(device: str) -> int | None:
    """The most memory so far, in bytes; None where nobody says."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated())
    if device != "cpu":
        return None
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        line = next((line for line in status.splitlines() if line.startswith("VmHWM:")), None)
        if line is not None:
            return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
