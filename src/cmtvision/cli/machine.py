"""Facts about this machine: processor, memory, disk, GPU; read from the system, limits of a container included."""

import os
import platform
import shutil
from pathlib import Path
from typing import Any

_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8")
_GB = 1e9


def describe_machine(probe: dict[str, Any]) -> dict[str, str]:
    """Facts in words; ``probe`` holds what torch said of itself in a child process."""
    gpus = list(probe.get("gpus") or []) or (["Apple GPU (mps)"] if probe.get("mps") else [])
    build = "CUDA/ROCm " + str(probe["cuda_build"]) if probe.get("cuda_build") else "CPU only"
    total, free = _memory()
    shm = shared_memory()
    disk = shutil.disk_usage(".")
    return {
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "processor": _processor(),
        "instructions": ", ".join(flag for flag in _FLAGS if flag in _cpu_flags()) or "no AVX2",
        "cores": f"{usable_cores()} usable of {os.cpu_count()}",
        "oneDNN": "yes" if probe.get("mkldnn") else "no",
        "memory": f"{free / _GB:.1f} GB available of {total / _GB:.1f} GB" if total else "unknown",
        "/dev/shm": f"{shm / _GB:.1f} GB free" if shm is not None else "none",
        "GPU": ", ".join(gpus) or "none",
        "torch build": build if "cuda_build" in probe else "torch cannot be imported",
        "disk here": f"{disk.free / _GB:.1f} GB free of {disk.total / _GB:.1f} GB",
    }


def usable_cores() -> int:
    """Cores that this process may use: its affinity, cut by a container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").partition(" ")
    if quota.isdigit() and period.strip().isdigit():
        cores = min(cores, max(1, -(-int(quota) // int(period))))
    return cores


def shared_memory() -> int | None:
    """Bytes free in /dev/shm, None where there is none."""
    try:
        return shutil.disk_usage("/dev/shm").free
    except OSError:
        return None


def _memory() -> tuple[int, int]:
    """(total, available) bytes, a container's limit included; zeros where the system does not say."""
    facts = {}
    for line in _read("/proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        facts[name] = int(rest.split()[0]) * 1024
    total, free = facts.get("MemTotal", 0), facts.get("MemAvailable", 0)
    limit, used = _read("/sys/fs/cgroup/memory.max").strip(), _read("/sys/fs/cgroup/memory.current").strip()
    if limit.isdigit() and int(limit) < total:
        total = int(limit)
        free = min(free, max(0, total - int(used or 0)))
    return total, free


def _processor() -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _cpu_flags() -> set[str]:
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith(("flags", "Features")):
            return set(line.partition(":")[2].split())
    return set()


def _read(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except OSError:
        return ""
