"""What comes out of a run: documents as they were given, counts that add up, names and orders that hold."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import numpy as np
import pytest

from pilotfish.curation import (
    D4,
    ExactDedup,
    Filter,
    ImportanceResampling,
    MinHashDedup,
    OwnRule,
    Rules,
    Settings,
    Tally,
    curate,
    curate_files,
)
from pilotfish.curation import run as run_module
from pilotfish.curation.choose import resample_files
from pilotfish.curation.documents import Document
from pilotfish.curation.picks import Picked, pick
from pilotfish.curation.privacy import Privacy
from pilotfish.curation.report import to_html
from pilotfish.errors import InputError
from pilotfish.features import HashedNgrams
from pilotfish.rules import Argmax, Between, TopK
from tests.curation.texts import edited, prose, write_lines

ODD = [
    {"text": "cut within an emoji \ud83d", "half": "\ud83d"},
    {"text": "of other kinds", 1: 2, "big": 2**70, "day": datetime.date(2020, 1, 1), "pair": (1, 2)},
]


@pytest.mark.parametrize(
    "step",
    [ExactDedup(), ImportanceResampling(["kinds"], 2), Picked("all", lambda p, t: np.arange(2), [Document("x")])],
)
def test_documents_come_out_as_they_were_given(step):
    assert [d.fields for d in curate(ODD, [step])] == ODD
    vector = np.arange(3.0)
    (kept,) = curate([{"text": "a", "vector": vector}], [MinHashDedup()])
    assert kept.fields["vector"].tolist() == vector.tolist()


@pytest.mark.parametrize("documents", ["one text", b"bytes", {"text": "one"}])
def test_one_text_is_no_list_of_documents(documents):
    with pytest.raises(InputError, match="give a list"):
        list(curate(documents, []))


@pytest.mark.parametrize("rule", [TopK(1), Argmax()])
def test_a_filter_refuses_rules_that_compare_documents(rule):
    with pytest.raises(InputError, match="compares documents"):
        Filter("best", HashedNgrams(), rule)


def mixed(tmp_path: Path) -> list[Path]:
    base = [prose(i) for i in range(60)]
    made = [
        *base,
        *base[:9],
        *(edited(base[i], 2) for i in range(20, 28)),
        "short",
        "",
        *["Lorem ipsum " + prose(7)] * 3,
    ]
    files = []
    for k in range(4):
        files.append(write_lines(tmp_path / f"in{k}.jsonl", made[k::4]))
        with files[-1].open("a") as file:
            file.write("broken\n")
    return files


@pytest.mark.parametrize(
    "steps",
    [
        [Rules.gopher(), ExactDedup(), MinHashDedup(), Rules.c4()],
        [ExactDedup()],
        [MinHashDedup(), ExactDedup()],
        [D4(0.5, 0.95, 4, HashedNgrams(256)), Rules.gopher()],
        [ImportanceResampling([prose(1)], 30), MinHashDedup()],
        [Rules.gopher(), Picked("random", pick("random", 20), [Document("x")])],
    ],
)
@pytest.mark.parametrize("write_dropped", [False, True])
def test_what_came_in_is_kept_or_dropped(steps, write_dropped, tmp_path):
    files = mixed(tmp_path)
    tally = curate_files(files, tmp_path / "out", steps, settings=Settings(write_dropped=write_dropped))
    dropped = sum(n for rules in tally.dropped.values() for n, _ in rules.values())
    characters = sum(size for rules in tally.dropped.values() for _, size in rules.values())
    assert (tally.n_in, tally.rejected) == (82, {"broken_json": 4})
    assert tally.n_in == tally.n_out + dropped
    assert tally.characters_in == tally.characters_out + characters
    lines = [line for path in (tmp_path / "out").glob("*.jsonl") for line in path.read_text().splitlines()]
    assert len(lines) == tally.n_out
    if write_dropped:
        said = [json.loads(x) for p in (tmp_path / "out/dropped").iterdir() for x in p.read_text().splitlines()]
        assert sum("dropped" in row for row in said) == dropped
        assert sum("rejected" in row for row in said) == 4


def test_examples_are_named_by_their_lines_whether_or_not_documents_are_made(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ["same", "other", "same", "last", "other"]))
    with path.open("a") as file:
        file.write('broken\n\n{"text": "same", "nested": {}}\n')
    monkeypatch.setattr("pilotfish.curation.reading._PART_BYTES", 40)
    by_lines = curate_files([path], tmp_path / "lines", [ExactDedup()])
    monkeypatch.setattr(run_module.Job, "by_lines", lambda job: False)
    by_documents = curate_files([path], tmp_path / "documents", [ExactDedup()])
    assert by_lines.examples == by_documents.examples
    assert [one["id"] for one in by_lines.examples["kept"]] == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:4"]
    assert [one["id"] for one in by_lines.examples["exact_dedup: duplicate"]] == ["a.jsonl:3", "a.jsonl:5", "a.jsonl:8"]


def test_steps_are_reported_in_their_order(tmp_path):
    first, second = (
        Filter("first", _Length(), Between(high=100)),
        Filter("second", _Length(), Between(low=3)),
    )
    files = [write_lines(tmp_path / "a.jsonl", ["x", "fine"]), write_lines(tmp_path / "b.jsonl", ["long " * 99])]
    tally = curate_files(files, tmp_path / "out", [first, second])
    assert list(tally.dropped) == ["first", "second"]
    assert list(json.loads((tmp_path / "out/report.json").read_text())["dropped"]) == ["first", "second"]
    counted = Tally()
    list(curate(["x"] * 2000 + ["long " * 99], [first, second], tally=counted))
    assert list(counted.dropped) == ["first", "second"]


class _Length:
    def score(self, items):
        return np.array([float(len(text)) if text else -np.inf for text in items])


def test_a_score_that_is_no_number_leaves_the_report_whole(tmp_path):
    files = [write_lines(tmp_path / "a.jsonl", ["", "fine"])]
    steps = [Filter("length", _Length(), Between(low=3))]
    pages = {to_html(curate_files(files, tmp_path / "out", steps, settings=Settings(write_dropped=True))) for _ in "12"}
    assert len(pages) == 1


def test_a_run_does_not_read_what_it_writes(tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    write_lines(corpus / "a.jsonl", ["one", "two"])
    for _ in range(2):
        assert curate_files([corpus], corpus / "clean", [ExactDedup()]).n_in == 2
    assert curate_files([corpus / "clean"], tmp_path / "again", [ExactDedup()]).n_in == 2


def test_a_folder_that_a_selection_wrote_is_not_written_over(tmp_path):
    source = write_lines(tmp_path / "a.jsonl", [prose(1), prose(2)])
    resample_files([source], [source], tmp_path / "chosen", 1)
    with pytest.raises(InputError, match="give an empty folder"):
        curate_files([source], tmp_path / "chosen", [])


def test_a_finished_run_whose_files_are_gone_is_not_taken_for_done(tmp_path):
    source = write_lines(tmp_path / "a.jsonl", [prose(1), prose(2)])
    curate_files([source], tmp_path / "out", [Rules(OwnRule("any", lambda d: 1.0))])
    (tmp_path / "out/000000-a.jsonl").unlink()
    with pytest.raises(InputError, match=r"000000-a\.jsonl was written by this run and is gone"):
        curate_files([source], tmp_path / "out", [Rules(OwnRule("any", lambda d: 1.0))])


@pytest.mark.parametrize(
    ("early", "late"),
    [
        ({"text": "a"}, {"text": "b", "more": 1}),
        ({"text": "a", "v": 1}, {"text": "b", "v": 1.5}),
        ({"text": "a", "v": None}, {"text": "b", "v": "c"}),
        ({"text": "a", "id": 7}, {"text": "b"}),
    ],
)
@pytest.mark.parametrize("group", [1, 10])
def test_a_table_has_the_columns_of_all_rows(early, late, group, tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("pilotfish.curation.writing._GROUP", group)
    monkeypatch.setattr("pilotfish.curation.reading._PART", 1)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n\n" for row in (early, late)))
    monkeypatch.setattr("pilotfish.curation.reading._PART_BYTES", 10)
    curate_files([tmp_path / "a.jsonl"], tmp_path / "out", [], settings=Settings(ending=".parquet"))
    rows = parquet.read_table(tmp_path / "out/000000-a.parquet").to_pylist()
    for row, given in zip(rows, (early, late), strict=True):
        assert {k: v for k, v in row.items() if v is not None and (k != "id" or "id" in given)} == {
            k: v for k, v in given.items() if v is not None
        }


def test_rows_without_names_are_named_by_their_documents(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": "b", "id": 7}\n')
    curate_files([tmp_path / "a.jsonl"], tmp_path / "out", [], settings=Settings(ending=".parquet"))
    rows = parquet.read_table(tmp_path / "out/000000-a.parquet").to_pylist()
    assert rows == [{"id": "a.jsonl:1", "text": "a"}, {"id": "7", "text": "b"}]


def test_a_field_of_two_kinds_is_no_column(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "a.jsonl").write_text('{"text": "a", "v": 1}\n{"text": "b", "v": "c"}\n')
    with pytest.raises(InputError, match="cannot be rows of a table"):
        curate_files([tmp_path / "a.jsonl"], tmp_path / "out", [], settings=Settings(ending=".parquet"))
    assert [p.name for p in (tmp_path / "out").iterdir()] == [".state"]


def test_brackets_of_the_text_itself_are_no_masks():
    texts = ["See [A] and [B_C] in [X].", "Mail jo@example.org."]
    assert [d.text for d in curate(texts, [Privacy(most=10)])] == texts[:1]
