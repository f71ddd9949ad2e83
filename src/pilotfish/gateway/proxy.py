"""The hot path: every call under ``/v1`` from its first byte to its record."""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from pilotfish.errors import InputError, LogError, UpstreamError, UpstreamTimeoutError
from pilotfish.gateway.admission import CHAT, CHECKED, CLIENT_LEFT, Admission, Receive, Refused, Scope, Send, respond
from pilotfish.gateway.config import GatewayConfig
from pilotfish.gateway.exchange import Exchange, cost_of, decompressor
from pilotfish.gateway.local import LocalReply
from pilotfish.gateway.metrics import Metrics
from pilotfish.gateway.shapes import completion, completion_stream, error_body, usage_of, why_not_local
from pilotfish.gateway.students import Students, silent
from pilotfish.gateway.upstream import Upstream, UpstreamReply
from pilotfish.gateway.wire import Headers
from pilotfish.protocols import Model
from pilotfish.traffic import Answerer, Call, TrafficLog
from pilotfish.traffic.calls import UPSTREAM
from pilotfish.types import Request

__all__ = ["Proxy"]

REPEATABLE = frozenset([CHAT, "/v1/completions", "/v1/embeddings", "/v1/moderations"])
FALLEN_BACK = frozenset([429, 500, 502, 503, 504])
MAX_RECORDED_BYTES = 32 << 20
MAX_QUEUED = 10_000
WATCH_AFTER_SECONDS = 0.05
_ENDS = (b"data: [DONE]", b"data:[DONE]", b"event: response.completed", b"event: response.incomplete")
_LONGEST_END = max(map(len, _ENDS))

_logger = logging.getLogger("pilotfish.gateway")


