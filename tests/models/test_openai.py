from __future__ import annotations

import asyncio
import gc
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from pilotfish.errors import (
    ConfigError,
    ContextLengthError,
    InputError,
    RateLimitedError,
    UpstreamError,
    UpstreamTimeoutError,
)
from pilotfish.models import openai
from pilotfish.models.openai import OpenAIModel
from pilotfish.types import Request
from tests.models.servers import serving

KEY = "sk-very-secret"
Answer = Callable[[BaseHTTPRequestHandler, dict[str, Any]], None]


def completion(text: str, **more: Any) -> bytes:
    message = {"role": "assistant", "content": text, **more}
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    return json.dumps(
        {"model": "big-1", "choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}
    ).encode()


def send(http: BaseHTTPRequestHandler, body: bytes, status: int = 200, **headers: str) -> None:
    http.send_response(status)
    http.send_header("Content-Length", str(len(body)))
    for name, value in headers.items():
        http.send_header(name.replace("_", "-"), value)
    http.end_headers()
    http.wfile.write(body)


class Upstream:
    """An endpoint whose next answers are scripted; when none is left it echoes the prompt."""

    def __init__(self) -> None:
        self.url = ""
        self.script: list[Answer] = []
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.n_open = 0
        self.most_open = 0
        self.delay = 0.0
        self.lock = threading.Lock()

    def __call__(self, http: BaseHTTPRequestHandler) -> None:
        body = json.loads(http.rfile.read(int(http.headers["Content-Length"])))
        with self.lock:
            self.bodies.append(body)
            self.headers.append(dict(http.headers))
            self.n_open += 1
            self.most_open = max(self.most_open, self.n_open)
            answer = self.script.pop(0) if self.script else None
        try:
            time.sleep(self.delay)
            if answer is not None:
                answer(http, body)
            else:
                send(http, completion(body["messages"][-1]["content"]))
        finally:
            with self.lock:
                self.n_open -= 1


@pytest.fixture
def upstream(monkeypatch: pytest.MonkeyPatch) -> Iterator[Upstream]:
    monkeypatch.setattr(openai, "_FIRST_WAIT", 0.01)
    state = Upstream()
    with serving(state) as url:
        state.url = url + "/v1"
        yield state


@pytest.fixture
def model(upstream: Upstream) -> Iterator[OpenAIModel]:
    with OpenAIModel("big", upstream.url, KEY, prompt_price=1.0, completion_price=2.0, timeout=5) as made:
        yield made


def status(code: int, body: bytes = b"{}", **headers: str) -> Answer:
    return lambda http, _: send(http, body, code, **headers)


def test_a_batch_keeps_its_order_and_runs_at_once(upstream: Upstream, model: OpenAIModel) -> None:
    upstream.delay = 0.3
    model.max_concurrency = 5
    start = time.perf_counter()
    replies = model.generate([Request.of(f"prompt {i}") for i in range(10)])
    assert [reply.text for reply in replies] == [f"prompt {i}" for i in range(10)]
    assert time.perf_counter() - start < 0.8 * 10 * upstream.delay
    assert 1 < upstream.most_open <= 5
    assert model.generate([]) == []


def test_garbage_collected_on_the_loops_own_thread_does_not_stop_it(upstream: Upstream) -> None:
    forgotten = OpenAIModel("big", base_url=upstream.url, api_key="k")
    forgotten.generate([Request.of("x")])
    session = forgotten._endpoint.session  # type: ignore[union-attr]
    forgotten.itself = forgotten  # type: ignore[attr-defined]
    del forgotten

    async def collect() -> None:
        gc.collect()

    asyncio.run_coroutine_threadsafe(collect(), openai._loop()).result(timeout=10)
    deadline = time.monotonic() + 10
    while not session.closed and time.monotonic() < deadline:
        time.sleep(0.01)
    assert session.closed


def test_what_is_sent_and_what_is_read(upstream: Upstream, model: OpenAIModel) -> None:
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    logs = {"content": [{"token": "a", "logprob": -0.5, "top_logprobs": [{"token": "b", "logprob": -1.5}]}]}
    choice = {"message": {"content": None, "tool_calls": calls}, "finish_reason": "tool_calls", "logprobs": logs}
    body = json.dumps({"choices": [choice], "usage": None}).encode()
    upstream.script = [lambda http, _: send(http, body)]
    tools = [{"type": "function", "function": {"name": "f"}}]
    request = Request.of("x", model="alias", temperature=0, log_probs=1, extra={"tools": tools, "odd": {"a": 1}})
    (reply,) = model.generate([request])
    assert upstream.bodies[0] == {
        "model": "big",
        "messages": [{"role": "user", "content": "x"}],
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 1,
        "tools": tools,
        "odd": {"a": 1},
    }
    assert upstream.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert reply.text == ""
    assert reply.extra["tool_calls"] == calls
    assert reply.finish_reason == "tool_calls"
    assert (reply.log_probs[0].log_prob, reply.log_probs[0].top) == (-0.5, (("b", -1.5),))
    (reply,) = model.generate([Request.of("🙂 ü")])
    assert reply.text == "🙂 ü"
    assert reply.model == "big-1"
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (7, 3)
    assert reply.usage.cost == pytest.approx((7 * 1 + 3 * 2) / 1e6)
    assert reply.usage.latency > 0


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 529])
def test_passing_failures_are_tried_again(upstream: Upstream, model: OpenAIModel, code: int) -> None:
    upstream.script = [status(code), status(code)]
    assert model.generate([Request.of("x")])[0].text == "x"
    assert len(upstream.bodies) == 3


