"""What every test shares: seeded torch, a browser to open pages in, and this folder on the path."""

import os
import sys

import pytest

from browser import open_page  # noqa: F401  # a fixture for every test

for _name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):  # of `make test`; a make that a test starts is nobody's child
    os.environ.pop(_name, None)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Seed torch before each test that has it loaded, so that a failure can be repeated."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
