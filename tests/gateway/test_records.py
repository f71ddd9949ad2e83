"""What the log keeps of a call, and that no acknowledged call is missing."""

from __future__ import annotations

import contextlib
import http.client
import logging
import sqlite3
import threading
import time

import orjson
import pytest

from pilotfish.errors import LogFullError
from pilotfish.gateway.app import PRUNE_SECONDS
from pilotfish.traffic import TrafficLog
from pilotfish.traffic import writer as writer_module
from tests.gateway.rig import CHAT, STREAM_HEAD, answer, chunk, events, wait_for, whole

PRICES = {"large": {"input": 2.0, "output": 10.0, "cached_input": 1.0}}


def test_a_json_call(start, upstream):
    usage = {"prompt_tokens": 100, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 40}}
    body = answer("card_arrival", usage=usage)
    upstream.replies(whole(body))
    run = start(prices=PRICES)
    before = time.time()
    got = run.chat("Where is my card?", temperature=0)
    call = run.calls()[0]
    assert call.id == got.header("x-pilotfish-call")
    assert before <= call.created <= time.time()
    assert (
        call.request == b'{"model":"large","messages":[{"role":"user","content":"Where is my card?"}],"temperature":0}'
    )
    assert call.reply == body
    assert (call.prompt, call.answer, call.model, call.endpoint) == ("Where is my card?", "card_arrival", "large", CHAT)
    assert (call.status, call.answered_by, call.stream, call.complete) == (200, "upstream", False, True)
    assert (call.prompt_tokens, call.completion_tokens, call.reply_id) == (100, 5, "chatcmpl-up")
    assert call.cost == pytest.approx((60 * 2.0 + 40 * 1.0 + 5 * 10.0) / 1e6)
    assert 0 < call.latency < 5
    assert (call.task, call.prediction, call.key_id) == (None, None, None)


def test_a_stream_is_put_together(start, upstream):
    tool = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "look", "arguments": ""}}
    deltas = [
        {"role": "assistant", "content": "two "},
        {"content": "words"},
        {"tool_calls": [tool]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a"'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]},
    ]
    parts = events(*deltas, usage={"prompt_tokens": 9, "completion_tokens": 4})
    upstream.replies(STREAM_HEAD + b"".join(map(chunk, parts)) + b"0\r\n\r\n")
    run = start(prices=PRICES)
    got = run.chat(stream=True)
    assert got.body == b"".join(parts)
    call = run.calls()[0]
    reply = orjson.loads(call.reply)
    assert call.answer == "two words"
    assert reply["object"] == "chat.completion"
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert reply["choices"][0]["message"]["tool_calls"][0]["function"] == {"name": "look", "arguments": '{"a": 1}'}
    assert (call.prompt_tokens, call.completion_tokens, call.stream, call.complete) == (9, 4, True, True)
    assert call.cost == pytest.approx((9 * 2 + 4 * 10) / 1e6)


def test_a_stream_without_usage_is_charged_by_estimate(start, upstream):
    upstream.replies(STREAM_HEAD + b"".join(map(chunk, events(*[{"content": "x"}] * 8))) + b"0\r\n\r\n")
    run = start(prices=PRICES)
    run.chat("y" * 400, stream=True)
    call = run.calls()[0]
    assert 100 <= call.prompt_tokens <= 130
    assert 8 <= call.completion_tokens <= 11
    assert call.cost > 0


def test_other_endpoints(start, upstream):
    run = start()
    upstream.replies(whole(b'{"object":"list","data":[{"embedding":[0.1,0.2]}],"usage":{"prompt_tokens":3}}'))
    got = run.call("POST", "/v1/embeddings", b'{"model": "emb", "input": "x"}')
    assert got.data["data"][0]["embedding"] == [0.1, 0.2]
    output = [{"type": "message", "content": [{"type": "output_text", "text": "hello"}]}]
    response = {
        "id": "resp_1",
        "object": "response",
        "output": output,
        "usage": {"input_tokens": 4, "output_tokens": 2},
    }
    upstream.replies(whole(orjson.dumps(response)))
    run.call("POST", "/v1/responses", b'{"model": "m", "input": "x"}')
    stream = (
        b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"hello"}\n\n'
        b"event: response.completed\ndata: "
        + orjson.dumps({"type": "response.completed", "response": response})
        + b"\n\n"
    )
    upstream.replies(STREAM_HEAD + chunk(stream) + b"0\r\n\r\n")
    run.call("POST", "/v1/responses", b'{"model": "m", "input": "x", "stream": true}')
    run.call("GET", "/v1/models")
    embeddings, plain, streamed = run.calls(3)
    assert (embeddings.endpoint, embeddings.prompt_tokens) == ("/v1/embeddings", 3)
    assert "data" not in orjson.loads(embeddings.reply)
    for call in (plain, streamed):
        assert (call.answer, call.prompt_tokens, call.completion_tokens, call.reply_id) == ("hello", 4, 2, "resp_1")
        assert call.complete