def test_garbage_and_broken_connections_are_tried_again(upstream: Upstream, model: OpenAIModel) -> None:
    def cut(http: BaseHTTPRequestHandler, _: dict[str, Any]) -> None:
        http.send_response(200)
        http.send_header("Content-Length", "1000")
        http.end_headers()
        http.wfile.write(b'{"choices": [')
        http.close_connection = True

    upstream.script = [cut, status(200, b"<html>"), status(200, b'{"choices": []}'), status(200, b"[]")]
    assert model.generate([Request.of("x")])[0].text == "x"
    assert len(upstream.bodies) == 5
    upstream.script = [status(200, b"<html>")] * 5
    with pytest.raises(UpstreamError, match="not a chat completion"):
        model.generate([Request.of("x")])


def test_retry_after_is_honoured(upstream: Upstream, model: OpenAIModel) -> None:
    upstream.script = [status(429, Retry_After="1")]
    start = time.perf_counter()
    model.generate([Request.of("x")])
    assert 1 <= time.perf_counter() - start < 3
    assert openai._retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert openai._retry_after("soon") is None


@pytest.mark.parametrize(
    ("code", "body", "kind", "n_calls"),
    [
        (429, b'{"error": {"message": "slow down"}}', RateLimitedError, 3),
        (429, b'{"error": {"message": "pay", "code": "insufficient_quota"}}', RateLimitedError, 1),
        (500, b"oops", UpstreamError, 3),
        (401, b'{"error": {"message": "Incorrect API key: sk-very-secret"}}', UpstreamError, 1),
        (400, b'{"error": {"message": "no", "code": "context_length_exceeded"}}', ContextLengthError, 1),
        (400, b'{"error": "maximum context length is 4096 tokens"}', ContextLengthError, 1),
        (404, b"not json sk-very-secret", UpstreamError, 1),
    ],
)
def test_lasting_failures_become_our_errors(
    upstream: Upstream, model: OpenAIModel, code: int, body: bytes, kind: type[Exception], n_calls: int
) -> None:
    model.n_retries = 2
    upstream.script = [status(code, body)] * 3
    with pytest.raises(kind) as caught:
        model.generate([Request.of("x")])
    assert type(caught.value) is kind
    assert len(upstream.bodies) == n_calls
    assert KEY not in str(caught.value)
    if isinstance(caught.value, UpstreamError):
        assert caught.value.status == code
        assert KEY.encode() not in caught.value.body


def test_a_slow_endpoint_times_out(upstream: Upstream) -> None:
    upstream.delay = 2
    with OpenAIModel("big", upstream.url, timeout=0.1, n_retries=1) as model, pytest.raises(UpstreamTimeoutError):
        model.generate([Request.of("x")])
    assert len(upstream.bodies) == 2


def test_an_endpoint_that_is_down(upstream: Upstream) -> None:
    with (
        OpenAIModel("big", "http://127.0.0.1:9/v1", KEY, n_retries=1) as model,
        pytest.raises(UpstreamError, match="could not be reached") as caught,
    ):
        model.generate([Request.of("x")])
    assert caught.value.status is None


def test_one_failure_ends_the_batch(upstream: Upstream, model: OpenAIModel) -> None:
    upstream.script = [status(400, b"{}")]
    with pytest.raises(UpstreamError, match="status 400"):
        model.generate([Request.of("a"), Request.of("b")])
    assert model.generate([Request.of("c")])[0].text == "c"


