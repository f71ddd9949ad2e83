from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pilotfish.cli.models import app
from pilotfish.errors import InputError
from pilotfish.models import catalog
from tests.models.servers import FileServer
from tests.models.test_catalog import BODY


def _run(*args: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, args)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout


def test_list_shows_licences_and_what_is_here(home: Path) -> None:
    code, out = _run("list")
    assert code == 0
    assert "Apache-2.0" in out
    assert "yes" not in out
    for entry in catalog.entries():
        assert entry.name in out


def test_pull_and_path_print_the_place(toy: FileServer, home: Path) -> None:
    place = home / "toy" / "toy.gguf"
    assert _run("pull", "toy") == (0, f"{place}\n")
    assert place.read_bytes() == BODY
    toy.files.clear()
    assert _run("path", "toy") == (0, f"{place}\n")


def test_an_unknown_name_is_told() -> None:
    with pytest.raises(InputError, match="no model 'nothing'"):
        _run("pull", "nothing")


def test_nothing_heavy_is_imported_to_start() -> None:
    script = (
        "import sys, pilotfish.cli.models, pilotfish.models.catalog, pilotfish.models.embedder, pilotfish.models.gguf, "
        "pilotfish.models.openai; "
        "print([m for m in ('onnx', 'onnxruntime', 'torch', 'aiohttp', 'tokenizers', 'scipy', 'sklearn', 'xllamacpp') "
        "if m in sys.modules])"
    )
    source = Path(__file__).parents[2] / "src"
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, env={"PYTHONPATH": str(source)}
    )
    assert run.stdout.decode().strip() == "[]"
