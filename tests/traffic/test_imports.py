"""Other tools' logs come in once, whole or not at all; our own export comes back as it was."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import sqlite3

import pytest

from pilotfish.errors import InputError, LogError, MissingExtraError
from pilotfish.traffic import Call, PatternMasker, TrafficLog
from pilotfish.traffic.exports import export_file
from pilotfish.traffic.imports import import_file


@pytest.fixture
def log(tmp_path):
    with TrafficLog(tmp_path / "log" / "traffic.db") as log:
        yield log


def lines(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def completion(text, **more):
    return {"id": "chatcmpl-1", "choices": [{"index": 0, "message": {"role": "assistant", "content": text}}], **more}


def chat(prompt, system=None, **more):
    head = [{"role": "system", "content": system}] if system else []
    return {"model": "gpt", "messages": [*head, {"role": "user", "content": prompt}], **more}


def test_request_response_pairs(log, tmp_path):
    usage = {"prompt_tokens": 9, "completion_tokens": 2}
    path = lines(
        tmp_path / "a.jsonl",
        {"request": chat("one", "sys", temperature=0), "response": completion("1", usage=usage, created=1_700_000_000)},
        {"request": {"body": chat("two")}, "response": {"status_code": 200, "body": completion("2")}, "label": "zwei"},
        {
            "request": chat("three"),
            "response": completion("3"),
            "timestamp": "2024-05-29T13:46:19Z",
            "cost": 0.5,
            "latency_ms": 250,
            "task": "t",
        },
    )
    report = import_file(log, path)
    assert (report.n_new, report.n_known, report.n_bad) == (3, 0, 0)
    one, two, three = log.calls()
    assert (one.prompt, one.system, one.answer, one.model, one.created) == ("one", "sys", "1", "gpt", 1_700_000_000)
    assert (one.prompt_tokens, one.completion_tokens, one.answered_by, one.reply_id) == (9, 2, "upstream", "chatcmpl-1")
    assert json.loads(one.request)["temperature"] == 0
    assert (two.gold, two.prompt) == ("zwei", "two")
    assert (three.created, three.cost, three.latency, three.task) == (1716990379.0, 0.5, 0.25, "t")


def test_importing_again_adds_nothing_and_a_longer_file_adds_the_rest(log, tmp_path):
    same = {"request": chat("same"), "response": completion("x")}
    path = lines(tmp_path / "a.jsonl", same, same, {"request": chat("other"), "response": completion("y")})
    assert import_file(log, path).n_new == 3
    report = import_file(log, path)
    assert (report.n_new, report.n_known) == (0, 3)
    lines(path, same, same, {"request": chat("other"), "response": completion("y")}, same)
    assert import_file(log, path).n_new == 1
    assert log.count() == 4


def test_batch_output(log, tmp_path):
    requests = lines(
        tmp_path / "in.jsonl",
        *(
            {"custom_id": f"r{i}", "method": "POST", "url": "/v1/chat/completions", "body": chat(f"p{i}")}
            for i in range(3)
        ),
    )
    output = lines(
        tmp_path / "out.jsonl",
        {
            "id": "b1",
            "custom_id": "r1",
            "response": {"status_code": 200, "body": completion("a1", created=5)},
            "error": None,
        },
        {"id": "b0", "custom_id": "r0", "response": {"status_code": 200, "body": completion("a0")}, "error": None},
        {"id": "b2", "custom_id": "r2", "response": {"status_code": 500, "body": {}}, "error": None},
        {"id": "b3", "custom_id": "r3", "response": None, "error": {"code": "expired"}},
        {"id": "b4", "custom_id": "r9", "response": {"status_code": 200, "body": completion("a9")}, "error": None},
    )
    report = import_file(log, output, requests=requests)
    assert (report.n_new, report.n_skipped, report.n_bad) == (2, 2, 1)
    assert report.bad[0][0] == 5
    assert "'r9' has no request" in report.bad[0][1]
    assert [(call.prompt, call.answer) for call in log.calls()] == [("p1", "a1"), ("p0", "a0")]


@pytest.mark.parametrize("kind", ["openai", "batch", "litellm", "langfuse", "table", "pilotfish"])
def test_records_of_another_format_than_the_one_named_are_told_and_the_sound_ones_kept(log, tmp_path, kind):
    sound = {
        "openai": {"request": chat("p"), "response": completion("a")},
        "batch": {"custom_id": "r", "body": chat("p"), "response": {"body": completion("a")}},
        "litellm": {"messages": chat("p")["messages"], "response": completion("a")},
        "langfuse": {"input": "p", "output": "a"},
        "table": {"input": "p", "output": "a"},
        "pilotfish": {"id": "c", "created": 1.0, "request": chat("p"), "reply": completion("a")},
    }
    other = {"id": "x", "created": 1.0, "response": completion("b")} if kind != "pilotfish" else {"input": "q"}
    report = import_file(log, lines(tmp_path / "a.jsonl", other, sound[kind]), kind=kind)
    assert (report.n_new, report.n_bad, report.bad[0][0]) == (1, 1, 1)
    assert "missing" in report.bad[0][1]


def test_numbers_and_moments_that_are_wrong_are_told_by_their_field(log, tmp_path):
    pair = {"request": chat("p"), "response": completion("a")}
    wrong = [{"cost": -1}, {"latency_ms": "fast"}, {"timestamp": "yesterday"}]
    report = import_file(log, lines(tmp_path / "a.jsonl", pair, *({**pair, **field} for field in wrong)))
    assert [why.split(":")[0] for _, why in report.bad] == [
        "field 'cost' is -1",
        "field 'latency_ms' is 'fast'",
        "field 'timestamp' is 'yesterday', which is no moment",
    ]


def test_rows_whose_commas_are_not_quoted_are_told(log, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("input,output\nhello, card,arrival\nhello,greeting\n", encoding="utf-8")
    report = import_file(log, path)
    assert (report.n_new, report.bad) == (
        1,
        [(2, "it has 3 cells under 2 names: quote the cells that hold a comma.")],
    )


def test_litellm(log, tmp_path):
    payload = {
        "id": "chatcmpl-7",
        "call_type": "acompletion",
        "status": "success",
        "model": "gpt-4o-mini",
        "model_group": "small",
        "messages": chat("Where?", "Classify.")["messages"],
        "response": completion("here"),
        "model_parameters": {"temperature": 0, "stream": False},
        "startTime": 1_700_000_000.25,
        "endTime": 1_700_000_001.0,
        "response_cost": 0.125,
        "prompt_tokens": 11,
        "completion_tokens": 3,
    }
    spend = {
        "request_id": "x",
        "call_type": "acompletion",
        "model": "gpt",
        "messages": json.dumps(chat("From a table")["messages"]),
        "response": json.dumps(completion("text")),
        "startTime": "2024-05-29T13:46:19+00:00",
        "endTime": "2024-05-29T13:46:20+00:00",
        "spend": 0.25,
    }
    failed = {**payload, "status": "failure", "response": None}
    embedding = {**payload, "call_type": "aembedding"}
    hidden = {**payload, "response": "redacted-by-litellm"}
    report = import_file(log, lines(tmp_path / "l.jsonl", payload, spend, failed, embedding, hidden))
    assert (report.n_new, report.n_skipped, report.n_bad) == (2, 2, 1)
    first, second = log.calls()
    assert (first.prompt, first.system, first.answer, first.model) == ("Where?", "Classify.", "here", "small")
    assert (first.latency, first.cost, first.prompt_tokens, first.completion_tokens) == (0.75, 0.125, 11, 3)
    assert json.loads(first.request)["temperature"] == 0
    assert (second.prompt, second.answer, second.cost, second.latency) == ("From a table", "text", 0.25, 1.0)


def test_langfuse(log, tmp_path):
    api = {
        "id": "o1",
        "traceId": "t1",
        "type": "GENERATION",
        "startTime": "2024-05-29T13:46:19.500Z",
        "endTime": "2024-05-29T13:46:20.000Z",
        "model": "gpt",
        "modelParameters": {"temperature": 0},
        "input": chat("one")["messages"],
        "output": {"role": "assistant", "content": "1"},
        "usageDetails": {"input": 7, "output": 2, "total": 9},
        "totalCost": 0.5,
    }
    blob = {
        "id": "o2",
        "trace_id": "t2",
        "type": "GENERATION",
        "start_time": "2024-05-29 13:46:19.963000",
        "provided_model_name": "gpt",
        "input": json.dumps({"messages": chat("two")["messages"]}),
        "output": json.dumps("2"),
    }
    span = {**api, "type": "SPAN", "output": None}
    text = {**api, "input": "three", "output": {"completion": "3"}}
    path = tmp_path / "langfuse.json"
    path.write_text(json.dumps([api, blob, span, text], indent=1), encoding="utf-8")
    report = import_file(log, path)
    assert (report.n_new, report.n_skipped, report.n_bad) == (3, 1, 0)
    one, two, three = log.calls()
    assert (one.prompt, one.answer, one.latency, one.cost) == ("one", "1", 0.5, 0.5)
    assert (one.prompt_tokens, one.completion_tokens, one.created) == (7, 2, 1716990379.5)
    assert (two.prompt, two.answer, two.model, two.created) == ("two", "2", "gpt", 1716990379.963)
    assert (three.prompt, three.answer) == ("three", "3")


def test_table(log, tmp_path):
    path = tmp_path / "t.csv"
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["input", "output", "label", "system"])
        writer.writerow(["Wo ist\nmeine Karte?", "card, arrival", "card_arrival", "Own."])
        writer.writerow(["Two", "x", "", ""])
        writer.writerow(["", "x", "", ""])
        writer.writerow(["Only input"])
    report = import_file(log, path, system="Name the intent.", model="gpt", task="intents")
    assert (report.n_new, report.n_bad) == (2, 2)
    assert [line for line, _ in report.bad] == [5, 6]
    one, two = log.calls()
    assert (one.prompt, one.answer, one.gold, one.system) == (
        "Wo ist\nmeine Karte?",
        "card, arrival",
        "card_arrival",
        "Own.",
    )
    assert (two.gold, two.system, two.model, two.task) == (None, "Name the intent.", "gpt", "intents")


def test_answers_and_labels_need_not_be_texts(log, tmp_path):
    path = tmp_path / "scores.jsonl"
    values = [3, 0, 0.5, True, False, {"intent": "card"}]
    path.write_bytes(
        b"\n".join(json.dumps({"input": "a", "output": v, "label": v, "n": i}).encode() for i, v in enumerate(values))
    )
    assert import_file(log, path).n_new == 6
    written = ["3", "0", "0.5", "true", "false", '{"intent":"card"}']
    assert [(call.answer, call.gold) for call in log.calls()] == list(zip(written, written, strict=True))


def test_bad_lines_are_told_and_the_rest_comes_in(log, tmp_path):
    path = tmp_path / "bad.jsonl"
    good = json.dumps({"input": "a", "output": "b"})
    path.write_bytes(
        b"\n".join(
            [
                good.encode(),
                b"{broken",
                b"[1]",
                b"\xff\xfe",
                b'{"foo": 1}',
                b'{"request": {}, "response": {}}',
                b'{"request": {"messages": [{"role": "user"}]}, "response": {"data": []}}',
                b'{"input": "a", "output": "b", "created": "yesterday"}',
                b'{"input": "a", "output": "b", "cost": -1}',
                b"",
                good.encode(),
            ]
        )
    )
    report = import_file(log, path)
    assert (report.n_new, report.n_bad) == (2, 8)
    assert [line for line, _ in report.bad] == [2, 3, 4, 5, 6, 7, 8, 9]
    assert all(why.endswith(".") for _, why in report.bad)


def test_nothing_usable_is_an_error(log, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("not json\n")
    with pytest.raises(InputError, match="line 1: it is not valid JSON"):
        import_file(log, path)
    with pytest.raises(InputError, match="cannot be read"):
        import_file(log, tmp_path / "absent.jsonl")
    (tmp_path / "t.csv").write_text("question,answer\n1,2\n")
    with pytest.raises(InputError, match="'input' and 'output'"):
        import_file(log, tmp_path / "t.csv")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"input": "a", "output": "b"}\n' * 1000)[:-20])
    with pytest.raises(InputError, match="cannot be read"):
        import_file(log, tmp_path / "cut.jsonl.gz")
    with pytest.raises(InputError, match="'xml'"):
        import_file(log, path, kind="xml")
    assert log.count() == 0


def test_nothing_half_written(log, tmp_path, monkeypatch):
    path = lines(tmp_path / "a.jsonl", *({"input": str(i), "output": "x"} for i in range(50)))

    def fail(done, total):
        if done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_file(log, path, progress=fail)
    assert log.count() == 0
    monkeypatch.setattr("pilotfish.traffic.schema.BUSY_SECONDS", 0.1)
    blocker = sqlite3.connect(log.path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(LogError, match="locked"):
        import_file(log, path)
    blocker.close()
    assert log.count() == 0
    assert import_file(log, path).n_new == 50


def test_gzip_progress_and_tasks(log, tmp_path):
    path = tmp_path / "big.jsonl.gz"
    path.write_bytes(
        gzip.compress(b"".join(json.dumps({"input": str(i), "output": "x"}).encode() + b"\n" for i in range(2000)))
    )
    told = []
    import_file(
        log, path, progress=lambda *args: told.append(args), task_of=lambda body, _: f"t{len(body['messages'])}"
    )
    assert told[-1] == (path.stat().st_size,) * 2
    assert all(a <= b for (a, _), (b, _) in itertools.pairwise(told))
    assert log.count(task="t1") == 2000


def test_masking_applies_to_imports(tmp_path):
    with TrafficLog(tmp_path / "m.db", mask=PatternMasker()) as log:
        import_file(log, lines(tmp_path / "a.jsonl", {"input": "I am jo@example.org", "output": "ok"}))
        assert next(log.calls()).prompt == "I am [EMAIL]"


def _calls():
    yield Call.of("plain", "x", id="call-1", created=1.5, task="t", gold="g", cost=0.25, key_id="k")
    yield Call.of("odd", "x", id="call-2", created=2.0).replace(
        request=b'{ "messages": [] }', reply=b"not json", audit="a"
    )
    yield Call.of("x", "y", id="call-3", created=3.0, stream=True, complete=False).replace(request=b"", reply=b'"text"')


def test_export_comes_back_as_it_was(log, tmp_path):
    before = list(_calls())
    for call in before:
        log.append(call)
    assert export_file(log, tmp_path / "out" / "calls.jsonl") == 3
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["calls.jsonl"]
    assert export_file(log, tmp_path / "some.jsonl", task="t") == 1
    with TrafficLog(tmp_path / "other.db") as other:
        assert import_file(other, tmp_path / "out" / "calls.jsonl").n_new == 3
        assert [call.replace(seq=0) for call in other.calls()] == before
        assert import_file(other, tmp_path / "some.jsonl").n_known == 1
    rows = [json.loads(line) for line in (tmp_path / "out" / "calls.jsonl").read_text().splitlines()]
    assert rows[0]["request"]["messages"][0]["content"] == "plain"
    rows[0]["cost"] = "much"
    with TrafficLog(tmp_path / "third.db") as third:
        report = import_file(third, lines(tmp_path / "edited.jsonl", *rows))
        assert (report.n_new, report.n_bad) == (2, 1)
        assert "'cost'" in report.bad[0][1]


def test_parquet(log, tmp_path, monkeypatch):
    pq = pytest.importorskip("pyarrow.parquet")
    for call in _calls():
        log.append(call)
    assert export_file(log, tmp_path / "calls.parquet") == 3
    rows = pq.read_table(tmp_path / "calls.parquet").to_pylist()
    assert [Call(**row) for row in rows] == list(_calls())
    with pytest.raises(InputError, match="parquet"):
        export_file(log, tmp_path / "calls.xlsx")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pilotfish\[parquet\]"):
        export_file(log, tmp_path / "again.parquet")
    assert not (tmp_path / "again.parquet").exists()


def test_recorded_traffic(log, tmp_path, data_dir):
    with gzip.open(data_dir / "banking77" / "test.jsonl.gz", "rt", encoding="utf-8") as rows:
        records = [json.loads(row) for row in itertools.islice(rows, 500)]
    path = lines(
        tmp_path / "b.jsonl",
        *({"input": r["text"], "output": r["llm"], "label": r["label"], "cost": r["llm_cost_usd"]} for r in records),
    )
    assert import_file(log, path, task="banking").n_new == 500
    for call, record in zip(log.calls(), records, strict=True):
        assert (call.prompt, call.answer, call.gold, call.cost) == (
            record["text"],
            record["llm"],
            record["label"],
            record["llm_cost_usd"],
        )
