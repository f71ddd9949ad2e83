"""What goes in comes out byte for byte, whatever it is."""

from __future__ import annotations

import asyncio
import gc
import gzip
import http.client
import socket
import string
import threading
import time

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pilotfish.gateway.wire import WireReply
from tests.gateway.rig import CHAT, STREAM_HEAD, answer, chunk, events, whole

OURS = "x-pilotfish-"


def test_a_reply_comes_through_as_it_is(start, upstream):
    body = b'{ "id":"chatcmpl-9",\n "odd" : [1.0, 1e3, "\\u00e9"], "choices":[] }  '
    upstream.replies(
        whole(
            body, headers="Content-Type: application/json\r\nX-Request-Id: 7\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n"
        )
    )
    got = start().chat("Hi", unknown_field={"x": [None]})
    assert got.body == body
    theirs = [(name.lower(), value) for name, value in got.headers if not name.lower().startswith(OURS)]
    assert theirs == [
        ("content-type", "application/json"),
        ("x-request-id", "7"),
        ("set-cookie", "a=1"),
        ("set-cookie", "b=2"),
        ("content-length", str(len(body))),
    ]
    assert got.header("x-pilotfish-answered-by") == "upstream"
    assert got.header("x-pilotfish-call").startswith("call-")


@pytest.mark.parametrize("status", [201, 400, 401, 403, 404, 409, 422, 429, 500, 503])
def test_statuses_and_error_bodies_come_through(start, upstream, status):
    body = b'{"error": {"message": "no", "type": "x", "param": null, "code": "y"}}'
    upstream.replies(whole(body, status, "content-type: application/json\r\nretry-after: 7\r\n"))
    run = start()
    got = run.chat()
    assert (got.status, got.body, got.header("retry-after")) == (status, body, "7")
    assert run.calls()[0].status == status


def test_the_request_arrives_as_it_was_sent(start, upstream):
    run = start()
    body = b'{"model" : "large",  "messages":[{"role":"user","content":"\\u00fc"}], "x": 1.50}'
    sent = [
        ("X-Custom", "a, b"),
        ("OpenAI-Organization", "org"),
        ("Authorization", "Bearer sk-mine"),
        ("X-Custom", "c"),
    ]
    assert run.call("POST", CHAT, body, sent).status == 200
    got = upstream.received[0]
    assert got.body == body
    assert got.target == CHAT
    assert [(k, v) for k, v in got.headers if k not in (b"host", b"content-length")] == [
        (name.lower().encode(), value.encode()) for name, value in sent
    ]
    assert got.header("host") == [f"127.0.0.1:{upstream.port}".encode()]


def test_headers_of_the_connection_stay_on_it(start, upstream):
    upstream.replies(
        whole(answer(), headers="content-type: application/json\r\nkeep-alive: timeout=5\r\nproxy-authenticate: x\r\n")
    )
    got = start().chat(
        headers=[
            ("Connection", "keep-alive, X-Secret"),
            ("X-Secret", "1"),
            ("Keep-Alive", "5"),
            ("TE", "trailers"),
            ("Proxy-Authorization", "x"),
            ("X-Pilotfish-Task", "mine"),
        ]
    )
    names = {name.lower() for name, _ in upstream.received[0].headers}
    assert names == {b"host", b"content-type", b"content-length"}
    assert got.header("keep-alive") is None
    assert got.header("proxy-authenticate") is None