class Proxy:
    """Forward calls, have some answered locally, record all.

    Parameters
    ----------
    config : GatewayConfig
        What the gateway was told.
    log : TrafficLog
        Where calls are recorded.
    upstream, fallback : Upstream, Upstream or None
        The large model's endpoint and that of the model in its place.
    answerer : Answerer or None
        Who may answer calls locally.
    metrics : Metrics
        Counts.
    near : mapping of str to Model
        Local models and routes by name.
    """

    def __init__(
        self,
        config: GatewayConfig,
        log: TrafficLog,
        upstream: Upstream,
        fallback: Upstream | None,
        answerer: Answerer | None,
        metrics: Metrics,
        near: Mapping[str, Model],
    ) -> None:
        self.config = config
        self.log = log
        self.upstream = upstream
        self.fallback = fallback
        self.metrics = metrics
        self.admission = Admission(config, log, near)
        self.students = Students(answerer, log, config.student.timeout_s, metrics) if answerer is not None else None
        self._durable = log.durability == "durable"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        exchange = Exchange(scope)
        try:
            await self.admission.read(exchange, receive)
            self.admission.check(exchange)
        except Refused as refusal:
            self.metrics.add("refused_total", f'code="{refusal.code}"')
            await respond(send, refusal.status, refusal.body, exchange.own_headers())
            return
        loop = asyncio.get_running_loop()
        watch = _Watch(exchange, receive)
        timer = loop.call_later(WATCH_AFTER_SECONDS, watch.start)
        try:
            await self._answer(exchange, send)
        except asyncio.CancelledError:
            exchange.finish("client left" if watch.left else "gateway stopped", complete=False)
            exchange.status = exchange.status or CLIENT_LEFT
            self._post(exchange)
            if not watch.left:
                raise
        finally:
            timer.cancel()
            watch.stop()
        self.metrics.call(
            exchange.endpoint if exchange.endpoint in CHECKED else "other",
            exchange.answered_by,
            exchange.status,
            exchange.finished - exchange.started,
        )

    async def _answer(self, exchange: Exchange, send: Send) -> None:
        if self.students is not None and exchange.endpoint == CHAT and exchange.logged:
            await self._consult(exchange, self.students)
            if exchange.local:
                await self._answer_locally(exchange, send, self.students)
                return
        try:
            reply = await self._forward(exchange)
        except UpstreamError as error:
            await self._fail(exchange, send, error)
            return
        try:
            await self._relay(exchange, reply, send)
        finally:
            reply.close()

    async def _consult(self, exchange: Exchange, students: Students) -> None:
        headers = _Headers(exchange.raw_headers)
        exchange.task = task = students.task_of(exchange.data, headers)
        if task is None or not students.active(task):
            return
        why_not = why_not_local(exchange.data)
        if why_not is None:
            try:
                request = Request.from_json(exchange.data, headers)
            except InputError:
                why_not = "not understood"
        verdict = silent(task, why_not) if why_not is not None else await students.answer(task, request)
        exchange.verdict = verdict
        exchange.reason = verdict.reason
        exchange.local = verdict.reply is not None

    async def _answer_locally(self, exchange: Exchange, send: Send, students: Students) -> None:
        reply = exchange.verdict.reply
        assert reply is not None
        exchange.answered_by = reply.model or "student"
        exchange.status = 200
        head = exchange.call_id, exchange.created, exchange.model
        if exchange.stream:
            options = exchange.data.get("stream_options")
            with_usage = isinstance(options, dict) and options.get("include_usage") is True
            body = completion_stream(*head, reply, with_usage=with_usage)
            exchange.sse = True
            content_type = b"text/event-stream; charset=utf-8"
        else:
            body = orjson.dumps(completion(*head, reply))
            content_type = b"application/json"
        exchange.reply.append(body)
        exchange.finish()
        if exchange.verdict.audit:
            students.audit(exchange.call_id, lambda: self._ask(exchange))
        await self._record(exchange)
        await respond(send, 200, body, exchange.own_headers(), content_type)

    async def _forward(self, exchange: Exchange) -> UpstreamReply:
        """Get the head of a reply, from the fall-back model where the large one fails."""
        repeatable = exchange.endpoint in REPEATABLE or exchange.method in ("GET", "HEAD", "OPTIONS")
        fallback = self.fallback if exchange.endpoint in (CHAT, "/v1/completions") and exchange.logged else None
        try:
            reply = await self.upstream.send(
                exchange.method,
                exchange.raw_path,
                exchange.query,
                exchange.request_headers(self.upstream.authorization, bool(self.config.keys)),
                exchange.body,
                repeatable=repeatable,
            )
        except UpstreamError as error:
            self.metrics.add("upstream_failures_total", f'kind="{_kind(error)}"')
            if fallback is None:
                raise
            why = _kind(error)
        else:
            _note(exchange, reply)
            if fallback is None or reply.status not in FALLEN_BACK:
                exchange.answered_by = UPSTREAM
                exchange.near = exchange.model in self.admission.near
                return reply
            why = f"status {reply.status}"
            reply.close()
        assert self.config.fallback is not None
        model = self.config.fallback.model
        reply = await fallback.send(
            exchange.method,
            exchange.raw_path,
            exchange.query,
            exchange.request_headers(fallback.authorization, True),
            orjson.dumps({**exchange.data, "model": model}),
            repeatable=True,
        )
        exchange.answered_by = exchange.model = model
        exchange.reason = f"{exchange.reason}; fell back: {why}".removeprefix("; ")
        exchange.priced = True
        _note(exchange, reply)
        return reply

    async def _relay(self, exchange: Exchange, reply: UpstreamReply, send: Send) -> None:
        exchange.status = reply.status
        content_type = b""
        for name, value in reply.raw_headers:
            lower = name.lower()
            if lower == b"content-type":
                content_type = value.lower()
            elif lower == b"content-encoding":
                exchange.codings = value
        exchange.sse = content_type.startswith(b"text/event-stream")
        if not exchange.sse and (content_type.startswith(b"application/json") or not content_type):
            await self._relay_whole(exchange, reply, send)
        else:
            await self._relay_parts(exchange, reply, send)

    async def _relay_whole(self, exchange: Exchange, reply: UpstreamReply, send: Send) -> None:
        """Wait for a JSON reply's end, record it, send it."""
        n_bytes = 0
        try:
            while part := await reply.read_some():
                exchange.reply.append(part)
                n_bytes += len(part)
                if n_bytes > MAX_RECORDED_BYTES:
                    await self._relay_parts(exchange, reply, send)
                    return
        except UpstreamError as error:
            exchange.reply.clear()
            await self._fail(exchange, send, error)
            return
        exchange.finish()
        if self._durable:
            await self._record(exchange)
        start = {"type": "http.response.start", "status": exchange.status}
        start["headers"] = exchange.reply_headers(reply.raw_headers)
        await send(start)
        body = exchange.reply[0] if len(exchange.reply) == 1 else b"".join(exchange.reply)
        await send({"type": "http.response.body", "body": body})
        if not self._durable:
            await self._record(exchange)

    async def _relay_parts(self, exchange: Exchange, reply: UpstreamReply, send: Send) -> None:
        """Send a reply on as it comes; with a durable log its end waits for the record."""
        recording = _Recording(exchange)
        headers = exchange.reply_headers(reply.raw_headers)
        await send({"type": "http.response.start", "status": exchange.status, "headers": headers})
        for part in recording.take_over():
            await send({"type": "http.response.body", "body": part, "more_body": True})
        try:
            while part := await reply.read_some():
                if recording.add(part) and self._durable:
                    exchange.finish()
                    await self._record(exchange)
                await send({"type": "http.response.body", "body": part, "more_body": True})
        except UpstreamError as error:
            self.metrics.add("upstream_failures_total", f'kind="{_kind(error)}"')
            exchange.finish("upstream broke off", complete=False)
            self._post(exchange)
            # Without its last chunk the client sees that the reply was cut off, as it was.
            return
        exchange.finish()
        await self._record(exchange)
        await send({"type": "http.response.body", "body": b""})

    async def _fail(self, exchange: Exchange, send: Send, error: UpstreamError) -> None:
        status = error.status or 502
        code = _kind(error)
        exchange.status = status
        exchange.finish(code, complete=False)
        body = error_body(str(error), "upstream_error", code)
        exchange.reply.append(body)
        exchange.codings, exchange.sse = b"", False
        await self._record(exchange)
        headers = exchange.own_headers()
        if status == 503:
            headers.append((b"retry-after", b"%d" % max(1, round(self.upstream.breaker.seconds_left))))
        await respond(send, status, body, headers)

    async def _record(self, exchange: Exchange) -> None:
        """Record a call; with a durable log wait for it. A reply that is there is delivered whatever happens."""
        if not exchange.logged or exchange.recorded:
            return
        if not self._durable and self.log.n_queued < MAX_QUEUED:
            self._post(exchange)
            return
        exchange.recorded = True
        try:
            await self.log.submit(lambda: self._call(exchange))
        except LogError as error:
            exchange.warning = f"not recorded yet: {error}"

    def _post(self, exchange: Exchange) -> None:
        if exchange.logged and not exchange.recorded:
            exchange.recorded = True
            self.log.post(lambda: self._call(exchange))

    def _call(self, exchange: Exchange) -> Call:
        call = exchange.to_call(self.config.prices)
        self.metrics.add("tokens_total", f'kind="prompt",answered_by="{call.answered_by}"', call.prompt_tokens)
        self.metrics.add("tokens_total", f'kind="completion",answered_by="{call.answered_by}"', call.completion_tokens)
        self.metrics.add("cost_usd_total", f'answered_by="{call.answered_by}"', call.cost)
        if call.key_id is not None:
            self.admission.budgets.add(call.key_id, call.cost)
        return call

    async def _ask(self, exchange: Exchange) -> tuple[dict[str, Any], float]:
        """Put a call that was answered locally to the large model, for its audit."""
        data = {name: value for name, value in exchange.data.items() if name not in ("stream", "stream_options")}
        headers = exchange.request_headers(self.upstream.authorization, bool(self.config.keys))
        reply = await self.upstream.send("POST", CHAT.encode(), b"", headers, orjson.dumps(data), repeatable=True)
        try:
            parts = []
            while part := await reply.read_some():
                parts.append(part)
        finally:
            reply.close()
        if reply.status != 200:
            raise UpstreamError(f"The upstream answered an audit with status {reply.status}.", reply.status)
        body: dict[str, Any] = orjson.loads(b"".join(parts))
        return body, cost_of(self.config.prices, (exchange.model, str(body.get("model"))), usage_of(body) or (0, 0, 0))


