"""The evaluate command: what is told before any work, and what is kept of work that is broken off."""

from __future__ import annotations

import json
import sys

import pytest
from typer.testing import CliRunner

from pilotfish.cli import app
from pilotfish.errors import InputError, MissingExtraError


@pytest.fixture
def outputs(tmp_path):
    place = tmp_path / "outputs.jsonl"
    place.write_text("".join(json.dumps({"output": f"cat {i}", "reference": "cat 1"}) + "\n" for i in range(3)))
    return place


def run(*words):
    return CliRunner().invoke(app, ["evaluate", *map(str, words)], catch_exceptions=False)


@pytest.fixture
def no_work(monkeypatch):
    def score(self, items):
        raise AssertionError("Something was scored.")

    monkeypatch.setattr("pilotfish.scorers.reference.Rouge.score", score)


@pytest.mark.parametrize("option", ["--out", "--report", "--learn-confidence"])
def test_a_place_that_cannot_be_written_is_told_before_anything_is_scored(outputs, tmp_path, no_work, option):
    folder = tmp_path / "a.jsonl"
    folder.mkdir()
    with pytest.raises(InputError, match=f"{option} is .* folder: give a file"):
        run(outputs, "-m", "rouge", option, folder)


def test_a_missing_package_for_parquet_is_told_before_anything_is_scored(outputs, tmp_path, no_work, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match="parquet"):
        run(outputs, "-m", "rouge", "-o", tmp_path / "scores.parquet")


@pytest.mark.parametrize("end", [KeyboardInterrupt(), RuntimeError("of the model's own")])
def test_a_run_that_ends_early_keeps_the_scores_of_finished_metrics(outputs, tmp_path, monkeypatch, end):
    def broken(self, items):
        raise end

    monkeypatch.setattr("pilotfish.scorers.reference.Chrf.score", broken)
    out = tmp_path / "scores.jsonl"
    result = CliRunner().invoke(app, ["evaluate", str(outputs), "-m", "rouge,bleu,chrf", "-o", str(out)])
    assert result.exit_code != 0
    assert "has the scores by rouge, bleu" in " ".join(result.output.split())
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["rouge"] for row in rows] == [0.5, 1.0, 0.5]
    assert all("chrf" not in row and "length" not in row for row in rows)
