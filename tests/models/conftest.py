"""Fixtures of the model tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pilotfish.errors import ModelError
from pilotfish.models import catalog, download
from tests.models.servers import FileServer, file_server


@pytest.fixture
def files() -> Iterator[FileServer]:
    """An HTTP server of files."""
    with file_server() as server:
        yield server


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of models."""
    monkeypatch.setenv("PILOTFISH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(download, "_reachable", {})
    monkeypatch.setattr(download, "_longest_wait", 0.02)
    return tmp_path / "home" / "models"


def pulled(name: str) -> Path:
    """A model of the real catalog; the test skips where it cannot be had."""
    if os.environ.get("PILOTFISH_TEST_MODELS") == "0" and not catalog.is_pulled(name):
        pytest.skip(f"{name} is not in the cache and PILOTFISH_TEST_MODELS is 0")
    try:
        return catalog.path(name)
    except ModelError as error:
        pytest.skip(f"{name} cannot be had: {error}")