def test_the_upstreams_key_takes_the_place_of_the_clients(start, upstream):
    run = start(upstream={"api_key": "sk-upstream"})
    run.chat(headers=[("Authorization", "Bearer sk-client")])
    run.chat()
    assert [r.header("authorization") for r in upstream.received] == [[b"Bearer sk-upstream"]] * 2
    stored = b"".join(path.read_bytes() for path in run.config.log.path.parent.glob("traffic.db*"))
    assert b"sk-client" not in stored
    assert b"sk-upstream" not in stored


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/v1/models"),
        ("GET", "/v1/files/a%2Fb%20c/content?after=x%26y&limit=2&empty="),
        ("DELETE", "/v1/files/file-1"),
        ("POST", "/v1/images/generations"),
        ("PATCH", "/v1/anything/at/all"),
        ("HEAD", "/v1/models"),
    ],
)
def test_every_other_path_is_passed_through(start, upstream, method, target):
    upstream.replies(whole(b"[1, 2]") if method != "HEAD" else b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n")
    got = start().call(method, target, b"" if method in ("GET", "HEAD") else b'"text"')
    assert (upstream.received[0].method, upstream.received[0].target) == (method, target)
    assert got.status == 200
    assert got.body == (b"" if method == "HEAD" else b"[1, 2]")
    assert got.header("content-length") == "6"


def test_bodies_that_are_no_json_are_passed_through(start, upstream):
    sound = bytes(range(256)) * 4000
    upstream.replies(whole(sound, headers="content-type: audio/mpeg\r\n"))
    form = b"--x\r\ncontent-disposition: form-data; name=file\r\n\r\n\x00\xff\r\n--x--\r\n"
    run = start()
    got = run.call("POST", "/v1/audio/transcriptions", form, [("content-type", "multipart/form-data; boundary=x")])
    assert upstream.received[0].body == form
    assert got.body == sound


def test_a_base_address_with_another_path(start, upstream):
    run = start(upstream={"base_url": f"http://127.0.0.1:{upstream.port}/openai/deployments/x/"})
    run.call("GET", "/v1/models?a=b")
    assert upstream.received[0].target == "/openai/deployments/x/models?a=b"


def test_compressed_replies_stay_compressed_and_are_logged_plain(start, upstream):
    packed = gzip.compress(answer("packed"))
    upstream.replies(whole(packed, headers="content-type: application/json\r\ncontent-encoding: gzip\r\n"))
    run = start()
    got = run.chat(headers=[("Accept-Encoding", "gzip, deflate, br, zstd")])
    assert got.body == packed
    assert got.header("content-encoding") == "gzip"
    assert upstream.received[0].header("accept-encoding") == [b"gzip, deflate"]
    assert run.calls()[0].answer == "packed"


def test_compressed_streams(start, upstream):
    packed = gzip.compress(b"".join(events({"role": "assistant", "content": "pa"}, {"content": "cked"})))
    head = STREAM_HEAD.replace(b"\r\n\r\n", b"\r\ncontent-encoding: gzip\r\n\r\n")
    upstream.replies(head + chunk(packed[:40]) + chunk(packed[40:]) + b"0\r\n\r\n")
    run = start(log={"durability": "durable"})
    assert run.chat(stream=True).body == packed
    assert run.calls()[0].answer == "packed"
    assert run.calls()[0].complete


def test_interim_replies_and_chunked_bodies(start, upstream):
    body = answer()
    parts = b"".join(chunk(body[i : i + 7]) for i in range(0, len(body), 7)) + b"0\r\nx-trailer: 1\r\n\r\n"
    upstream.replies(
        b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + parts
    )
    got = start().chat()
    assert got.body == body
    assert got.header("link") is None


def test_bodies_that_end_with_the_connection(start, upstream):
    async def script(received, reader, writer):
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n" + answer())
        writer.close()

    upstream.script = script
    run = start()
    assert [run.chat().body for _ in range(2)] == [answer()] * 2


def test_connections_are_kept_and_a_closed_one_is_replaced(start, upstream):
    run = start()
    for _ in range(3):
        assert run.chat().status == 200
    assert upstream.n_connections == 1
    upstream.stop()
    upstream.start()
    time.sleep(0.05)
    assert run.chat().status == 200
    assert upstream.n_connections == 2


TOKEN = st.text("!#$%&'*+-.^_`|~" + string.ascii_letters + string.digits, min_size=1, max_size=20).filter(
    lambda name: (
        name.lower()
        not in {
            "host",
            "content-length",
            "connection",
            "keep-alive",
            "te",
            "trailer",
            "upgrade",
            "expect",
            "transfer-encoding",
        }
        and not name.lower().startswith(
            ("x-pilotfish", "proxy-", "accept-encoding", "content-encoding", "authorization")
        )
    )
)
VALUE = st.binary(max_size=40).map(lambda raw: bytes(byte for byte in raw if byte >= 32 and byte != 127).strip(b" \t"))
HEADERS = st.lists(st.tuples(TOKEN, VALUE), max_size=6)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sent=HEADERS,
    received=HEADERS,
    body=st.binary(max_size=3000),
    reply=st.binary(max_size=3000),
    status=st.sampled_from([200, 201, 203, 400, 404, 418, 500]),
    chunked=st.booleans(),
    path=st.sampled_from(["/v1/x", "/v1/audio/speech", "/v1/responses/abc/cancel"]),
)
def test_what_goes_in_comes_out(start, upstream, sent, received, body, reply, status, chunked, path):
    if not hasattr(upstream, "run"):
        upstream.run = start()
    upstream.received.clear()
    head = b"HTTP/1.1 %d X\r\n" % status + b"".join(b"%b: %b\r\n" % (k.encode(), v) for k, v in received)
    if chunked:
        parts = [chunk(reply[i : i + 1000]) for i in range(0, len(reply), 1000)]
        upstream.replies(head + b"transfer-encoding: chunked\r\n\r\n" + b"".join(parts) + b"0\r\n\r\n")
    else:
        upstream.replies(head + b"content-length: %d\r\n\r\n" % len(reply) + reply)
    with socket.create_connection(("127.0.0.1", upstream.run.port), timeout=10) as client:
        lines = b"".join(b"%b: %b\r\n" % (k.encode(), v) for k, v in sent)
        client.sendall(
            b"POST %b HTTP/1.1\r\nhost: x\r\n%bcontent-length: %d\r\n\r\n" % (path.encode(), lines, len(body)) + body
        )
        response = http.client.HTTPResponse(client)
        response.begin()
        got = response.read()
        names = [(k.lower(), v) for k, v in response.getheaders()]
    arrived = upstream.received[0]
    assert arrived.body == body
    assert [(k, v) for k, v in arrived.headers if k not in (b"host", b"content-length")] == [
        (k.lower().encode(), v) for k, v in sent
    ]
    assert response.status == status
    assert got == reply
    framing = ("content-length", "transfer-encoding")
    assert [(k, v) for k, v in names if not k.startswith(OURS) and k not in framing] == [
        (k.lower(), v.decode("latin-1")) for k, v in received
    ]


