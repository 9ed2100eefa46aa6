"""Fetch timm's own tests, which ship in its source distribution only, for the version of timm installed here.

    python tests/contract/fetch_timm_tests.py

They are unpacked beside the installed packages (sys.prefix/timm-tests/timm-<version>/tests); nothing is done where
they are already there. `make test` runs this before pytest, whose tests have no network.
"""

import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path


def timm_tests() -> Path:
    """Where the tests of the installed timm belong."""
    return Path(sys.prefix) / "timm-tests" / f"timm-{version('timm')}" / "tests"


def fetch() -> Path:
    """Download and unpack the tests, if they are not there yet."""
    folder = timm_tests()
    if (folder / "test_models.py").is_file():
        return folder
    with tempfile.TemporaryDirectory() as work:
        wanted = f"timm=={version('timm')}"
        pip = [sys.executable, "-m", "pip", "download", wanted, "--no-deps", "--no-binary", "timm", "-d", work]
        subprocess.run(pip, check=True)
        (archive,) = Path(work).glob("timm-*.tar.gz")
        with tarfile.open(archive) as tar:
            members = [m for m in tar.getmembers() if m.name.split("/")[1:2] == ["tests"]]
            tar.extractall(folder.parent.parent, members, filter="data")
    return folder


if __name__ == "__main__":
    print(fetch())