def test_masked_before_it_is_written(start, upstream):
    upstream.replies(whole(answer("Hello jo@example.org")))
    run = start(log={"mask": True})
    got = run.chat("I am jo@example.org")
    assert got.data["choices"][0]["message"]["content"] == "Hello jo@example.org"
    assert upstream.received[0].data["messages"][0]["content"] == "I am jo@example.org"
    call = run.calls()[0]
    assert (call.prompt, call.answer) == ("I am [EMAIL]", "Hello [EMAIL]")


def _locked(run):
    blocker = sqlite3.connect(run.config.log.path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    return blocker


@pytest.mark.parametrize("durability", ["durable", "fast"])
def test_a_durable_reply_waits_for_its_record(start, upstream, durability):
    run = start(log={"durability": durability})
    assert run.chat().status == 200
    run.calls()
    blocker = _locked(run)
    answered = threading.Event()
    thread = threading.Thread(target=lambda: (run.chat(), answered.set()))
    thread.start()
    assert answered.wait(0.5) == (durability == "fast")
    blocker.execute("COMMIT")
    blocker.close()
    assert answered.wait(5)
    thread.join()
    assert len(run.calls(2)) == 2


def test_the_end_of_a_durable_stream_waits_for_its_record(start, upstream):
    parts = events({"role": "assistant", "content": "x"})
    upstream.replies(STREAM_HEAD + b"".join(map(chunk, parts)) + b"0\r\n\r\n")
    run = start(log={"durability": "durable"})
    blocker = _locked(run)
    connection = run.connection()
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True}
    connection.request("POST", CHAT, orjson.dumps(body))
    connection.sock.settimeout(0.5)
    response = connection.getresponse()
    got = b""
    with contextlib.suppress(TimeoutError):
        while part := response.read1(10):
            got += part
    assert b"[DONE]" not in got
    blocker.execute("COMMIT")
    blocker.close()
    connection.sock.settimeout(5)
    rest = connection.sock.recv(65536)
    while not rest.endswith(b"0\r\n\r\n"):
        rest += connection.sock.recv(65536)
    assert b"[DONE]" in rest
    connection.close()


@pytest.fixture
def broken(monkeypatch):
    """Make the log fail as on a full disk, and mend it."""
    state = {"broken": False}
    real = writer_module.insert

    def insert(connection, calls):
        if state["broken"]:
            raise LogFullError("No space is left for the traffic log: free some, or prune the log.")
        return real(connection, calls)

    monkeypatch.setattr(writer_module, "insert", insert)
    logging.getLogger("pilotfish.traffic").setLevel(logging.CRITICAL)
    yield state
    logging.getLogger("pilotfish.traffic").setLevel(logging.NOTSET)


def test_durable_refuses_calls_while_the_log_is_broken_and_loses_no_reply(start, upstream, broken):
    run = start(log={"durability": "durable"})
    broken["broken"] = True
    got = run.chat("first")
    assert got.status == 200
    assert got.body == answer()
    assert "No space is left" in got.header("x-pilotfish-warning")
    got = run.chat("second")
    assert (got.status, got.data["error"]["code"]) == (503, "log_unavailable")
    assert "No space is left" in got.data["error"]["message"]
    assert len(upstream.received) == 1
    assert run.call("GET", "/healthz").status == 503
    assert run.metric("pilotfish_log_failed") == 1
    assert run.call("GET", "/v1/models").status == 200
    broken["broken"] = False
    deadline = time.monotonic() + 5
    while run.call("GET", "/healthz").status == 503 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert run.chat("third").status == 200
    assert [call.prompt for call in run.calls(2)] == ["first", "third"]


