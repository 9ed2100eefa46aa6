"""Installing as Makefile and README say, for real: make, pip and venv, with an index of tiny packages on the disk."""

import base64
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import pytest

ROOT = Path(__file__).parents[2]
PINS = dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), flags=re.MULTILINE))
TORCH, VISION = PINS["torch"], PINS["torchvision"]
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
METADATA = """\
Metadata-Version: 2.1
Name: cmtvision
Version: 1.0
Requires-Dist: torch
Requires-Dist: torchvision
Provides-Extra: all
Requires-Dist: probe; extra == "all"
Provides-Extra: dev
Requires-Dist: probe; extra == "dev"
"""
BACKEND = """\
import zipfile

def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    name, info = "cmtvision-1.0-py3-none-any.whl", "cmtvision-1.0.dist-info"
    with zipfile.ZipFile(f"{wheel_directory}/{name}", "w") as wheel:
        wheel.write("METADATA", f"{info}/METADATA")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(f"{info}/RECORD", f"{info}/METADATA,,\\n{info}/WHEEL,,\\n{info}/RECORD,,\\n")
    return name

build_wheel = build_editable
"""
PYPROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'


def add_wheel(index, name, version, requires=(), modules=1):
    """Put a package into an index; it has a command of its name, and modules that pip takes its time to compile."""
    folder = index / "simple" / name
    folder.mkdir(parents=True)
    info = f"{name}-{version}.dist-info"
    files = {f"{name}/__init__.py": "def main(): print('here')\n"}
    files |= {f"{name}/m{i}.py": "x = [i for i in range(9)]\n" * 200 for i in range(modules)}
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" + "".join(
        f"Requires-Dist: {one}\n" for one in requires
    )
    files[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{info}/entry_points.txt"] = f"[console_scripts]\n{name} = {name}:main\n"
    digests = {file: hashlib.sha256(text.encode()).digest() for file, text in files.items()}
    lines = [f"{file},sha256={base64.urlsafe_b64encode(one).decode().rstrip('=')}," for file, one in digests.items()]
    files[f"{info}/RECORD"] = "\n".join([*lines, f"{info}/RECORD,,\n"])
    wheel = f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(folder / wheel, "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
    (folder / "index.html").write_text(f'<!DOCTYPE html><a href="{quote(wheel)}">{wheel}</a>')


@pytest.fixture(scope="module")
def indexes(tmp_path_factory):
    """Two folders laid out as package indexes: one as PyPI, one as PyTorch's own, which lacks what torch needs."""
    pypi, cpu = (tmp_path_factory.mktemp(name) for name in ("pypi", "cpu"))
    add_wheel(pypi, "torch", TORCH, ["filelock"])
    add_wheel(pypi, "torchvision", VISION, [f"torch=={TORCH}"])
    add_wheel(pypi, "filelock", "1.0")
    add_wheel(pypi, "probe", "1.0", modules=300)
    add_wheel(cpu, "torch", f"{TORCH}+cpu", ["filelock"])
    add_wheel(cpu, "torchvision", f"{VISION}+cpu", [f"torch=={TORCH}"])
    return pypi / "simple", cpu / "simple"


@pytest.fixture
def clone(tmp_path):
    """This project's Makefile and its pins of torch, around a package that needs torch, torchvision, and probe."""
    folder = tmp_path / "clone"
    folder.mkdir()
    shutil.copy(ROOT / "Makefile", folder)
    (folder / "constraints.txt").write_text(f"torch=={TORCH}\ntorchvision=={VISION}\n")
    for name, text in {"pyproject.toml": PYPROJECT, "backend.py": BACKEND, "METADATA": METADATA}.items():
        (folder / name).write_text(text)
    return folder


def environment(indexes):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    return kept | {"PIP_INDEX_URL": indexes[0].as_uri(), "PIP_CONFIG_FILE": os.devnull, "PIP_NO_CACHE_DIR": "1"}


def installed(clone):
    """Name -> version of what a clone's environment holds."""
    listed = [clone / ".venv" / "bin" / "pip", "list", "--format", "json", "--disable-pip-version-check"]
    return {one["name"]: one["version"] for one in json.loads(subprocess.check_output(listed))}


def make(clone, indexes, *words):
    command = ["make", *words, f"TORCH_INDEX={indexes[1].as_uri()}", f"PYTHON={sys.executable}"]
    done = subprocess.run(command, cwd=clone, env=environment(indexes), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_make_installs_in_steps_changes_torch_and_survives_a_kill(clone, indexes):
    make(clone, indexes, ".venv/.ready-base")
    here = installed(clone)
    assert (here["torch"], here["torchvision"]) == (TORCH, VISION)
    assert "probe" not in here
    command = ["make", ".venv/.ready-dev", "TORCH=cpu", f"TORCH_INDEX={indexes[1].as_uri()}"]
    killed = subprocess.Popen(command, cwd=clone, env=environment(indexes), start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while not (half := list(clone.glob(".venv/lib/*/site-packages/probe-1.0.dist-info/METADATA"))):
            assert time.monotonic() < deadline
            assert killed.poll() is None
            time.sleep(0.005)
    finally:
        with suppress(ProcessLookupError):  # it has ended, and an assertion above says so
            os.killpg(killed.pid, signal.SIGKILL)
        killed.wait()
    assert not (half[0].parent / "INSTALLER").exists()
    assert not (clone / ".venv/bin/probe").exists()
    make(clone, indexes, ".venv/.ready-dev", "TORCH=cpu")
    here = installed(clone)
    assert (here["torch"], here["torchvision"]) == (f"{TORCH}+cpu", f"{VISION}+cpu")
    assert subprocess.run([clone / ".venv/bin/probe"], capture_output=True, check=True).stdout == b"here\n"
    for target in ("base", "dev"):  # demo after test, and test again: nothing is left to do, and torch stays
        assert "up to date" in make(clone, indexes, f".venv/.ready-{target}")


@pytest.mark.slow
def test_the_pages_pip_lines_leave_torch_as_they_found_it(clone, indexes):
    """The line without CUDA first, as the page says, then the others; the real index is not reached from here."""
    subprocess.run([sys.executable, "-m", "venv", clone / ".venv"], check=True)
    lines = sorted(pip_lines(), key=lambda line: "--index-url" not in line)
    assert len(lines) == 3
    for line in lines:
        words = shlex.split(line.replace(CPU_INDEX, indexes[1].as_uri()))
        command = [clone / ".venv" / "bin" / "pip", *words[1:]]
        subprocess.run(command, cwd=clone, env=environment(indexes), check=True, capture_output=True)
    here = installed(clone)
    assert (here["torch"], here["torchvision"]) == (f"{TORCH}+cpu", f"{VISION}+cpu")
    assert {"filelock", "probe"} <= set(here)


def pip_lines():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return [line.partition("  #")[0] for line in re.findall(r"^\$ (pip .*)$", readme, flags=re.MULTILINE)]


def test_the_page_and_make_take_the_build_without_cuda_from_one_place(tmp_path):
    def planned(*words):
        lines = subprocess.check_output(["make", "-n", *words, f"VENV={tmp_path}"], cwd=ROOT, text=True).splitlines()
        return [line for line in lines if "/pip install " in line]

    plain, cpu, tested = planned("demo"), planned("demo", "TORCH=cpu"), planned("test")
    assert [line.split()[-1] for line in plain] == ["."]
    assert [line.split()[-1] for line in tested] == [".", "'.[dev]'"]
    assert cpu[0].endswith(f"--no-deps --index-url {CPU_INDEX} torch torchvision")
    assert cpu[1:] == plain
    (line,) = [line for line in pip_lines() if "--index-url" in line]
    assert {"torch", "torchvision", "--no-deps", "-c", "constraints.txt", CPU_INDEX} <= set(line.split())
    assert "make demo TORCH=cpu" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_an_old_python_is_refused_in_one_line(clone):
    older = f"{sys.executable} -c 'import sys; sys.version_info = (3, 10, 9); exec(sys.argv[2])'"
    done = subprocess.run(["make", "demo", f"PYTHON={older}"], cwd=clone, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == "cmtvision needs Python 3.11 or newer; set PYTHON=/path/to/python3.11\n"
    assert not (clone / ".venv").exists()