def test_a_stream_comes_chunk_by_chunk(start, upstream):
    parts = events({"role": "assistant", "content": "a"}, {"content": "b"})
    go = threading.Event()

    async def script(received, reader, writer):
        writer.write(STREAM_HEAD)
        for part in parts:
            writer.write(chunk(part))
            await writer.drain()
            await asyncio.to_thread(go.wait, 10)
            go.clear()
        writer.write(b"0\r\n\r\n")

    upstream.script = script
    run = start(log={"durability": "durable"})
    connection = run.connection()
    connection.request(
        "POST", CHAT, orjson.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True})
    )
    response = connection.getresponse()
    assert response.getheader("content-type") == "text/event-stream"
    for part in parts:
        assert response.read(len(part)) == part
        go.set()
    assert response.read() == b""
    connection.close()
    call = run.calls()[0]
    assert (call.answer, call.stream, call.complete, call.status) == ("ab", True, True, 200)


def test_a_slow_client_slows_the_upstream(start, upstream):
    n_sent = 0
    part = b"data: " + b"x" * 65_000 + b"\n\n"

    async def script(received, reader, writer):
        nonlocal n_sent
        writer.write(STREAM_HEAD)
        for _ in range(600):
            writer.write(chunk(part))
            await writer.drain()
            n_sent += 1
        writer.write(b"0\r\n\r\n")

    upstream.script = script
    run = start(log={"durability": "fast"})
    connection = run.connection()
    connection.request(
        "POST", CHAT, orjson.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True})
    )
    response = connection.getresponse()
    time.sleep(0.5)
    held = n_sent
    assert held < 400
    time.sleep(0.2)
    assert n_sent == held
    n_bytes = 0
    while part_read := response.read(1 << 20):
        n_bytes += len(part_read)
    assert n_bytes == 600 * len(part)
    connection.close()


def test_a_call_leaves_nothing_to_the_garbage_collection(start, upstream):
    """Whose pauses all calls would wait for."""
    upstream.replies(whole(answer("yes")))
    run = start()
    gc.disable()
    try:
        for _ in range(5):
            assert run.chat().status == 200
        n_left = sum(type(one) is WireReply for one in gc.get_objects())
    finally:
        gc.enable()
    assert n_left <= 1
