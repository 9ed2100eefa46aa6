"""What every test shares: seeded torch, and the folder of this file on the path for `random_weights`."""

import sys

import pytest


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Seed torch before each test that has it loaded, so that a failure can be repeated."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
