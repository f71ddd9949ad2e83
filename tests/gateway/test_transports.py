"""Endpoints behind TLS, and endpoints that are reached through a proxy."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
import time

import pytest

from tests.gateway.rig import STREAM_HEAD, Scripted, answer, chunk, events, whole


@pytest.fixture
def certificate(tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*command, "-keyout", key, "-out", cert], check=True, capture_output=True)
    return cert, key


@pytest.fixture
def tls(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    scripted = Scripted(tls=context)
    yield scripted
    scripted.close()


def test_tls(start, tls, certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    run = start(upstream={"base_url": f"https://localhost:{tls.port}/v1"})
    body = answer("y" * 500_000)
    tls.replies(whole(body))
    for _ in range(2):
        assert run.chat("x" * 500_000).body == body
    assert tls.n_connections == 1
    parts = events({"content": "x"})
    tls.replies(STREAM_HEAD + b"".join(map(chunk, parts)) + b"0\r\n\r\n")
    assert run.chat(stream=True).body == b"".join(parts)


def test_an_unknown_certificate_is_refused(start, tls):
    run = start(upstream={"base_url": f"https://localhost:{tls.port}/v1"})
    got = run.chat()
    assert got.status == 502
    assert "cannot be reached" in got.data["error"]["message"]
    assert tls.received == []


@pytest.fixture
def proxied(start, upstream, monkeypatch):
    """A gateway whose upstream is beyond a proxy, which the scripted upstream plays."""
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{upstream.port}")
    monkeypatch.setenv("no_proxy", "")
    return start(upstream={"base_url": "http://large.example/v1", "read_timeout_s": 0.5})


def test_through_a_proxy(proxied, upstream):
    body = answer("packed")
    upstream.replies(whole(body, 201, "content-type: application/json\r\nx-request-id: 7\r\n"))
    got = proxied.chat("Hi", headers=[("Authorization", "Bearer sk"), ("Accept-Encoding", "gzip")], odd=[1.50])
    assert (got.status, got.body, got.header("x-request-id")) == (201, body, "7")
    received = upstream.received[0]
    assert received.target == "http://large.example/v1/chat/completions"
    assert received.header("host") == [b"large.example"]
    names = {name.lower() for name, _ in received.headers}
    assert names == {b"host", b"content-type", b"content-length", b"authorization", b"accept-encoding"}
    proxied.call("GET", "/v1/files/a%2Fb?x=%26")
    assert upstream.received[1].target == "http://large.example/v1/files/a%2Fb?x=%26"
    parts = events({"content": "x"})
    upstream.replies(STREAM_HEAD + b"".join(map(chunk, parts)) + b"0\r\n\r\n")
    assert proxied.chat(stream=True).body == b"".join(parts)


def test_faults_beyond_a_proxy(proxied, upstream):
    async def half(received, reader, writer):
        writer.write(whole(answer())[:-9])
        writer.close()

    async def silent(received, reader, writer):
        await asyncio.sleep(5)

    for script, status in ((half, 502), (silent, 504)):
        upstream.script = script
        begin = time.monotonic()
        assert proxied.chat().status == status
        assert time.monotonic() - begin < 4
    upstream.replies(b"nonsense\r\n\r\n")
    assert proxied.chat().status == 502
    upstream.stop()
    assert "proxy" in proxied.chat().data["error"]["message"]
