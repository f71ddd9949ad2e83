"""What is checked before a call goes anywhere: its key, its length, its form, its budget."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

import orjson

from pilotfish.gateway.config import GatewayConfig
from pilotfish.gateway.exchange import Exchange
from pilotfish.gateway.keys import Budgets, Keyring
from pilotfish.gateway.shapes import error_body
from pilotfish.gateway.wire import Headers
from pilotfish.protocols import Model
from pilotfish.traffic import TrafficLog

__all__ = ["Admission", "Receive", "Refused", "Scope", "Send", "respond"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

CHAT = "/v1/chat/completions"
CHECKED = frozenset([CHAT, "/v1/completions", "/v1/embeddings", "/v1/responses"])
CLIENT_LEFT = 499
_TEXT_OR_NULL = (str, type(None))
_BOOL_OR_NULL = (bool, type(None))
INVALID = "invalid_request_error"


class Refused(Exception):  # noqa: N818
    """A call that is answered by the gateway itself, with an error."""

    def __init__(self, status: int, message: str, kind: str, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.body = error_body(message, kind, code, param)


class Admission:
    """Read calls and turn away those that may not go on.

    Parameters
    ----------
    config : GatewayConfig
        What the gateway was told.
    log : TrafficLog
        Whose failure may stop calls, and where spending is summed.
    near : mapping of str to Model
        Local models and routes by name.
    """

    def __init__(self, config: GatewayConfig, log: TrafficLog, near: Mapping[str, Model]) -> None:
        self.config = config
        self.log = log
        self.near = near
        self.keyring = Keyring(config.keys)
        self.budgets = Budgets(log, config.keys)
        self._max_body = config.server.max_body_bytes

    async def read(self, exchange: Exchange, receive: Receive) -> None:
        """Find out whose key a call carries and read its body.

        Raises
        ------
        Refused
            When the path leads out of the endpoint, the key is wrong, or the body too long or of the wrong form; with
            the error to send.
        """
        if "/." in exchange.endpoint and not {".", ".."}.isdisjoint(exchange.endpoint.split("/")):
            # The endpoint would take it for a path outside its /v1, and answer with the large model's key.
            raise Refused(404, "The path leads out of /v1: give it without '.' and '..'.", INVALID, "unknown_url")
        authorization = b""
        for name, value in exchange.raw_headers:
            if name == b"authorization":
                authorization = value
            elif name == b"content-length" and value.isdigit() and int(value) > self._max_body:
                raise self._too_long()
        if self.keyring.hashes:
            exchange.key_id = self.keyring.name_of(authorization)
            if exchange.key_id is None:
                raise Refused(401, "Incorrect API key: use a key of this gateway.", INVALID, "invalid_api_key")
        message = await receive()
        if message.get("more_body"):
            exchange.body = await self._rest(message, receive)
        elif message["type"] == "http.disconnect":
            raise _left()
        else:
            exchange.body = message.get("body", b"")
            if len(exchange.body) > self._max_body:
                raise self._too_long()
        if exchange.method == "POST":
            self._parse(exchange)

    def check(self, exchange: Exchange) -> None:
        """Find out whether a call may be sent on.

        Raises
        ------
        Refused
            When its key has no money left, or it could not be recorded.
        """
        if self.budgets.accounts and exchange.method == "POST":
            self._check_budget(exchange)
        if self.log.failure is not None and exchange.logged and self.config.log.refuses:
            raise Refused(503, f"{self.log.failure} Calls are refused until then.", "server_error", "log_unavailable")

    async def _rest(self, message: MutableMapping[str, Any], receive: Receive) -> bytes:
        parts = [message.get("body", b"")]
        n_bytes = len(parts[0])
        while message.get("more_body"):
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _left()
            parts.append(message.get("body", b""))
            n_bytes += len(parts[-1])
            if n_bytes > self._max_body:
                raise self._too_long()
        return b"".join(parts)

    def _parse(self, exchange: Exchange) -> None:
        checked = exchange.endpoint in CHECKED
        try:
            data = orjson.loads(exchange.body)
        except orjson.JSONDecodeError as error:
            if checked:
                raise Refused(400, f"The body is not valid JSON ({error}).", INVALID, "invalid_json") from None
            return
        if not isinstance(data, dict):
            if checked:
                raise Refused(400, "The body is not a JSON object.", INVALID, "invalid_type")
            return
        exchange.data = data
        exchange.logged = True
        model = data.get("model")
        exchange.model = model if isinstance(model, str) else ""
        exchange.stream = data.get("stream") is True
        if checked:
            _check(exchange.endpoint, data)

    def _check_budget(self, exchange: Exchange) -> None:
        name = exchange.key_id or ""
        if name not in self.budgets.accounts:
            return
        # A local model spends nothing, and a route what the models at the endpoint do that it asks.
        near = self.near.get(exchange.model)
        asked = [exchange.model] if near is None else getattr(near, "unpriced", ())
        for model in asked:
            if model not in self.config.prices:
                raise Refused(
                    400,
                    f"Model {model!r} has no price here, which a key with a budget needs: use a priced model.",
                    INVALID,
                    "model_without_price",
                    "model",
                )
        if self.budgets.exceeded(name):
            raise Refused(
                429, "The key has spent its budget of today (UTC).", "insufficient_quota", "insufficient_quota"
            )

    def _too_long(self) -> Refused:
        return Refused(
            413,
            f"The body is longer than {self._max_body} bytes: send less, or raise server.max_body_bytes.",
            INVALID,
            "request_too_large",
        )


async def respond(
    send: Send, status: int, body: bytes, headers: Headers, content_type: bytes = b"application/json"
) -> None:
    """Send a whole reply."""
    headers = [(b"content-type", content_type), (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _check(endpoint: str, data: Mapping[str, Any]) -> None:
    if not isinstance(data.get("model"), _TEXT_OR_NULL):
        raise _wrong_type("model", "a string")
    if not isinstance(data.get("stream"), _BOOL_OR_NULL):
        raise _wrong_type("stream", "true or false")
    if endpoint != CHAT:
        return
    messages = data.get("messages")
    if not isinstance(messages, list) or not messages:
        raise _wrong_type("messages", "a list of at least one object")
    for message in messages:
        if not isinstance(message, dict):
            raise _wrong_type("messages", "a list of at least one object")
        content = message.get("content")
        if isinstance(content, _TEXT_OR_NULL):
            continue
        if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
            raise _wrong_type("messages", "messages whose content is a string or a list of objects")


def _wrong_type(name: str, what: str) -> Refused:
    return Refused(400, f"Field '{name}' is missing or of a wrong type: give {what}.", INVALID, "invalid_type", name)


def _left() -> Refused:
    return Refused(CLIENT_LEFT, "The client left.", INVALID, "client_left")
