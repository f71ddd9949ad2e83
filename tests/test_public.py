"""The one public door: every name opens, nothing heavy comes with it."""

from __future__ import annotations

import subprocess
import sys

import pytest

import pilotfish as pf


@pytest.mark.parametrize("name", pf.__all__)
def test_every_public_name_opens(name: str) -> None:
    assert getattr(pf, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = pf.nothing


def test_the_import_is_light() -> None:
    code = "import pilotfish, sys; print([m for m in ('numpy', 'scipy', 'pydantic', 'aiohttp') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
