"""Whole runs: workers, resuming, bad input, two runs into one folder, the iterator and the files agree."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pilotfish.curation import (
    ExactDedup,
    MinHashDedup,
    OwnRule,
    Rules,
    Settings,
    Tally,
    curate,
    curate_files,
)
from pilotfish.curation import lines as lines_module
from pilotfish.curation import run as run_module
from pilotfish.curation.choose import resample_files
from pilotfish.curation.documents import Shard
from pilotfish.curation.reading import read, shards
from pilotfish.curation.recipe import Recipe
from pilotfish.curation.report import to_html
from pilotfish.curation.writing import writer
from pilotfish.errors import ConfigError, InputError
from tests.curation.texts import edited, kept_ids, prose, write_lines

STEPS = [Rules.gopher(), ExactDedup(), MinHashDedup(n_bands=20, n_rows=5), Rules.c4()]


def texts() -> list[str]:
    base = [prose(i) for i in range(40)]
    return [*base, base[3], base[7], edited(base[5], 3), edited(base[9], 4), "too short", "Lorem ipsum " + prose(99)]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    made = texts()
    return [write_lines(tmp_path / f"in{k}.jsonl", made[k * 16 : k * 16 + 16], k * 16) for k in range(3)]


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and ".state" not in p.parts
    }


def test_files_and_iterator_and_any_number_of_workers_agree(files, tmp_path):
    settings = Settings(write_dropped=True)
    tally = curate_files(files, tmp_path / "one", STEPS, settings=settings)
    curate_files(files, tmp_path / "two", STEPS, workers=2, settings=settings)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    counted = Tally()
    source = [{"id": f"d{i}", "text": t} for i, t in enumerate(texts())]
    kept = [d.id for d in curate(source, STEPS, tally=counted)]
    assert kept == kept_ids(tmp_path / "one") == [f"d{i}" for i in range(40)]
    assert (counted.n_in, counted.n_out, counted.dropped) == (tally.n_in, tally.n_out, tally.dropped)
    assert {step: sum(n for n, _ in rules.values()) for step, rules in tally.dropped.items()} == {
        "rules": 2, "exact_dedup": 2, "minhash_dedup": 2,
    }  # fmt: skip
    said = [json.loads(line) for p in (tmp_path / "one" / "dropped").iterdir() for line in p.read_text().splitlines()]
    assert {(row["id"], row["dropped"]["step"]) for row in said} == {
        ("d40", "exact_dedup"), ("d41", "exact_dedup"), ("d42", "minhash_dedup"), ("d43", "minhash_dedup"),
        ("d44", "rules"), ("d45", "rules"),
    }  # fmt: skip
    page = to_html(tally)
    assert "gopher_short_doc" in page
    assert "too short" in page


def _killed(files, out):
    work = run_module.work

    def stop_at(job):
        if job.stage == 1 and job.number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return work(job)

    run_module.work = stop_at
    curate_files(files, out, STEPS)


def test_a_killed_run_goes_on(files, tmp_path, monkeypatch):
    child = multiprocessing.get_context("fork").Process(target=_killed, args=(files, tmp_path / "out"))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert not list((tmp_path / "out").glob("*.jsonl"))
    done = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out/.state").glob("done-*")}
    assert done
    curate_files(files, tmp_path / "out", STEPS)
    curate_files(files, tmp_path / "whole", STEPS)
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert all((tmp_path / "out/.state" / name).stat().st_mtime_ns == at for name, at in done.items())


def test_bad_records_are_counted_and_skipped_or_refused(tmp_path):
    path = tmp_path / "bad.jsonl"
    good = [{"text": prose(1)}, {"text": "nul \x00 byte"}, {"text": "עברית مرحبا mixed script"}]
    lines = [json.dumps(g).encode() for g in good]
    lines += [b'{"text": "broken', b'{"other": 1}', b'{"text": 7}', b"[1]", b'{"text": "\xff\xfe"}', b"", b"   "]
    path.write_bytes(b"\n".join(lines) + b"\n")
    (tmp_path / "empty.jsonl").write_bytes(b"")
    tally = curate_files([path, tmp_path / "empty.jsonl"], tmp_path / "out", [], settings=Settings(write_dropped=True))
    assert tally.n_in == tally.n_out == 3
    assert tally.rejected == {"broken_json": 1, "no_text": 2, "text_is_no_string": 1, "invalid_utf8": 1}
    rejected = [json.loads(line) for line in (tmp_path / "out/dropped/000000.0.jsonl").read_text().splitlines()]
    assert len(rejected) == 5
    with pytest.raises(InputError, match="let bad records be skipped"):
        curate_files([path], tmp_path / "strict", [], settings=Settings(on_bad="refuse"))
    assert not list((tmp_path / "strict").glob("*.jsonl"))


ODD_LINES = [
    json.dumps({"text": 'a\u00e9\u4e2d \\ " / \b\f\n\r\t \x00', "n": -12.5, "b": True, "c": None, "id": 3}).encode(),
    json.dumps({"id": "x", "text": "\u00e9\u4e2d\U0001f600 as it is"}, ensure_ascii=False).encode(),
    b' { "text" : "" }\r', b'{"text": "pair \\ud83d\\ude00"}', b'{"text": "nested", "m": {"a": [1]}}',
    b'{"text":"a","text":"b"}',
    b'{"te\\u0078t": "escaped key"}', b'{"text": "e", "x": 1e5}', b'{"text": "f", "x": -0.5}',
    b'{"text": "f", "x": -0.5}',
]  # fmt: skip
BROKEN_LINES = [
    b'{"text": "broken', b'{"other": 1}', b'{"text": 7}', b"[1]", b"{}", b'{"text": "\xff"}', b'{"text": "\xc0\x80"}',
    b'{"text": "\xed\xa0\x80"}', b'{"text": "\xf4\x90\x80\x80"}', b'{"text": "\xe4\xb8"}', b'{"text": "\\ud800"}',
    b'{"text": "a", "n": 01}', b'{"text": "a", "n": 1.}', b'{"text": "a", "n": tru}', b'{"text": "a"} x',
    b'{"text": "a",}',
    b'{"text": "tab\t"}', b'{"text": "\\x"}', b'{"text": "\\u12g4"}', b'{"text" "a"}', b"", b"   ",
]  # fmt: skip


@pytest.mark.parametrize("step", [ExactDedup(), MinHashDedup(n_gram=1)])
def test_lines_give_the_same_as_documents_made_of_them(step, tmp_path, monkeypatch):
    files = []
    for i, line in enumerate([*ODD_LINES, *BROKEN_LINES]):
        files.append(tmp_path / f"{i:02d}.jsonl")
        files[-1].write_bytes(json.dumps({"text": prose(i % 5)}).encode() + b"\n" + line + b"\n" * (i % 2))
    (tmp_path / "all.jsonl").write_bytes(b"\n".join([*ODD_LINES, *ODD_LINES[:4]]))
    files.append(tmp_path / "all.jsonl")
    by_lines = curate_files(files, tmp_path / "lines", [step])
    monkeypatch.setattr(run_module.Job, "by_lines", lambda job: False)
    by_documents = curate_files(files, tmp_path / "documents", [step])
    assert by_lines.to_json() == by_documents.to_json()
    assert content(tmp_path / "lines") == content(tmp_path / "documents")
    assert sum(by_lines.rejected.values()) == len(BROKEN_LINES) - 2
    assert by_lines.n_in - by_lines.n_out == sum(n for n, _ in by_lines.dropped[step.name].values()) > 20


@pytest.mark.parametrize("line", ODD_LINES[:3])
def test_plain_lines_are_read_without_a_parser(line, tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_bytes((line + b"\n") * 2)
    monkeypatch.setattr(lines_module, "records", None)
    (found,) = lines_module.read_lines(Shard(str(tmp_path / "a.jsonl")), "text", 1000)
    text = json.loads(line)["text"]
    assert bytes(found.batch.buffer) == text.encode() * 2
    assert found.places.tolist() == [[0, len(line), len(text), 1], [len(line) + 1, 2 * len(line) + 1, len(text), 2]]


def test_truncated_files_keep_what_is_whole(tmp_path):
    lines = b"".join(json.dumps({"text": prose(i, 40)}).encode() + b"\n" for i in range(200))
    packed = gzip.compress(lines)
    (tmp_path / "cut.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    parts = list(read(Shard(str(tmp_path / "cut.jsonl.gz"))))
    assert [r.reason for _, bad in parts for r in bad] == ["truncated_file"]
    whole = list(read(Shard(str(write_lines(tmp_path / "a.jsonl", ["x"])))))
    assert whole[0][0][0].text == "x"


def test_a_record_that_is_too_long_is_passed_over_in_little_memory(tmp_path):
    path = tmp_path / "long.jsonl"
    with path.open("wb") as file:
        file.write(b'{"text": "first"}\n{"text": "')
        for _ in range(12):
            file.write(b"x" * 1_000_000)
        file.write(b'"}\n{"text": "last"}\n')
    parts = list(read(Shard(str(path)), longest=2_000_000))
    assert [d.text for docs, _ in parts for d in docs] == ["first", "last"]
    assert [r.reason for _, bad in parts for r in bad] == ["too_long"]


def test_what_a_run_wrote_is_read_without_its_report_and_what_it_dropped(files, tmp_path):
    out = tmp_path / "all" / "out"
    made = curate_files(files, out, STEPS, settings=Settings(write_dropped=True))
    (tmp_path / "all" / "dropped").mkdir()
    write_lines(tmp_path / "all" / "dropped" / "mine.jsonl", ["of a folder that no run wrote"])
    assert list((out / "dropped").iterdir())
    again = curate_files([out], tmp_path / "again", [])
    assert (again.n_in, again.rejected) == (made.n_out, {})
    assert {Path(shard.path).name for shard in shards([tmp_path / "all"])} == {
        *(p.name for p in out.glob("*.jsonl")),
        "mine.jsonl",
    }
    resample_files([out], files[:1], tmp_path / "chosen", 3)
    assert curate_files([tmp_path / "chosen"], tmp_path / "last", []).n_in == 3


def test_a_large_line_is_not_held_to_find_where_a_file_is_cut(tmp_path, monkeypatch):
    tracemalloc = pytest.importorskip("tracemalloc")
    monkeypatch.setattr("pilotfish.curation.reading._SHARD_BYTES", 100_000)
    monkeypatch.setattr("pilotfish.curation.reading._PART_BYTES", 50_000)
    path = tmp_path / "long.jsonl"
    path.write_bytes(b'{"text": "first"}\n{"text": "' + b"x" * 8_000_000 + b'"}\n{"text": "last"}\n')
    tracemalloc.start()
    found = shards([path])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000
    parts = [part for shard in found for part in read(shard, longest=200_000)]
    assert [d.text for docs, _ in parts for d in docs] == ["first", "last"]
    assert [r.reason for _, bad in parts for r in bad] == ["too_long"]


def test_a_large_file_is_cut_at_line_ends(tmp_path, monkeypatch):
    monkeypatch.setattr("pilotfish.curation.reading._SHARD_BYTES", 5_000)
    made = [prose(i) for i in range(60)]
    path = write_lines(tmp_path / "large.jsonl", made)
    tally = curate_files([path], tmp_path / "out", [], workers=1)
    assert len(list((tmp_path / "out").glob("*.jsonl"))) > 3
    assert tally.n_in == 60
    assert sorted(kept_ids(tmp_path / "out")) == sorted(f"d{i}" for i in range(60))


def test_a_run_is_not_gone_on_with_once_an_input_was_written_anew_with_the_same_size(files, tmp_path):
    curate_files(files, tmp_path / "out", [], workers=1)
    assert curate_files(files, tmp_path / "out", [], workers=1).n_in
    text = Path(files[0]).read_text(encoding="utf-8")
    Path(files[0]).write_text(text.replace("e", "a"), encoding="utf-8")
    with pytest.raises(InputError, match="other inputs"):
        curate_files(files, tmp_path / "out", [], workers=1)


def test_two_runs_into_one_folder_are_refused(files, tmp_path):
    out = tmp_path / "out"
    with run_module._owned(out, out / ".state", "a"), pytest.raises(InputError, match="Another run is writing"):
        curate_files(files, out, [])
    with pytest.raises(InputError, match="another recipe"):
        curate_files(files, out, [])
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("x")
    with pytest.raises(InputError, match="give an empty folder"):
        curate_files(files, tmp_path / "full", [])


def test_a_full_disk_leaves_no_partial_file(files, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pilotfish.curation.documents.Document.line", full)
    with pytest.raises(InputError, match="No space left on device"):
        curate_files(files, tmp_path / "out", [])
    assert [p.name for p in (tmp_path / "out").rglob("*") if p.is_file()] == ["lock", "run.txt"]


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"])
def test_what_is_written_is_read_again(tmp_path, ending):
    if ending in (".jsonl.zst", ".parquet"):
        pytest.importorskip("pyarrow")
    source = write_lines(tmp_path / "in.jsonl", [prose(i) for i in range(5)])
    curate_files([source], tmp_path / "out", [], settings=Settings(ending=ending))
    [made] = (tmp_path / "out").glob(f"*{ending}")
    back = [d for docs, bad in read(Shard(str(made))) for d in docs]
    assert [(d.id, d.text) for d in back] == [(f"d{i}", prose(i)) for i in range(5)]
    again = curate_files([tmp_path / "out"], tmp_path / "again", [])
    assert again.n_in >= 5


def test_text_and_warc_are_read(tmp_path):
    (tmp_path / "a.txt").write_text("A plain text.")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe")
    page = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n"
    page += b"<html><head><title>t</title></head><body>"
    page += b"<p>One &amp; two</p><script>no()</script><div>three</div></body></html>"
    record = (
        b"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://a.org/\r\nContent-Length: %d\r\n\r\n%s\r\n\r\n"
    )
    (tmp_path / "c.warc.gz").write_bytes(
        gzip.compress(record % (len(page), page)) + gzip.compress(b"WARC/1.0\r\nContent-Length: 90\r\n\r\nshort")
    )
    found = {p.name: list(read(Shard(str(p)))) for p in tmp_path.iterdir()}
    assert found["a.txt"][0][0][0].text == "A plain text."
    assert found["b.txt"][0][1][0].reason == "invalid_utf8"
    assert found["c.warc.gz"][0][0][0].text == "One & two\nthree"
    assert found["c.warc.gz"][0][0][0].id == "http://a.org/"
    assert found["c.warc.gz"][0][1][0].reason == "truncated_file"


def test_an_index_drops_what_earlier_runs_kept(files, tmp_path):
    steps = [MinHashDedup(n_bands=20, n_rows=5, index=tmp_path / "index")]
    first = curate_files(files[:2], tmp_path / "a", steps)
    assert first.n_out == 32
    second = curate_files(files[2:], tmp_path / "b", steps)
    assert sorted(kept_ids(tmp_path / "b")) == ["d32", "d33", "d34", "d35", "d36", "d37", "d38", "d39", "d44", "d45"]
    again = curate_files(files[2:], tmp_path / "c", steps)
    assert (second.n_out, again.n_out) == (10, 0)
    with pytest.raises(InputError, match="other settings"):
        curate_files(files, tmp_path / "d", [MinHashDedup(n_bands=3, n_rows=5, index=tmp_path / "index")])


def test_a_small_bound_of_memory_changes_nothing(files, tmp_path):
    steps = [MinHashDedup(n_bands=20, n_rows=5)]
    large = curate_files(files, tmp_path / "a", steps)
    small = curate_files(files, tmp_path / "b", steps, settings=Settings(memory=600))
    assert kept_ids(tmp_path / "a") == kept_ids(tmp_path / "b")
    assert large.dropped == small.dropped


def test_recipes_name_what_is_wrong():
    for text, said in (
        ("step = 1", "no step"),
        ("nothing = 1", "key 'nothing'"),
        ("[[step]]\nuse = 'x'", "uses 'x'"),
        ("[[step]]\nuse = 'minhash_dedup'\nrows = 1", "key 'rows'"),
        ("[[step]]\nuse = 'minhash_dedup'\nn_bands = 0", "at least 1"),
        ("[[step]]\nuse = 'rules'\nsets = ['z']", "no set of rules 'z'"),
        ("[[step]]\nuse = 'python'", "no key 'function'"),
        ("[[step]]\nuse = 'python'\nfunction = 'nowhere:f'", "not found"),
        ("= 1", "no TOML"),
    ):
        with pytest.raises(ConfigError, match=said):
            Recipe.from_toml(text)


def test_a_recipe_is_told_by_the_files_that_its_steps_read(tmp_path):
    text = '[[step]]\nuse = "rules"\nblocked_words = "words"\n[[step]]\nuse = "minhash_dedup"\nindex = "seen"\n'
    text += '[[step]]\nuse = "importance_resampling"\nlike = "like"\nn = 1\n'
    (tmp_path / "words").write_text("one two")
    (tmp_path / "like").mkdir()
    write_lines(tmp_path / "like/a.jsonl", [prose(1)])
    first = Recipe.from_toml(text, tmp_path).fingerprint
    # The index grows by the run itself.
    (tmp_path / "seen").write_text("grown")
    assert Recipe.from_toml(text, tmp_path).fingerprint == first
    (tmp_path / "words").write_text("one six")
    second = Recipe.from_toml(text, tmp_path).fingerprint
    write_lines(tmp_path / "like/b.jsonl", [prose(2)])
    assert len({first, second, Recipe.from_toml(text, tmp_path).fingerprint}) == 3


def test_own_rules_and_limits():
    rules = Rules(OwnRule("odd", lambda d: len(d.text) % 2, high=0)) + Rules.gopher_quality().without(
        "gopher_short_doc"
    )
    assert len(rules.rules) == 10
    changed = Rules.gopher().limits(gopher_short_doc={"low": 2}).rules[0]
    assert changed == replace(Rules.gopher().rules[0], low=2)
    with pytest.raises(InputError, match="name one of the rules"):
        Rules.gopher().limits(none={"low": 2})
    with pytest.raises(InputError, match="A step is 3"):
        list(curate(["x"], [3]))
    with pytest.raises(InputError, match="Field 'text'"):
        list(curate([{"no": 1}], []))
    with pytest.raises(InputError, match="no file"):
        curate_files(["/nowhere"], "/tmp/never", [])
    with pytest.raises(InputError, match="no known ending"), writer(Path("x.csv")):
        pass


def test_memory_stays_while_input_grows(tmp_path):
    tracemalloc = pytest.importorskip("tracemalloc")
    peaks = []
    for n in (1, 6):
        path = tmp_path / f"{n}.jsonl"
        path.write_text("".join(json.dumps({"text": prose(i % 50, 30)}) + "\n" for i in range(400 * n)))
        tracemalloc.start()
        started = time.time()
        curate_files([path], tmp_path / f"out{n}", [Rules.gopher()])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert time.time() - started < 60
    assert peaks[1] < 1.5 * peaks[0]
