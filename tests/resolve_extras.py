"""Ask the package index whether every extra can be installed; or write constraints.txt.

    python tests/resolve_extras.py                      what `make resolve` and CI run
    python tests/resolve_extras.py --write [--upgrade]  what `make constraints` runs

All extras are resolved together, with constraints.txt and without: versions that suit all of them suit each. Only
where that fails are they resolved one by one, to name the one at fault. Nothing is installed: uv reads the packages'
metadata, some seconds a machine. PIP_INDEX_URL names another index, as it does for pip.
"""

import os
import re
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
MACHINES = {  # what uv calls them; the oldest Python that pyproject.toml allows, and the later ones
    "Linux, Python 3.11.0": ("3.11.0", "x86_64-unknown-linux-gnu"),
    "Linux, Python 3.12": ("3.12", "x86_64-unknown-linux-gnu"),
    "Linux, Python 3.13": ("3.13", "x86_64-unknown-linux-gnu"),
    "Linux, Python 3.14": ("3.14", "x86_64-unknown-linux-gnu"),
    "Linux on ARM, Python 3.12": ("3.12", "aarch64-manylinux_2_35"),
    "macOS 14, Python 3.12": ("3.12", "aarch64-apple-darwin"),
    "Windows, Python 3.12": ("3.12", "x86_64-pc-windows-msvc"),
}
HEADER = """\
# Versions of everything that any extra needs. Those for Linux x86-64 and Python 3.11 were tested together; the same
# ones resolve on the other systems that tests/resolve_extras.py lists. Written by: make constraints
"""


def extras() -> list[str]:
    """The names of all extras in pyproject.toml."""
    return list(
        tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    )


def uv(*options: str) -> subprocess.CompletedProcess[str]:
    """Run ``uv pip compile pyproject.toml`` with some options."""
    environment = {"MACOSX_DEPLOYMENT_TARGET": "14.0", "UV_PYTHON_DOWNLOADS": "never", **os.environ}
    if "PIP_INDEX_URL" in os.environ:
        environment.setdefault("UV_DEFAULT_INDEX", os.environ["PIP_INDEX_URL"])
    words = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--python", sys.executable, "--no-header"]
    words += ["pyproject.toml", *options]
    return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def pinned(text: str) -> set[str]:
    """The names of the packages in a list of pinned versions."""
    return {str(canonicalize_name(name)) for name in re.findall(r"^([\w.-]+)==", text, flags=re.MULTILINE)}


def faults(machine: str, constrained: bool) -> list[str]:
    """What is wrong on a machine: a line for each extra that cannot be installed, or for what no constraint pins."""
    python, platform = MACHINES[machine]
    where = ["--python-version", python, "--python-platform", platform]
    where += ["--constraint", CONSTRAINTS.name] if constrained else []
    named = f"{machine}, {'with' if constrained else 'without'} constraints"
    done = uv("--all-extras", *where)
    if done.returncode == 0:
        loose = sorted(pinned(done.stdout) - pinned(CONSTRAINTS.read_text(encoding="utf-8"))) if constrained else []
        return [f"{named}: constraints.txt does not pin {', '.join(loose)}; run make constraints"] if loose else []
    found = []
    for extra in ["", *extras()]:
        alone = uv(*(["--extra", extra] if extra else []), *where)
        if alone.returncode:
            found.append(f"{named}: {f'extra {extra!r}' if extra else 'cmtvision itself'}: {alone.stderr.strip()}")
    return found or [f"{named}: each extra alone can be installed, all together cannot: {done.stderr.strip()}"]


def check() -> int:
    """Resolve on every machine, with and without constraints; 1 where anything fails."""
    cases = [(machine, constrained) for machine in MACHINES for constrained in (True, False)]
    with ThreadPoolExecutor(4) as pool:  # they wait for the index, mostly
        found = [line for lines in pool.map(lambda case: faults(*case), cases) for line in lines]
    for line in found:
        print(line)
    print(f"{len(extras())} extras on {len(MACHINES)} machines, with constraints and without: {len(found)} faults")
    return 1 if found else 0


def write(upgrade: bool) -> int:
    """Write constraints.txt for every system at once, keeping the versions in it where they still do."""
    done = uv(
        "--all-extras", "--universal", "--python-version", "3.11", "--no-annotate", "--output-file", CONSTRAINTS.name,
        *(["--upgrade"] if upgrade else []),
    )  # fmt: skip
    if done.returncode:
        print(done.stderr.strip())
        return 1
    CONSTRAINTS.write_text(HEADER + CONSTRAINTS.read_text(encoding="utf-8"), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(write("--upgrade" in sys.argv) if "--write" in sys.argv else check())