def test_fast_forwards_calls_while_the_log_is_broken(start, upstream, broken):
    run = start()
    broken["broken"] = True
    for i in range(3):
        assert run.chat(str(i)).status == 200
        time.sleep(0.02)
    assert run.call("GET", "/healthz").data["status"] == "degraded"
    broken["broken"] = False
    assert [call.prompt for call in run.calls(3)] == ["0", "1", "2"]


def test_a_broken_log_and_a_stream(start, upstream, broken):
    parts = events({"role": "assistant", "content": "x"})
    upstream.replies(STREAM_HEAD + b"".join(map(chunk, parts)) + b"0\r\n\r\n")
    run = start(log={"durability": "durable"})
    broken["broken"] = True
    assert run.chat(stream=True).body == b"".join(parts)
    broken["broken"] = False


def test_a_log_of_at_most_so_many_calls_is_kept_to_it_while_calls_come(start, upstream, monkeypatch):
    assert PRUNE_SECONDS <= 60
    monkeypatch.setattr("pilotfish.gateway.app.PRUNE_SECONDS", 0.05)
    run = start(log={"max_rows": 3})
    newest = [run.chat(f"call {i}").header("x-pilotfish-call") for i in range(9)][-3:]
    with TrafficLog(run.config.log.path, read_only=True) as log:
        wait_for(lambda: log.count() == 3)
        assert [call.id for call in log.calls()] == newest


def test_retention(start, upstream, tmp_path):
    with TrafficLog(tmp_path / "traffic.db") as log:
        from pilotfish.traffic import Call

        log.append(Call.of("old", "x", created=time.time() - 10 * 86_400))
        log.append(Call.of("new", "x"))
    run = start(log={"retain_days": 5})
    deadline = time.monotonic() + 5
    while len(run.calls(0)) > 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [call.prompt for call in run.calls(0)] == ["new"]


def test_feedback(start, upstream):
    run = start(log={"durability": "durable"})
    first = run.chat("first").header("x-pilotfish-call")
    run.chat("second")

    def give(body) -> tuple[int, str | None]:
        got = run.call("POST", "/v1/feedback", body if isinstance(body, bytes) else orjson.dumps(body))
        return got.status, got.data["error"]["code"] if got.status != 200 else None

    assert give({"id": first, "label": "lost_card"}) == (200, None)
    assert give({"id": "chatcmpl-up", "label": "card_arrival"}) == (200, None)
    assert [call.gold for call in run.calls(2)] == ["lost_card", "card_arrival"]
    assert give({"id": "call-none", "label": "x"}) == (404, "unknown_call")
    assert give({"id": first}) == (400, "invalid_type")
    assert give({"id": first, "label": 3}) == (400, "invalid_type")
    assert give({"id": first, "label": "x", "score": 1}) == (400, "unknown_field")
    assert give(b"nonsense") == (400, "invalid_json")
    assert run.call("GET", "/v1/feedback").status == 405
    assert len(upstream.received) == 2


def test_metrics(start, upstream):
    run = start(prices=PRICES)
    run.chat()
    run.call("POST", CHAT, b"nonsense")
    wait_for(lambda: run.metric("pilotfish_log_written_total") == 1)
    text = run.call("GET", "/metrics").body.decode()
    assert 'pilotfish_calls_total{endpoint="/v1/chat/completions",answered_by="upstream",status="200"} 1' in text
    assert 'pilotfish_refused_total{code="invalid_json"} 1' in text
    assert 'pilotfish_tokens_total{kind="prompt",answered_by="upstream"} 12' in text
    assert 'pilotfish_latency_seconds_bucket{answered_by="upstream",le="+Inf"} 1' in text
    assert "pilotfish_log_written_total 1" in text
    names = [line.split(" ")[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(names) == len(set(names))


def test_stopping_finishes_what_is_under_way(start, upstream):
    import asyncio

    async def script(received, reader, writer):
        await asyncio.sleep(0.5)
        writer.write(whole(answer()))

    upstream.script = script
    run = start()
    results: list[int] = []
    thread = threading.Thread(target=lambda: results.append(run.chat().status))
    thread.start()
    time.sleep(0.2)
    run.stop()
    thread.join()
    assert results == [200]
    assert len(run.calls()) == 1
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        run.chat()
