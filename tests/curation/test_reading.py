"""Files as they come: marks of byte order, what is broken, what is too long, odd pages; nothing is lost unheard."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest

from pilotfish.curation import ExactDedup, MinHashDedup, OwnRule, Rules, Settings, curate, curate_files
from pilotfish.curation.documents import Document, Rejected, Shard
from pilotfish.curation.reading import read
from pilotfish.curation.recipe import Recipe
from pilotfish.curation.warc import read_warc
from pilotfish.errors import InputError
from tests.curation.texts import prose, write_lines


def found(path: Path, **options) -> tuple[list[Document], list[Rejected]]:
    parts = list(read(Shard(str(path)), **options))
    return [d for documents, _ in parts for d in documents], [r for _, rejected in parts for r in rejected]


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".txt"])
def test_a_mark_of_byte_order_is_no_text(ending, tmp_path):
    line = b"plain" if ending == ".txt" else b'{"text": "plain"}\n{"text": "second"}\n'
    content = b"\xef\xbb\xbf" + line
    (tmp_path / f"a{ending}").write_bytes(gzip.compress(content) if ending.endswith("gz") else content)
    documents, rejected = found(tmp_path / f"a{ending}")
    assert [d.text for d in documents] == ["plain", "second"][: len(documents)]
    assert not rejected
    for step in ([], [ExactDedup()]):
        tally = curate_files([tmp_path / f"a{ending}"], tmp_path / f"out{len(step)}", step)
        assert (tally.n_out, tally.rejected) == (len(documents), {})


def test_recipes_and_lists_of_words_may_begin_with_a_mark_of_byte_order(tmp_path):
    (tmp_path / "words").write_text("bad words", encoding="utf-8-sig")
    (tmp_path / "r.toml").write_text('[[step]]\nuse = "rules"\nblocked_words = "words"\n', encoding="utf-8-sig")
    assert not list(curate(["a bad one"], Recipe.load(tmp_path / "r.toml").steps))


def test_an_empty_id_is_none(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": null, "text": "a"}\n{"id": 0, "text": "b"}\n')
    assert [d.id for d in found(tmp_path / "a.jsonl")[0]] == ["a.jsonl:1", "0"]
    assert [d.id for d in curate([{"id": None, "text": "a"}], [])] == ["0"]


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_all_that_is_whole_in_a_truncated_file_is_read(ending, tmp_path):
    rng = random.Random(1)
    lines = b"".join(b'{"text": "%d %032x"}\n' % (i, rng.getrandbits(128)) for i in range(5000))
    path = tmp_path / f"a.jsonl{ending}"
    if ending == ".gz":
        path.write_bytes(gzip.compress(lines))
    else:
        pa = pytest.importorskip("pyarrow")
        with pa.OSFile(str(path), "wb") as file, pa.CompressedOutputStream(file, "zstd") as packed:
            packed.write(lines)
    path.write_bytes(path.read_bytes()[:-20])
    documents, rejected = found(path)
    assert len(documents) > (4990 if ending == ".gz" else 2000)
    assert [d.text.split()[0] for d in documents] == [str(i) for i in range(len(documents))]
    assert [r.reason for r in rejected] == ["truncated_file"]


def test_half_a_text_file_is_no_document(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(prose(1, 400).encode())[:-20])
    documents, rejected = found(tmp_path / "a.txt.gz")
    assert not documents
    assert [r.reason for r in rejected] == ["truncated_file"]


@pytest.mark.parametrize("steps", [[], [ExactDedup()]])
def test_the_longest_record_is_that_of_the_settings(steps, tmp_path):
    write_lines(tmp_path / "a.jsonl", ["short", "long " * 100, "short as well"])
    tally = curate_files([tmp_path / "a.jsonl"], tmp_path / "out", steps, settings=Settings(longest=200))
    assert (tally.n_in, tally.n_out, tally.rejected) == (2, 2, {"too_long": 1})


def test_what_a_stage_wrote_is_read_again_however_long_it_has_become(tmp_path):
    # A page in Latin-1 whose letters take two bytes each in what is written of it.
    page = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=latin-1\r\n\r\n" + b"\xe9 " * 400
    head = b"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://a.org/\r\nContent-Length: %d\r\n\r\n"
    (tmp_path / "a.warc").write_bytes((head % len(page) + page + b"\r\n\r\n") * 2)
    steps = [Rules(OwnRule("any", lambda d: 1.0)), ExactDedup(), MinHashDedup()]
    tally = curate_files([tmp_path / "a.warc"], tmp_path / "out", steps, settings=Settings(longest=900))
    assert (tally.n_in, tally.n_out, tally.dropped["exact_dedup"]) == (2, 1, {"duplicate": [1, 799]})


def test_broken_tables_are_counted(tmp_path):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.table({"text": [prose(i) for i in range(3000)]}), tmp_path / "a.parquet", row_group_size=500)
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[len(content) // 2 : len(content) // 2 + 3000] = b"Z" * 3000
    (tmp_path / "a.parquet").write_bytes(content)
    for name in ("b.parquet", "c.arrow"):
        (tmp_path / name).write_bytes(b"no table")
    tally = curate_files([tmp_path], tmp_path / "out", [])
    assert 0 < tally.n_in == tally.n_out < 3000
    assert tally.rejected == {"broken_file": 3}
    with pytest.raises(InputError, match="broken_file"):
        curate_files([tmp_path / "b.parquet"], tmp_path / "no", [], settings=Settings(on_bad="refuse"))


def test_rows_of_tables_that_are_no_text_are_counted(tmp_path):
    pa = pytest.importorskip("pyarrow")
    broken = pa.array([b"good", b"\xff", b"fine", b"long" * 99]).view(pa.utf8())
    pytest.importorskip("pyarrow.parquet").write_table(pa.table({"text": broken}), tmp_path / "a.parquet")
    documents, rejected = found(tmp_path / "a.parquet", longest=99)
    assert [d.text for d in documents] == ["good", "fine"]
    assert [(r.reason, r.where) for r in rejected] == [("invalid_utf8", "a.parquet:2"), ("too_long", "a.parquet:4")]


@pytest.mark.parametrize(
    ("page", "kind", "text"),
    [
        (b"<head><title>t</title><body><p>shown", b"text/html", "shown"),
        (b"<p>one<![foo[bar]]><p>two<![CDATA[x]]>", b"text/html", "one\ntwo"),
        (b"<p>one", b"text/html; charset=undefined", "one"),
        (b"<p>one", b"text/html; charset=a\x00b", "one"),
        (b"<p>half \\ud800", b"text/html; charset=unicode_escape", "half ?"),
    ],
)
def test_odd_pages_are_read(page, kind, text, tmp_path):
    body = b"HTTP/1.1 200 OK\r\nContent-Type: " + kind + b"\r\n\r\n" + page
    head = b"WARC/1.0\r\nWARC-Type: response\r\nContent-Length: %d\r\n\r\n" % len(body)
    (tmp_path / "a.warc").write_bytes(head + body + b"\r\n\r\n")
    with (tmp_path / "a.warc").open("rb") as file:
        assert [d.text for d in read_warc(file, "a.warc", 10_000)] == [text]


def test_a_length_in_raised_digits_is_none(tmp_path):
    (tmp_path / "a.warc").write_bytes("WARC/1.0\r\nContent-Length: ²\r\n\r\n".encode())
    assert [r.reason for r in found(tmp_path / "a.warc")[1]] == ["broken_warc"]


def test_an_input_that_cannot_be_read_is_named_and_not_the_output(tmp_path, monkeypatch):
    source = write_lines(tmp_path / "in.jsonl", ["one"])

    def broken(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("pilotfish.curation.reading.line_blocks", broken)
    with pytest.raises(InputError, match=r"in\.jsonl cannot be read \(Input/output error\)"):
        curate_files([source], tmp_path / "out", [])


def test_json_may_hold_other_ends_of_lines(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a\u2028b\x85c"}, ensure_ascii=False), encoding="utf-8")
    assert [d.text for d in found(tmp_path / "a.jsonl")[0]] == ["a\u2028b\x85c"]
