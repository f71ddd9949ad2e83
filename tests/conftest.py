"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of shared real data; tests that need it skip where it is absent."""
    path = Path(os.environ.get("PILOTFISH_DATA", ROOT / ".." / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no shared data at {path}: set PILOTFISH_DATA to its folder")
    return path
