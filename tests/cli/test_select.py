"""``pilotfish select`` with every method that needs no language model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pilotfish.cli import app
from pilotfish.curation.documents import Document
from pilotfish.curation.picks import pick
from pilotfish.errors import InputError
from pilotfish.methods import cards
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


def test_as_many_as_asked_for_are_chosen_by_need(folder: Path) -> None:
    words = ["select", str(folder / "pool.jsonl"), "--like", str(folder / "like.jsonl"), "-n", "50", "-m", "mods"]
    result = CliRunner().invoke(app, [*words, "-o", str(folder / "out")], env={"COLUMNS": "200"})
    assert "Chose 50 of 60" in result.output


def test_what_is_passed_over_is_told(folder: Path) -> None:
    with (folder / "pool.jsonl").open("a") as file:
        file.write('{"other": 1}\nbroken\n')
    words = ["select", str(folder / "pool.jsonl"), "--like", str(folder / "like.jsonl"), "-n", "9"]
    result = CliRunner().invoke(app, [*words, "-o", str(folder / "out")], env={"COLUMNS": "200"})
    assert "Passed over 2 records" in result.output


def test_a_folder_that_is_not_empty_is_refused_before_anything_is_read(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr("pilotfish.curation.choose.read", None)
    for method in ("random", "importance_resampling"):
        words = ["select", str(folder / "pool.jsonl"), "--like", str(folder / "like.jsonl"), "-n", "9", "-m", method]
        result = CliRunner().invoke(app, [*words, "-o", str(folder)], env={"COLUMNS": "200"})
        assert "is not empty" in str(result.exception)


@pytest.mark.parametrize("method", ["less", "data_whisperer"])
def test_a_field_of_answers_that_no_document_has_is_told(folder: Path, method: str) -> None:
    choose = pick(method, 3, model="any", answer="reply")
    documents = [Document("a", fields={"text": "a", "answer": "b"})] * 9
    with pytest.raises(InputError, match="None of 9 documents has an answer in field 'reply'"):
        choose(documents, documents)


def test_printed_commands_are_those_of_the_command_line(folder: Path) -> None:
    for card in (*cards("pretraining_data"), *cards("finetuning_data")):
        program, verb, *words = card.command.split()
        assert (program, verb in ("curate", "select", "mix")) == ("pilotfish", True)
        if verb == "select":
            method, model = words[words.index("--method") + 1], words[-1] if "--model" in words else ""
            assert method == card.slug
            if method != "importance_resampling":
                pick(method, 3, model=model)