def _note(exchange: Exchange, reply: UpstreamReply) -> None:
    """Note why a local model or a route answered so, and what that cost."""
    if isinstance(reply, LocalReply):
        exchange.reason = "; ".join(filter(None, (exchange.reason, reply.reason)))
        exchange.cost += reply.cost
        exchange.priced = not reply.cost


class _Watch:
    """Notice that the client leaves before its reply is there, and stop working for it."""

    __slots__ = ("_exchange", "_receive", "_task", "_watcher", "left")

    def __init__(self, exchange: Exchange, receive: Receive) -> None:
        self.left = False
        self._exchange = exchange
        self._receive = receive
        self._task = asyncio.current_task()
        self._watcher: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._watcher = asyncio.get_running_loop().create_task(self._wait())

    def stop(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self._exchange.finished and self._task is not None:
            self.left = True
            self._task.cancel()


class _Recording:
    """Keep a streamed reply for the log, and notice its last event before it is sent on."""

    __slots__ = ("_exchange", "_n_bytes", "_tail", "_undo")

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._n_bytes = 0
        self._tail = b""
        self._undo = decompressor(exchange.codings)

    def take_over(self) -> list[bytes]:
        """What was read before it was decided to send the reply on in parts."""
        parts, self._exchange.reply = self._exchange.reply, []
        return parts

    def add(self, part: bytes) -> bool:
        """Keep a part; whether the stream's last event is in it."""
        exchange = self._exchange
        if not exchange.sse or exchange.recorded:
            return False
        if self._n_bytes <= MAX_RECORDED_BYTES:
            exchange.reply.append(part)
            self._n_bytes += len(part)
        else:
            exchange.complete = False
        text = part
        if self._undo is not None:
            try:
                text = self._undo.decompress(part)
            except zlib.error:
                return False
        text = self._tail + text
        self._tail = text[-_LONGEST_END:]
        return any(end in text for end in _ENDS)


class _Headers(Mapping[str, str]):
    """A call's headers by lower-case name, without its key; decoded when asked for."""

    __slots__ = ("_raw",)

    def __init__(self, raw: Headers) -> None:
        self._raw = raw

    def __getitem__(self, name: str) -> str:
        wanted = name.encode("latin-1", "replace")
        if wanted != b"authorization":
            for found, value in self._raw:
                if found == wanted:
                    return value.decode("latin-1")
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(name.decode("latin-1") for name, _ in self._raw if name != b"authorization"))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _kind(error: UpstreamError) -> str:
    if isinstance(error, UpstreamTimeoutError):
        return "upstream_timeout"
    return "upstream_unavailable" if error.status == 503 else "upstream_error"
