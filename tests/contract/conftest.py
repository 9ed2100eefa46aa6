"""The markers timm's own tests carry, made known to this run."""

import pytest
from timm_suite import MARKERS


def pytest_configure(config: pytest.Config) -> None:
    """Register timm's markers: unknown ones are errors here."""
    for marker in MARKERS:
        config.addinivalue_line("markers", f"{marker}: a mark of timm's own tests")
