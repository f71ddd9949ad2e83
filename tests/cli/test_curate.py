"""``pilotfish curate`` and ``pilotfish mix``: files in, files and a report out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pilotfish.cli import app
from tests.curation.texts import kept_ids, prose, write_lines

RECIPE = """
[[step]]
use = "rules"
sets = ["gopher_quality"]

[[step]]
use = "exact_dedup"

[[step]]
use = "importance_resampling"
like = "like.jsonl"
n = 4
"""


def run(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
    return f"{result.output} {result.exception or ''}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = write_lines(tmp_path / "a.jsonl", [*(prose(i) for i in range(10)), prose(3), "too short"])
    made.write_text(made.read_text() + "{broken\n")
    write_lines(tmp_path / "like.jsonl", [prose(50), prose(51)])
    (tmp_path / "web.toml").write_text(RECIPE)
    return tmp_path


def test_a_recipe_with_its_report(folder: Path) -> None:
    words = ["curate", folder / "a.jsonl", "-r", folder / "web.toml", "-o", folder / "out", "-w", "1"]
    said = run(*words, "--report", folder / "report.html", "--dropped")
    assert "Kept 4 of 12 documents" in said
    assert len(kept_ids(folder / "out")) == 4
    page = (folder / "report.html").read_text()
    for shown in ("gopher_short_doc", "duplicate", "not_drawn", "broken_json", "too short"):
        assert shown in page
    rows = [json.loads(line) for p in (folder / "out/dropped").iterdir() for line in p.read_text().splitlines()]
    assert sum("dropped" in row for row in rows) == 8
    assert sum("rejected" in row for row in rows) == 1
    assert "Kept 4 of 12" in run(*words, "--dropped")
    wanted = (folder / "like.jsonl").read_text()
    write_lines(folder / "like.jsonl", [prose(50), prose(52)])
    assert "files of steps that have changed since" in run(*words, "--dropped")
    (folder / "like.jsonl").write_text(wanted)
    assert "Kept 4 of 12" in run(*words, "--dropped")
    (folder / "web.toml").write_text(RECIPE.replace("n = 4", "n = 3"))
    assert "another recipe" in run(*words, "--dropped")
    (folder / "web.toml").write_text(RECIPE.replace("n = 4", "count = 4"))
    assert "has key 'count'" in run(*words)


@pytest.mark.parametrize("method", ["doremi", "autoscale", "mixing_agent", "presence", "natural"])
def test_domains_are_weighed(method: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "domains").mkdir()
    write_lines(tmp_path / "domains" / "prose.jsonl", [prose(i) for i in range(8)])
    write_lines(tmp_path / "domains" / "lists.jsonl", ["item, " * 300, "note; " * 300])
    said = run("mix", tmp_path / "domains", "-m", method, "--steps", "8", "-o", tmp_path / "w.json")
    made = json.loads((tmp_path / "w.json").read_text())
    assert set(made["weights"]) == {"lists", "prose"}
    assert sum(made["weights"].values()) == pytest.approx(1, abs=1e-5)
    assert set(made["held_out"]) == {"uniform", "natural", method}
    assert "nats a byte" in said
    assert "use one of doremi" in run("mix", tmp_path / "domains", "-m", "best")


def test_domains_are_told_apart_by_their_whole_names(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    domains = tmp_path / "domains"
    domains.mkdir()
    for name in ("en.web.jsonl", "en.books.jsonl", "en.web.jsonl.d/a.jsonl"):
        (domains / name).parent.mkdir(exist_ok=True)
        write_lines(domains / name, [prose(i) for i in range(8)])
    run("mix", domains, "-m", "natural", "--steps", "4", "-o", tmp_path / "w.json")
    assert set(json.loads((tmp_path / "w.json").read_text())["weights"]) == {"en.web", "en.books", "en.web.jsonl.d"}
    (domains / "empty").mkdir()
    assert "Domain 'empty' has 0 bytes" in run("mix", domains, "-m", "natural")


def test_what_a_run_wrote_is_mixed_without_its_report(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    texts = {"a": [prose(i) for i in range(9)], "b": [prose(8 + i) for i in range(9)]}
    files = [write_lines(tmp_path / f"{name}.jsonl", made) for name, made in texts.items()]
    (tmp_path / "r.toml").write_text('[[step]]\nuse = "exact_dedup"\n')
    run("curate", *files, "-r", tmp_path / "r.toml", "-o", tmp_path / "out", "--dropped")
    assert list((tmp_path / "out" / "dropped").iterdir())
    run("mix", tmp_path / "out", "-m", "natural", "--steps", "4", "-o", tmp_path / "w.json")
    assert set(json.loads((tmp_path / "w.json").read_text())["weights"]) == {"000000-a", "000001-b"}
