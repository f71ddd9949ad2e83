"""``pilotfish select`` with every method that needs no language model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pilotfish.cli import app
from tests.models.fixtures import pulled

METHODS = ["importance_resampling", "representative_selection", "lima", "mods", "d4", "herding", "random"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pulled("wordllama")
    about = ["the card was declined at the shop", "a recipe with flour and butter", "the match ended in a draw"]
    pool = [f"{text}, time {i}, and again {i * i}" for i in range(20) for text in about]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in pool), encoding="utf-8")
    like = [f"the card was declined at the shop again, number {i}" for i in range(10)]
    (tmp_path / "like.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in like), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("method", METHODS)
def test_select(folder: Path, method: str) -> None:
    words = ["select", str(folder / "pool.jsonl"), "--like", str(folder / "like.jsonl"), "-n", "9", "-m", method]
    result = CliRunner().invoke(app, [*words, "-o", str(folder / "out")], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    [file] = (folder / "out").glob("*.jsonl")
    chosen = [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()]
    assert "of 60 documents" in result.output
    assert 0 < len(set(chosen)) == len(chosen) <= 9
    if method in ("importance_resampling", "representative_selection"):
        assert sum("card" in text for text in chosen) > len(chosen) / 2


@pytest.mark.parametrize(("method", "said"), [("best", "use one of"), ("less", "needs a model")])
def test_what_is_wrong_is_said(folder: Path, method: str, said: str) -> None:
    words = ["select", str(folder / "pool.jsonl"), "--like", str(folder / "like.jsonl"), "-n", "9", "-m", method]
    result = CliRunner().invoke(app, [*words, "-o", str(folder / "out")], env={"COLUMNS": "200"})
    assert result.exit_code != 0
    assert said in f"{result.output} {result.exception}"
