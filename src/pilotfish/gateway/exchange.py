"""One call on its way through the gateway, and the record that it leaves."""

from __future__ import annotations

import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from pilotfish.gateway.config import PriceConfig
from pilotfish.gateway.shapes import assemble, usage_of
from pilotfish.gateway.wire import Headers
from pilotfish.traffic import Call, Verdict, new_call_id
from pilotfish.traffic.calls import UPSTREAM

__all__ = ["Exchange"]

BYTES_PER_TOKEN = 4
_HOP_BY_HOP = frozenset(
    [
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    ]
)
_NOT_SENT_ON = _HOP_BY_HOP | {b"host", b"content-length", b"expect"}
_READABLE_CODINGS = (b"gzip", b"deflate", b"identity")
_USUAL_CONNECTION = frozenset([b"keep-alive", b"close"])
_BY_UPSTREAM = (b"x-pilotfish-answered-by", UPSTREAM.encode())
NO_VERDICT = Verdict()


class Exchange:
    """One call: what was asked, who answered, what the client got."""

    # Defaults of the class: a call sets few of them.
    body: bytes = b""
    data: Mapping[str, Any] = {}
    model: str = ""
    stream: bool = False
    logged: bool = False
    key_id: str | None = None
    task: str | None = None
    verdict: Verdict = NO_VERDICT
    local: bool = False
    answered_by: str = ""
    near: bool = False  # whether the model asked for is one of the gateway's own
    reason: str = ""
    warning: str = ""
    status: int = 0
    codings: bytes = b""
    sse: bool = False
    complete: bool = True
    recorded: bool = False
    finished: float = 0.0
    cost: float = 0.0  # what is known to have been spent
    priced: bool = True  # whether the answer comes on top, at its model's price

    def __init__(self, scope: Mapping[str, Any]) -> None:
        self.started = time.perf_counter()
        self.created = time.time()
        self.call_id = new_call_id()
        self.method: str = scope["method"]
        self.raw_path: bytes = scope["raw_path"]
        self.endpoint: str = scope["path"]
        self.query: bytes = scope["query_string"]
        self.raw_headers: Headers = scope["headers"]
        self.reply: list[bytes] = []

    def request_headers(self, authorization: bytes | None, drop_authorization: bool) -> Headers:
        """The headers to send on: without those of the connection, with the upstream's key where there is one."""
        headers: Headers = []
        named: set[bytes] = set()
        for item in self.raw_headers:
            name, value = item
            if name in _NOT_SENT_ON:
                if name == b"connection":
                    named = {token.strip().lower() for token in value.split(b",")}
            elif name == b"authorization":
                if authorization is None and not drop_authorization:
                    headers.append(item)
            elif name == b"accept-encoding":
                headers.append((name, _readable(value)))
            elif not name.startswith(b"x-pilotfish-"):
                headers.append(item)
        if authorization is not None:
            headers.append((b"authorization", authorization))
        if named - _USUAL_CONNECTION:
            headers = [item for item in headers if item[0] not in named]
        return headers

    def reply_headers(self, upstream: Sequence[tuple[bytes, bytes]]) -> Headers:
        """The upstream's headers to send on to the client, and ours."""
        headers = self.own_headers()
        for item in upstream:
            name = item[0].lower()
            if name not in _HOP_BY_HOP and not name.startswith(b"x-pilotfish-"):
                headers.append(item)
        return headers

    def own_headers(self) -> Headers:
        """Who answered, with what confidence and why."""
        headers = [(b"x-pilotfish-call", self.call_id.encode())]
        if self.answered_by == UPSTREAM and not self.near:
            headers.append(_BY_UPSTREAM)
        elif self.answered_by:
            name = self.model if self.near else self.answered_by
            headers.append((b"x-pilotfish-answered-by", _header_value(name)))
        if self.task is not None:
            headers.append((b"x-pilotfish-task", _header_value(self.task)))
        if self.verdict.confidence is not None:
            headers.append((b"x-pilotfish-confidence", b"%.4f" % self.verdict.confidence))
        if self.reason:
            headers.append((b"x-pilotfish-reason", _header_value(self.reason)))
        if self.warning:
            headers.append((b"x-pilotfish-warning", _header_value(self.warning)))
        return headers

    def finish(self, reason: str = "", complete: bool = True) -> None:
        """Note that the reply is over, and how it ended."""
        self.finished = time.perf_counter()
        self.complete = self.complete and complete
        if reason:
            self.reason = f"{self.reason}; {reason}" if self.reason else reason

    def to_call(self, prices: Mapping[str, PriceConfig]) -> Call:
        """Make the record; done in the log's thread."""
        raw = _decompressed(b"".join(self.reply), self.codings)
        complete = self.complete
        body: Any = None
        if self.sse:
            body, ended = assemble(raw)
            complete = complete and (ended or body is None)
            reply = orjson.dumps(body) if body is not None else b""
        else:
            reply = raw
            try:
                body = orjson.loads(raw) if raw else None
            except orjson.JSONDecodeError:
                body = None
        if not isinstance(body, dict):
            body = {}
        usage = usage_of(body)
        if self.endpoint == "/v1/embeddings" and "data" in body:
            reply = orjson.dumps({key: value for key, value in body.items() if key != "data"})
        if usage is None:
            # A stream tells its usage only when asked to: what a token takes on average is better than nothing.
            streamed = self.sse and self.status == 200
            usage = (len(self.body) // BYTES_PER_TOKEN, 0, raw.count(b"\ndata:")) if streamed else (0, 0, 0)
        names = self.model, str(body.get("model"))
        reply_id = body.get("id")
        return Call(
            id=self.call_id,
            created=self.created,
            task=self.task,
            endpoint=self.endpoint,
            model=self.model,
            request=self.body,
            reply=reply,
            status=self.status,
            answered_by=self.answered_by,
            prediction=self.verdict.prediction,
            confidence=self.verdict.confidence,
            sampled=self.verdict.audit,
            reason=self.reason,
            latency=(self.finished or time.perf_counter()) - self.started,
            prompt_tokens=usage[0],
            completion_tokens=usage[2],
            cost=0.0 if self.local else self.cost + (cost_of(prices, names, usage) if self.priced else 0.0),
            key_id=self.key_id,
            stream=self.stream,
            complete=complete,
            reply_id=reply_id if isinstance(reply_id, str) else "",
        )


def cost_of(prices: Mapping[str, PriceConfig], models: Sequence[str], usage: tuple[int, int, int]) -> float:
    """The price of a call in US dollars by the first of the models' names that has one; 0 where none has."""
    for model in models:
        price = prices.get(model)
        if price is not None:
            n_prompt, n_cached, n_completion = usage
            n_cached = min(n_cached, n_prompt)
            cached = price.input if price.cached_input is None else price.cached_input
            return ((n_prompt - n_cached) * price.input + n_cached * cached + n_completion * price.output) / 1e6
    return 0.0


def decompressor(codings: bytes) -> zlib._Decompress | None:
    """What undoes a content coding; None when there is none, or none that is known."""
    coding = codings.strip().lower()
    if coding in (b"gzip", b"x-gzip"):
        return zlib.decompressobj(zlib.MAX_WBITS | 16)
    if coding == b"deflate":
        return zlib.decompressobj()
    return None


def _decompressed(body: bytes, codings: bytes) -> bytes:
    if not codings or codings == b"identity":
        return body
    undo = decompressor(codings)
    if undo is None:
        return b""
    try:
        return undo.decompress(body)
    except zlib.error:
        return b""


def _readable(accepted: bytes) -> bytes:
    """Accept only codings that the log can read."""
    kept = [part.strip() for part in accepted.split(b",") if part.split(b";")[0].strip().lower() in _READABLE_CODINGS]
    return b", ".join(kept) or b"identity"


def _header_value(text: str) -> bytes:
    return " ".join(text[:200].split()).encode("ascii", "backslashreplace")
