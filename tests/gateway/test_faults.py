"""An upstream that is down, slow, talks garbage or stops half-way; clients that leave; calls that may not pass."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import time

import orjson
import pytest

from tests.gateway.rig import CHAT, STREAM_HEAD, Scripted, answer, chunk, events, whole

STREAMED = orjson.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True})


def _is_openai_error(got, status, code):
    assert got.status == status
    assert got.header("content-type") == "application/json"
    assert set(got.data) == {"error"}
    assert set(got.data["error"]) == {"message", "type", "param", "code"}
    assert got.data["error"]["code"] == code
    return got.data["error"]["message"]


def test_down(start, upstream):
    run = start(upstream={"retries": 1})
    upstream.stop()
    message = _is_openai_error(run.chat(), 502, "upstream_error")
    assert "cannot be reached" in message
    assert run.metric("pilotfish_upstream_retries_total") == 1
    call = run.calls()[0]
    assert (call.status, call.answered_by, call.complete) == (502, "", False)
    upstream.start()
    assert run.chat().status == 200


def test_unknown_host(start):
    run = start(upstream={"base_url": "http://nowhere.invalid/v1"})
    assert "cannot be reached" in _is_openai_error(run.chat(), 502, "upstream_error")


def test_slow_to_the_first_byte_and_between_two(start, upstream):
    async def script(received, reader, writer):
        if b"half" in received.body:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{")
        await asyncio.sleep(30)

    upstream.script = script
    run = start(upstream={"read_timeout_s": 0.2})
    for prompt in ("none", "half"):
        begin = time.monotonic()
        _is_openai_error(run.chat(prompt), 504, "upstream_timeout")
        assert time.monotonic() - begin < 5


def test_too_long_in_all(start, upstream):
    async def script(received, reader, writer):
        writer.write(STREAM_HEAD)
        for _ in range(200):
            writer.write(chunk(b": still there\n\n"))
            await asyncio.sleep(0.05)

    upstream.script = script
    run = start(upstream={"total_timeout_s": 0.4})
    begin = time.monotonic()
    with pytest.raises(http.client.IncompleteRead):
        run.chat(stream=True)
    assert time.monotonic() - begin < 5
    assert not run.calls()[0].complete


@pytest.mark.parametrize(
    "garbage",
    [
        b"I am no HTTP server.\r\n\r\n",
        b"HTTP/1.1 999 Odd\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: ten\r\n\r\n0123456789",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 101 Switching\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n\x00\x01",
        b"HTTP/1.1 200 OK\r\n" + b"x: " + b"y" * 400_000 + b"\r\ncontent-length: 0\r\n\r\n",
    ],
)
def test_garbage(start, upstream, garbage):
    upstream.replies(garbage)
    run = start()
    got = run.chat()
    _is_openai_error(got, 502, "upstream_error")


def test_garbage_inside_a_sound_reply_is_passed_on(start, upstream):
    upstream.replies(whole(b"<html>not json\xff"))
    run = start()
    assert run.chat().body == b"<html>not json\xff"
    assert (run.calls()[0].answer, run.calls()[0].reply) == ("", b"<html>not json\xff")


def test_a_second_reply_nobody_asked_for_is_not_taken_for_the_next(start, upstream):
    upstream.replies(whole(answer("first")) + whole(answer("smuggled")))
    run = start()
    first = run.chat()
    assert first.data["choices"][0]["message"]["content"] == "first"
    upstream.replies(whole(answer("second")))
    assert run.chat().data["choices"][0]["message"]["content"] == "second"


def test_half_a_json_reply_is_an_error(start, upstream):
    async def script(received, reader, writer):
        writer.write(whole(answer())[:-20])
        writer.close()

    upstream.script = script
    run = start()
    assert "broke off" in _is_openai_error(run.chat(), 502, "upstream_error")


def test_half_a_stream_is_seen_to_be_cut_off(start, upstream):
    async def script(received, reader, writer):
        writer.write(STREAM_HEAD + chunk(events({"role": "assistant", "content": "half"})[0]))
        await writer.drain()
        writer.close()

    upstream.script = script
    run = start(log={"durability": "durable"})
    with pytest.raises(http.client.IncompleteRead) as caught:
        run.chat(stream=True)
    assert b"half" in caught.value.partial
    call = run.calls()[0]
    assert (call.answer, call.complete, call.status) == ("half", False, 200)
    assert "broke off" in call.reason


def test_a_stream_that_ends_well_but_without_its_last_event(start, upstream):
    upstream.replies(STREAM_HEAD + chunk(events({"role": "assistant", "content": "x"})[0]) + b"0\r\n\r\n")
    run = start()
    assert run.chat(stream=True).status == 200
    assert not run.calls()[0].complete


def test_a_client_that_leaves_early_cancels_the_call(start, upstream):
    async def script(received, reader, writer):
        await reader.read()
        raise ConnectionError

    upstream.script = script
    run = start()
    with socket.create_connection(("127.0.0.1", run.port)) as client:
        client.sendall(
            b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (CHAT.encode(), len(STREAMED), STREAMED)
        )
        time.sleep(0.3)
        assert len(upstream.received) == 1
    assert upstream.disconnected.wait(5)
    call = run.calls()[0]
    assert (call.status, call.complete, call.reason) == (499, False, "client left")


def test_a_client_that_leaves_a_stream_cancels_it_and_what_came_is_recorded(start, upstream):
    parts = events(*({"content": f"{i} "} for i in range(2000)))

    async def script(received, reader, writer):
        writer.write(STREAM_HEAD)
        for part in parts:
            writer.write(chunk(part))
            await writer.drain()
            await asyncio.sleep(0.01)

    upstream.script = script
    run = start(log={"durability": "durable"})
    with socket.create_connection(("127.0.0.1", run.port)) as client:
        client.sendall(
            b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (CHAT.encode(), len(STREAMED), STREAMED)
        )
        got = b""
        while b'"2 "' not in got:
            got += client.recv(65536)
    assert upstream.disconnected.wait(5)
    call = run.calls()[0]
    assert call.answer.startswith("0 1 2 ")
    assert (call.status, call.complete, call.reason) == (200, False, "client left")


def test_retries_where_safe(start, upstream):
    upstream.replies(whole(b"{}", 503, "retry-after: 0\r\n"), whole(b"{}", 502), whole(answer()))
    run = start(upstream={"retries": 2})
    assert run.chat().status == 200
    assert len(upstream.received) == 3
    upstream.received.clear()
    upstream.replies(whole(b'{"x": 1}', 503), whole(answer()))
    got = run.call("POST", "/v1/responses", b'{"model": "m", "input": "x"}')
    assert (got.status, got.body, len(upstream.received)) == (503, b'{"x": 1}', 1)
    upstream.received.clear()
    upstream.replies(whole(b'{"x": 1}', 429), whole(answer()))
    assert (run.chat().status, len(upstream.received)) == (429, 1)


def test_the_breaker_opens_and_closes(start, upstream):
    upstream.replies(whole(b"{}", 503))
    run = start(upstream={"breaker_failures": 3, "breaker_open_s": 0.4})
    assert [run.chat().status for _ in range(3)] == [503] * 3
    got = run.chat()
    assert "left alone" in _is_openai_error(got, 503, "upstream_unavailable")
    assert int(got.header("retry-after")) >= 1
    assert len(upstream.received) == 3
    assert run.metric("pilotfish_breaker_open") == 1
    assert run.call("GET", "/healthz").data["status"] == "degraded"
    upstream.replies(whole(answer()))
    time.sleep(0.5)
    assert run.chat().status == 200
    assert run.call("GET", "/healthz").data["status"] == "ok"


def test_a_local_model_may_be_the_one_to_fall_back_to(start, upstream, monkeypatch):
    from pilotfish.models.fake import FakeModel

    monkeypatch.setattr("pilotfish.gateway.app.make_models", lambda _configs: {"small": FakeModel("from here")})
    run = start(models={"small": {"source": "any"}}, fallback={"model": "small"})
    upstream.replies(whole(b"{}", 500))
    got = run.chat()
    assert (got.status, got.header("x-pilotfish-answered-by")) == (200, "small")
    assert got.data["choices"][0]["message"]["content"] == "from here"
    assert [received.data["model"] for received in upstream.received] == ["large"]
    (call,) = run.calls()
    assert (call.answered_by, call.answer, call.cost) == ("small", "from here", 0.0)


def test_a_fallback_elsewhere_is_not_sent_the_large_models_key(start, upstream):
    other = Scripted()
    try:
        run = start(upstream={"api_key": "sk-large"}, fallback={"model": "small", "base_url": other.url})
        upstream.replies(whole(b"{}", 500))
        assert run.chat(headers=[("Authorization", "Bearer sk-client")]).status == 200
        assert other.received[0].header("authorization") == []
    finally:
        other.close()
    same = start(upstream={"api_key": "sk-large"}, fallback={"model": "small"})
    upstream.replies(whole(b"{}", 500), whole(answer()))
    assert same.chat().status == 200
    assert upstream.received[-1].header("authorization") == [b"Bearer sk-large"]


@pytest.mark.parametrize("fault", ["down", "status", "breaker"])
def test_the_fallback_model_answers(start, upstream, fault):
    other = Scripted()
    other.replies(whole(answer("from the small one", model="small-1")))
    try:
        run = start(
            upstream={"breaker_failures": 1 if fault == "breaker" else 5},
            fallback={"model": "small", "base_url": other.url, "api_key": "sk-other"},
            prices={"small": {"input": 1, "output": 2}},
        )
        if fault == "down":
            upstream.stop()
        else:
            upstream.replies(whole(b"{}", 500 if fault == "status" else 503))
        got = run.chat(temperature=0.5, headers=[("Authorization", "Bearer sk-client")])
        if fault == "breaker":
            got = run.chat(temperature=0.5)
        assert got.status == 200
        assert got.header("x-pilotfish-answered-by") == "small"
        assert "fell back" in got.header("x-pilotfish-reason")
        assert other.received[-1].data == {
            "model": "small",
            "messages": [{"role": "user", "content": "Hi"}],
            "temperature": 0.5,
        }
        assert other.received[0].header("authorization") == [b"Bearer sk-other"]
        call = run.calls()[-1]
        assert (call.answered_by, call.answer) == ("small", "from the small one")
        assert call.cost == pytest.approx((12 * 1 + 3 * 2) / 1e6)
        assert run.call("POST", "/v1/responses", b'{"model": "m"}').status in (500, 502, 503)
    finally:
        other.close()


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"", "invalid_json", None),
        (b'{"model": "m", "messages": [', "invalid_json", None),
        (b'{"model": "m\xff", "messages": []}', "invalid_json", None),
        (b"[" * 5000, "invalid_json", None),
        (b"[]", "invalid_type", None),
        (b'"text"', "invalid_type", None),
        (b'{"model": "m"}', "invalid_type", "messages"),
        (b'{"model": "m", "messages": []}', "invalid_type", "messages"),
        (b'{"model": "m", "messages": "Hi"}', "invalid_type", "messages"),
        (b'{"model": "m", "messages": ["Hi"]}', "invalid_type", "messages"),
        (b'{"model": "m", "messages": [{"role": "user", "content": 3}]}', "invalid_type", "messages"),
        (b'{"model": "m", "messages": [{"role": "user", "content": ["x"]}]}', "invalid_type", "messages"),
        (b'{"model": 7, "messages": [{"role": "user", "content": "x"}]}', "invalid_type", "model"),
        (b'{"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": "yes"}', "invalid_type", "stream"),
    ],
)
def test_malformed_calls_get_a_clear_error_and_go_nowhere(start, upstream, body, code, param):
    run = start()
    got = run.call("POST", CHAT, body)
    message = _is_openai_error(got, 400, code)
    assert message.endswith(".")
    assert got.data["error"]["param"] == param
    assert upstream.received == []
    assert run.chat().status == 200


def test_oversized_bodies(start, upstream):
    run = start(server={"max_body_bytes": 2000})
    assert run.chat("x" * 1000).status == 200
    assert "max_body_bytes" in _is_openai_error(run.chat("x" * 2000), 413, "request_too_large")
    connection = run.connection()
    connection.request("POST", CHAT, iter([b"x" * 1500, b"x" * 1500]), encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()
    assert len(upstream.received) == 1


def test_large_bodies_pass(start, upstream):
    run = start()
    text = "x" * 3_000_000
    assert run.chat(text).status == 200
    assert upstream.received[0].data["messages"][0]["content"] == text
    body = answer("y" * 3_000_000)
    upstream.replies(whole(body))
    assert run.chat().body == body


def test_requests_in_pieces_and_in_a_row_on_one_connection(start, upstream):
    run = start()
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}]}).encode()
    request = b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (CHAT.encode(), len(body), body)
    with socket.create_connection(("127.0.0.1", run.port), timeout=5) as client:
        for piece in (request[:30], request[30:90], request[90:] + request + request):
            client.sendall(piece)
            time.sleep(0.05)
        got = b""
        while got.count(answer()) < 3:
            got += client.recv(65536)
    assert len(upstream.received) == 3


def test_no_http_at_all(start):
    run = start()
    with socket.create_connection(("127.0.0.1", run.port), timeout=5) as client:
        client.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 400")
    assert run.chat().status == 200


@pytest.mark.parametrize("path", ["/v1/../admin", "/v1/%2e%2E/admin", "/v1/models/..", "/v1/./models"])
def test_no_path_leads_out_of_the_endpoint(start, upstream, path):
    run = start()
    got = run.call("GET", path)
    assert (got.status, got.data["error"]["code"]) == (404, "unknown_url")
    assert run.call("GET", "/v1/models/a..b").status == 200
    assert len(upstream.received) == 1


def test_paths_that_are_not_there(start):
    run = start()
    message = _is_openai_error(run.call("GET", "/chat/completions"), 404, "unknown_url")
    assert "/v1" in message
    assert run.call("GET", "/v1").status == 404
