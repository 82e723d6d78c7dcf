"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# One thread for each test process: the suite runs several at once, and torch's threads would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No example has to be quick: a busy machine is no fault.
settings.register_profile("unhurried", settings.default, deadline=None)
settings.load_profile("unhurried")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real scans, or a skip with the reason."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real scans at {SHARED_DATA}")
    return SHARED_DATA
