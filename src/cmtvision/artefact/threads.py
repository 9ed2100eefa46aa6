"""How many threads a runtime takes by default: one for each core of its own that this process may use."""

import os
from pathlib import Path


def default_threads() -> int:
    """OMP_NUM_THREADS where it is set, as PyTorch takes it; else ``usable_cores``."""
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(wanted) if wanted.isdigit() and int(wanted) > 0 else usable_cores()


def usable_cores() -> int:
    """Physical cores within this process's affinity, cut by a container's quota."""
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    # processors that share a core name the same siblings; where the system does not say, each is a core of its own
    cores = {_read(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in allowed}
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").partition(" ")
    limit = -(-int(quota) // int(period)) if quota.isdigit() and period.isdigit() and int(period) else len(cores)
    return max(1, min(len(cores), limit))


def _read(file: str) -> str:
    try:
        return Path(file).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
