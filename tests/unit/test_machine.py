"""What a process may use: its affinity, and the limits of control groups of both versions, real ones where we may."""

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cmtvision import machine

GB = 1_000_000_000
ALL = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """groups(lines of /proc/self/cgroup, {file below /sys/fs/cgroup: content}) makes them what is read."""

    def make(lines, files):
        own = tmp_path / "own"
        own.write_text("\n".join(lines) + "\n")
        for name, content in files.items():
            file = tmp_path / "cgroup" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{content}\n")
        monkeypatch.setattr(machine, "_OWN_GROUPS", own)
        monkeypatch.setattr(machine, "_CGROUPS", tmp_path / "cgroup")

    return make


def test_nothing_bounds_a_process_without_control_groups(groups):
    groups(["0::/"], {})
    assert machine.cpu_quota() is None
    assert machine.usable_processors() == ALL
    total, available = machine.memory()
    assert 0 < available <= total


def test_a_container_of_version_2_sees_its_limits_at_the_root(groups):
    files = {"cpu.max": "150000 100000", "memory.max": 2 * GB, "memory.current": GB, "memory.stat": "inactive_file 9"}
    groups(["0::/"], files)
    assert machine.cpu_quota() == 2  # one and a half, rounded up
    assert machine.usable_processors() == min(2, ALL)
    assert machine.memory() == (2 * GB, GB + 9)


def test_the_tightest_group_above_decides(groups):
    """SLURM and systemd put a process some levels deep, and bound the levels above it."""
    files = {
        "job/cpu.max": "100000 100000",
        "job/step/cpu.max": "max 100000",
        "job/memory.max": 3 * GB,
        "job/memory.current": GB,
        "job/step/memory.max": "max",
        "job/step/memory.current": GB // 2,
    }
    groups(["0::/job/step"], files)
    assert machine.cpu_quota() == 1
    assert machine.usable_cores() == machine.usable_processors() == 1
    assert machine.memory() == (3 * GB, 2 * GB)


def test_version_1_has_a_folder_for_each_controller(groups):
    files = {
        "cpu,cpuacct/box/cpu.cfs_quota_us": 100000,
        "cpu,cpuacct/box/cpu.cfs_period_us": 100000,
        "cpu,cpuacct/cpu.cfs_quota_us": -1,
        "cpu,cpuacct/cpu.cfs_period_us": 100000,
        "memory/box/memory.limit_in_bytes": 2 * GB,
        "memory/box/memory.usage_in_bytes": 2 * GB,
        "memory/box/memory.stat": f"inactive_file 5\ntotal_inactive_file {GB}",
        "memory/memory.limit_in_bytes": 9223372036854771712,
    }
    groups(["5:cpu,cpuacct:/box", "4:memory:/box", "0::/"], files)
    assert machine.cpu_quota() == 1
    assert machine.memory() == (2 * GB, GB)


def test_a_container_may_name_the_group_of_its_host(groups):
    """Docker with version 1 shows the host's path, and mounts the container's own group as the root."""
    files = {"cpu/cpu.cfs_quota_us": 200000, "cpu/cpu.cfs_period_us": 100000}
    groups(["4:cpu:/docker/0123456789abcdef"], files)
    assert machine.cpu_quota() == 2


@pytest.mark.parametrize("content", ["", "max", "nonsense", "0 0", "100000 0"])
def test_a_limit_that_makes_no_sense_is_none(groups, content):
    groups(["0::/"], {"cpu.max": content, "memory.max": content, "memory.current": content})
    assert machine.cpu_quota() is None
    assert machine.memory()[0] > 0


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_affinity_counts():
    script = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); from cmtvision import machine; "
        "print(machine.usable_processors(), machine.usable_cores(), machine.default_threads())"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["1", "1", "1"]