def test_the_rate_limit_holds(upstream: Upstream, model: OpenAIModel, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    real_sleep = openai.asyncio.sleep

    async def sleep(seconds: float) -> None:
        now[0] += seconds
        await real_sleep(0)

    monkeypatch.setattr(openai.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(openai.asyncio, "sleep", sleep)
    model.requests_per_minute = 3
    model.max_concurrency = 1
    model.generate([Request.of("x")] * 7)
    assert 119 < now[0] < 125


def stream_of(*events: str, done: bool = True) -> Answer:
    def answer(http: BaseHTTPRequestHandler, _: dict[str, Any]) -> None:
        http.send_response(200)
        http.send_header("Content-Type", "text/event-stream")
        http.end_headers()
        for event in events:
            http.wfile.write(f"data: {event}\n\n".encode())
            http.wfile.flush()
        if done:
            http.wfile.write(b"data: [DONE]\n\n")
        http.close_connection = True

    return answer


def delta(text: str, finish_reason: str | None = None) -> str:
    return json.dumps({"choices": [{"delta": {"content": text}, "finish_reason": finish_reason}]})


def test_streaming(upstream: Upstream, model: OpenAIModel) -> None:
    upstream.script = [status(503), stream_of(delta("He"), delta("llo 🙂"), '{"choices": []}', delta("", "stop"))]
    assert list(model.stream(Request.of("x"))) == ["He", "llo 🙂"]
    assert upstream.bodies[-1]["stream"] is True
    upstream.script = [stream_of(delta("a"), delta("", "stop"), done=False)]
    assert list(model.stream(Request.of("x"))) == ["a"]


def test_half_a_stream_is_told_and_not_tried_again(upstream: Upstream, model: OpenAIModel) -> None:
    upstream.script = [stream_of(delta("a"), done=False)]
    chunks = model.stream(Request.of("x"))
    assert next(chunks) == "a"
    with pytest.raises(UpstreamError, match="ended before"):
        next(chunks)
    assert len(upstream.bodies) == 1
    upstream.script = [stream_of(delta("a"), '{"error": {"message": "boom"}}')]
    with pytest.raises(UpstreamError, match="boom"):
        list(model.stream(Request.of("x")))
    upstream.script = [stream_of(delta("a"), "garbage")]
    with pytest.raises(UpstreamError, match="no chunk"):
        list(model.stream(Request.of("x")))


def test_leaving_a_stream_ends_the_call(upstream: Upstream, model: OpenAIModel) -> None:
    broken = threading.Event()

    def endless(http: BaseHTTPRequestHandler, _: dict[str, Any]) -> None:
        http.send_response(200)
        http.end_headers()
        try:
            for _ in range(1000):
                http.wfile.write(f"data: {delta('x' * 10_000)}\n\n".encode())
                time.sleep(0.005)
        except OSError:
            broken.set()
        http.close_connection = True

    upstream.script = [endless]
    chunks = model.stream(Request.of("x"))
    next(chunks)
    chunks.close()  # type: ignore[attr-defined]
    assert broken.wait(5)


def test_where_it_goes_is_read_at_the_first_call(upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    model = OpenAIModel("")
    monkeypatch.setenv("OPENAI_BASE_URL", upstream.url)
    monkeypatch.setenv("OPENAI_API_KEY", "later")
    assert model.generate([Request.of("x", model="asked")])[0].text == "x"
    assert upstream.headers[0]["Authorization"] == "Bearer later"
    assert upstream.bodies[0]["model"] == "asked"
    with pytest.raises(InputError, match="names a model"):
        model.generate([Request.of("x")])
    model.close()
    assert model.generate([Request.of("x", model="asked")])[0].text == "x"
    model.close()


def test_bad_settings_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        OpenAIModel("gpt").generate([Request.of("x")])
    with pytest.raises(ConfigError, match="base_url"):
        OpenAIModel("gpt", "localhost:1").generate([Request.of("x")])
    with pytest.raises(InputError, match="JSON"), OpenAIModel("m", "http://127.0.0.1:9", KEY) as model:
        model.generate([Request.of("\ud800")])


def test_the_key_is_not_shown() -> None:
    model = OpenAIModel("m", "http://127.0.0.1:9", KEY)
    assert KEY not in repr(model)
    assert KEY not in str({name: value for name, value in vars(model).items() if not name.startswith("_")})
