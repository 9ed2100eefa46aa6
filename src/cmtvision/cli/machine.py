"""Facts about this machine in words: processor, memory, disk, GPU, and the share of them that this process may use."""

import os
import platform
import shutil
from pathlib import Path
from typing import Any

from cmtvision import machine

ISA_SETTINGS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE",
                "DNNL_DEFAULT_FPMATH_MODE", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR")  # fmt: skip
"""Variables that make PyTorch, oneDNN or MKL compute with other instructions, or in another precision."""
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8")
_GB = 1e9


def describe_machine(probe: dict[str, Any]) -> dict[str, str]:
    """Facts in words; ``probe`` holds what torch reported in a child process."""
    gpus = list(probe.get("gpus") or []) or (["Apple GPU (mps)"] if probe.get("mps") else [])
    build = "CUDA/ROCm " + str(probe["cuda_build"]) if probe.get("cuda_build") else "CPU only"
    total, free = machine.memory()
    shm = shared_memory()
    disk = shutil.disk_usage(".")
    return {
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "processor": _processor(),
        "instructions": ", ".join(flag for flag in _FLAGS if flag in machine.cpu_flags()) or "no AVX2",
        "kernels": _kernels(probe),
        "cores": f"{machine.usable_processors()} usable of {os.cpu_count()}",
        "oneDNN": "yes" if probe.get("mkldnn") else "no",
        "memory": f"{free / _GB:.1f} GB available of {total / _GB:.1f} GB",
        "/dev/shm": f"{shm / _GB:.1f} GB free" if shm is not None else "none",
        "GPU": ", ".join(gpus) or "none",
        "torch build": build if "cuda_build" in probe else "torch cannot be imported",
        "disk here": f"{disk.free / _GB:.1f} GB free of {disk.total / _GB:.1f} GB",
    }


def isa_settings() -> list[str]:
    """Those of ``ISA_SETTINGS`` that are set, as NAME=value."""
    return [f"{name}={os.environ[name]}" for name in ISA_SETTINGS if os.environ.get(name)]


def _kernels(probe: dict[str, Any]) -> str:
    """PyTorch's instruction set, the types that oneDNN multiplies without emulation, and overriding settings."""
    if "capability" not in probe:
        return "torch cannot be imported"
    said = [f"torch {probe['capability']}"]
    if probe.get("mkldnn"):
        said.append(f"oneDNN {' and '.join(['fp32', *probe.get('onednn_types', [])])}")
    return ", ".join([*said, *isa_settings()])


def shared_memory() -> int | None:
    """Bytes free in /dev/shm, None if there is none."""
    try:
        return shutil.disk_usage("/dev/shm").free
    except OSError:
        return None


def _processor() -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _read(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except OSError:
        return ""
