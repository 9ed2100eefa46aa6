"""What every test shares: seeded torch, and this folder on the path for `random_weights`."""

import os
import sys

import pytest

for _name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):  # of `make test`; a make that a test starts is nobody's child
    os.environ.pop(_name, None)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Seed torch before each test that has it loaded, so that a failure can be repeated."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