def test_what_the_user_set_for_threads_wins(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert machine.default_threads() == 5
    for nothing in ("", "many", "0"):
        monkeypatch.setenv("OMP_NUM_THREADS", nothing)
        assert machine.default_threads() == machine.usable_cores()


def test_threads_sleep_soon_unless_the_user_chose_otherwise():
    plain, passive, own = {}, {"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "7", "OPENBLAS_THREAD_TIMEOUT": "9"}
    for environment in (plain, passive, own):
        machine.sleep_soon(environment)
    assert plain == {"GOMP_SPINCOUNT": machine.SPIN, "OPENBLAS_THREAD_TIMEOUT": machine.BLAS_SPIN}
    assert passive == {"OMP_WAIT_POLICY": "active", "OPENBLAS_THREAD_TIMEOUT": machine.BLAS_SPIN}
    assert own == {"GOMP_SPINCOUNT": "7", "OPENBLAS_THREAD_TIMEOUT": "9"}


@pytest.mark.parametrize(
    ("flags", "saturates"),
    [("sse2 avx2", True), ("sse2 avx512f", True), ("sse2 avx2 avx_vnni", False), ("sse2 avx512_vnni", False),
     ("fp asimd", False), ("", False)],
)  # fmt: skip
def test_8_bit_products_saturate_on_x86_before_vnni(flags, saturates, monkeypatch):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(machine, "cpu_flags", lambda: frozenset(flags.split()))
    assert machine.saturates_int8() == saturates


@pytest.mark.parametrize(("bound", "saturates", "lacks_bf16"), [
    ("AVX2", True, True), ("avx512_core", True, True), ("AVX512_CORE_VNNI", False, True),
    ("AVX512_CORE_BF16", False, False), ("", False, False),
])  # fmt: skip
def test_onednn_may_be_kept_to_less_than_the_processor_has(bound, saturates, lacks_bf16, monkeypatch):
    monkeypatch.setattr(machine, "cpu_flags", lambda: frozenset({"sse2", "avx512_vnni", "avx512_bf16"}))
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", bound)
    assert (machine.saturates_int8(), machine.onednn_lacks_bf16()) == (saturates, lacks_bf16)


def test_instruction_sets_are_those_of_the_processor():
    assert set(machine.instruction_sets()) <= machine.cpu_flags()
    assert "flags" not in machine.instruction_sets()
    if "avx2" in machine.cpu_flags():
        assert "avx2" in machine.instruction_sets()


@pytest.fixture
def real_group():
    """A real control group of one processor and 2 GB, for a child to enter: the tasks files to write its number to."""
    name = f"cmtvision-test-{os.getpid()}"
    limits = {"cpu": {"cpu.cfs_quota_us": "100000"}, "memory": {"memory.limit_in_bytes": str(2 * 2**30)}}
    made = []
    try:
        for controller, values in limits.items():
            folder = Path("/sys/fs/cgroup") / controller / name
            folder.mkdir()
            made.append(folder)
            for file, value in values.items():
                (folder / file).write_text(value)
    except OSError as error:
        for folder in made:
            folder.rmdir()
        pytest.skip(f"no control groups of version 1 that this user may make: {error}")
    yield [folder / "tasks" for folder in made]
    for folder in made:
        folder.rmdir()


def in_group(tasks, script):
    """What a child prints as JSON that entered the groups before it began."""

    def enter():
        for file in tasks:
            file.write_text(str(os.getpid()))

    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        capture_output=True, text=True, check=False, env=environment, preexec_fn=enter,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_a_real_group_of_one_processor(real_group):
    script = """
import json
from cmtvision import machine
from cmtvision.artefact.runtimes.torch import set_threads
from cmtvision.engine.batch_size import free_bytes
from cmtvision.engine.loaders import loader_settings
from cmtvision.recipe import DataSection
import torch
set_threads(None)
print(json.dumps([machine.cpu_quota(), machine.usable_processors(), torch.get_num_threads(), machine.memory()[0],
                  free_bytes(torch.device("cpu")), loader_settings(DataSection())["num_workers"]]))
"""
    quota, processors, threads, total, free, workers = in_group(real_group, script)
    assert quota == processors == threads == 1
    assert total == 2 * 2**30
    assert 0 < free < 2 * 2**30
    assert workers == 0


def test_freed_memory_is_kept_where_the_c_library_can_and_nothing_happens_where_it_cannot(monkeypatch):
    code = (
        "from cmtvision.machine import keep_freed_memory\n"
        "import resource\n"
        "keep_freed_memory()\n"
        "bytearray(50_000_000)\n"  # asked of the system once
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(20): bytearray(50_000_000)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        assert int(done.stdout) < 20_000  # of 244,000 pages that would have been filled with zeros

    class Other:
        """A C library without mallopt."""

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Other())
    machine.keep_freed_memory()
