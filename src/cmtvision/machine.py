"""The resources this process may use, read from the system: processors, memory, instructions.

A container or a batch queue limits a process by its affinity and by control groups (cgroup v1 and v2). A group's limit
holds for the groups in it too, so all of them up to the root count, and the tightest one decides. PyTorch, OpenMP and
Python's process pools respect the affinity only.
"""

import ctypes
import os
from collections.abc import Iterator, MutableMapping
from functools import cache
from pathlib import Path

SPIN = "2000"
"""Turns that an OpenMP thread waits in a loop before it sleeps; see ``sleep_soon``."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of mallopt's settings, in malloc.h
BLAS_SPIN = "4"
"""The same for OpenBLAS, as a power of two; the least that it takes."""
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")
_COMPILED = (
    "sse", "ssse", "avx", "amx", "fma", "f16c", "bmi", "abm", "popcnt", "movbe", "adx", "aes", "vaes", "pclmul",
    "vpclmul", "gfni", "sha", "asimd", "sve", "sme", "fphp", "bf16", "i8mm", "atomics", "crc32", "dotprod",
)  # fmt: skip
_BEFORE_VNNI = ("SSE41", "AVX", "AVX2", "AVX512_CORE")
_UNLIMITED = 2**60  # cgroup v1 writes "no limit" as a number near 2**63
_WITHOUT_PROC = 4 * 1024**3  # memory that is assumed where the system does not tell: a cautious laptop


def usable_processors() -> int:
    """Logical processors in this process's affinity, cut by the quota of its control groups; at least 1."""
    return max(1, min(len(_affinity()), cpu_quota() or len(_affinity())))


def usable_cores() -> int:
    """Physical cores in this process's affinity, cut by the quota of its control groups; at least 1."""
    # processors that share a core name the same siblings; where the system does not say, each is a core of its own
    cores = {
        _read(Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")) or cpu for cpu in _affinity()
    }
    return max(1, min(len(cores), cpu_quota() or len(cores)))


def default_threads() -> int:
    """Threads for arithmetic: OMP_NUM_THREADS where the user set it, as PyTorch takes it; else ``usable_cores``."""
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(wanted) if wanted.isdigit() and int(wanted) > 0 else usable_cores()


def cpu_quota() -> int | None:
    """Processors' worth of time that the control groups allow, rounded up; None if nothing limits it."""
    found = []
    for group in _groups("cpu"):
        quota, _, period = _read(group / "cpu.max").partition(" ")  # v2: "100000 100000" or "max 100000"
        if not quota:
            quota, period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")  # v1: -1 for no limit
        if quota.isdigit() and period.isdigit() and int(quota) and int(period):
            found.append(-(-int(quota) // int(period)))
    return min(found, default=None)


def memory() -> tuple[int, int]:
    """(total, available) bytes for this process: of the machine, or within the limits of its control groups.

    What a group holds of file contents counts as available, since the system drops it when memory is wanted.
    """
    facts = {}
    for line in _read(Path("/proc/meminfo")).splitlines():
        name, _, rest = line.partition(":")
        facts[name] = int(rest.split()[0]) * 1024
    total = facts.get("MemTotal", _WITHOUT_PROC)
    available = facts.get("MemAvailable", total)
    for group in _groups("memory"):
        limit = _number(group / "memory.max") or _number(group / "memory.limit_in_bytes")  # v2, v1
        if not limit or limit >= min(total, _UNLIMITED):
            continue
        used = _number(group / "memory.current") or _number(group / "memory.usage_in_bytes") or 0
        total = limit
        available = min(available, max(0, limit - used + _file_contents(group)))
    return total, min(total, available)


def cpu_flags() -> frozenset[str]:
    """The instruction sets of the processor by Linux's names (avx2, avx512_bf16, amx_tile ...); empty elsewhere."""
    return frozenset(_of_cpu("flags", "Features").split())


def instruction_sets() -> list[str]:
    """Those of ``cpu_flags`` that a compiler may make use of, sorted."""
    return sorted(flag for flag in cpu_flags() if flag.startswith(_COMPILED))


def saturates_int8() -> bool:
    """Whether this processor's 8-bit products may saturate at 16 bits on the way: x86-64 from before VNNI.

    Two neighbouring products of a uint8 and an int8 value are added in 16 bits there, which 255 * 127 * 2 exceeds.
    oneDNN also does so where it is kept to such instructions.
    """
    if _onednn_bound() in _BEFORE_VNNI:
        return True
    flags = cpu_flags()
    return "sse2" in flags and not flags & {"avx512_vnni", "avx_vnni", "amx_int8"}


@cache
def mkl_without_avx512() -> bool:
    """Whether Intel's MKL, which PyTorch's linear layers use in float32, leaves AVX-512 unused that is there.

    It keeps it to Intel's processors; oneDNN, which the convolutions use, does not.
    """
    return "avx512f" in cpu_flags() and _of_cpu("vendor_id") not in ("", "GenuineIntel")


def onednn_lacks_bf16() -> bool:
    """Whether oneDNN is kept to instructions without bfloat16, whatever the processor has."""
    return _onednn_bound() in (*_BEFORE_VNNI, "AVX2_VNNI", "AVX512_CORE_VNNI")


def sleep_soon(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let threads of OpenMP and of NumPy's OpenBLAS sleep soon after they run out of work, unless the user has chosen.

    A thread that waits in a loop takes a processor away from whoever has work: another program, a loader process, or
    the thread that it waits for. GNU's OpenMP, which PyTorch for Linux brings, waits for milliseconds; ``SPIN`` turns
    are far fewer, and cost nothing when idle (benchmarks/records/busy-cpu.json). It reads the setting when it is
    loaded, so this comes before torch is imported, and child processes inherit it. OpenBLAS waits for 2 ** 26 turns.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & environment.keys():
        environment["GOMP_SPINCOUNT"] = SPIN
    environment.setdefault("OPENBLAS_THREAD_TIMEOUT", BLAS_SPIN)


def keep_freed_memory() -> None:
    """Let this process keep memory that it frees, for the next maps of a network: nothing is asked of the system then.

    Otherwise glibc asks for every large map and returns it, and the system fills it with zeros each time. On other
    systems this does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library
        return
    mallopt(_MMAP_THRESHOLD, 1 << 30)
    mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)


def _onednn_bound() -> str:
    """The instructions that the user keeps oneDNN to, by its own names; '' for none."""
    return (os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "").upper()


def _of_cpu(*names: str) -> str:
    """What Linux says of the first processor under one of these names; '' for nothing."""
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        if line.startswith(names):
            return line.partition(":")[2].strip()
    return ""


def _affinity() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))  # macOS, Windows


def _groups(controller: str) -> Iterator[Path]:
    """The folders of this process's control groups for 'cpu' or 'memory', from its own up to the root."""
    for line in _read(_OWN_GROUPS).splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            mounts = [_CGROUPS, _CGROUPS / "unified"]  # v2, by itself or beside v1
        elif controller in controllers.split(","):
            mounts = [_CGROUPS / controllers, _CGROUPS / controller]
        else:
            continue
        inner = Path(path.lstrip("/"))
        for mount in mounts:
            # in a container the path may be the host's, and the container's own group the root of what is mounted
            yield from (mount / group for group in (inner, *inner.parents) if (mount / group).is_dir())


def _file_contents(group: Path) -> int:
    """Bytes of files that a group and those in it keep in memory and can do without."""
    facts = dict(line.split(" ", 1) for line in _read(group / "memory.stat").splitlines() if " " in line)
    value = facts.get("total_inactive_file") or facts.get("inactive_file", "0")  # v1 counts the groups inside apart
    return int(value) if value.isdigit() else 0


def _number(file: Path) -> int | None:
    text = _read(file)
    return int(text) if text.isdigit() else None


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
