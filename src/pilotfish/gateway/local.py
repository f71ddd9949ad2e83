"""Local models behind the gateway: any Pilotfish model answers under its name as if it were an endpoint."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

import orjson

from pilotfish.errors import (
    ContextLengthError,
    InputError,
    ModelError,
    PilotfishError,
    UpstreamError,
    UpstreamTimeoutError,
    missing_extra,
)
from pilotfish.gateway.config import GatewayConfig, ModelConfig
from pilotfish.gateway.shapes import completion, completion_stream, error_body, usage_body
from pilotfish.gateway.upstream import Transport, UpstreamReply
from pilotfish.gateway.wire import Headers
from pilotfish.models import catalog
from pilotfish.protocols import Model
from pilotfish.traffic.calls import json_object
from pilotfish.types import Reply, Request

__all__ = ["LocalModels", "LocalReply", "make_models"]

_CHAT = "/v1/chat/completions"
_MOST_CHOICES = 128
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?(?<!\.gguf)")
_JSON = ((b"content-type", b"application/json"),)
_logger = logging.getLogger("pilotfish.gateway")
_SSE = ((b"content-type", b"text/event-stream; charset=utf-8"),)


def make_models(config: GatewayConfig) -> dict[str, Model]:
    """Make the local models and the routes of the configuration; model files are read at the first call.

    Raises
    ------
    InputError
        When a route's policy, table or budget is wrong; when a model's source, draft or fusion is wrong.
    MissingExtraError
        When what runs a model is not installed.
    """
    loaded: dict[Any, Any] = {}  # sections that name the same model share its weights
    models: dict[str, Model] = {}
    for name, model in config.models.items():
        with _said_of(f"models.{name}"):
            models[name] = _make_model(name, model, loaded)
    if config.routes:
        from pilotfish.gateway.routes import make_route

        routes: dict[str, Model] = {}
        for name, route in config.routes.items():
            with _said_of(f"routes.{name}"):
                routes[name] = make_route(name, route, models, config)
        models |= routes
    return models


@contextmanager
def _said_of(section: str) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise InputError(f"In {section}: {error}") from error


def _make_model(name: str, config: ModelConfig, loaded: dict[Any, Any]) -> Model:
    _check_source(config.source, hub=config.decodes)
    _check_installed("torch" if config.decodes else "gguf")
    if config.decodes:
        from pilotfish.methods.build_decoder import make_decoder, make_search

        if config.search is not None:
            sizes = config.search.model_dump(include={"n_beams", "n_draws", "chunk"})
            pair = config.search.tuned, config.search.untuned
            return make_search(config.source, *pair, sizes, dtype=config.dtype, loaded=loaded)
        fusion = config.fusion.model_dump() if config.fusion is not None else None
        how: dict[str, Any] = {"fusion": fusion, "typical": config.typical, "dtype": config.dtype}
        return make_decoder(config.source, config.draft, **how, name=name, loaded=loaded)
    from pilotfish.models.gguf import GGUFModel

    return GGUFModel(config.source, n_ctx=config.n_ctx, n_parallel=config.n_parallel, n_threads=config.n_threads)


def _check_source(source: str, *, hub: bool) -> None:
    """Tell at the start of a source from which no model can be read; one that may be of the hub is looked for later."""
    if source in catalog.NAMES:
        if (kind := catalog.entry(source).kind) not in ("chat", "base"):
            raise InputError(f"source is {source!r}, whose kind is {kind}: give a model of kind chat or base.")
    elif not Path(source).expanduser().exists() and not (hub and _HUB_NAME.fullmatch(source)):
        names = ", ".join(name for name in catalog.NAMES if catalog.entry(name).kind in ("chat", "base"))
        raise InputError(f"source is {source!r}, neither a file that is here nor in the catalog: give one of {names}.")


def _check_installed(extra: Literal["torch", "gguf"]) -> None:
    for package in ("torch", "transformers") if extra == "torch" else ("xllamacpp",):
        if find_spec(package) is None:
            raise missing_extra(package, extra, "Answering with local models")


class LocalModels:
    """Answers calls for local models by name, and leaves all others to the endpoint.

    Parameters
    ----------
    models : mapping of str to Model
        By the name clients ask for.
    beyond : Transport
        The endpoint's: asked which models it has, to list them too.
    n_threads : int
        Calls answered at a time.
    """

    def __init__(self, models: Mapping[str, Model], beyond: Transport, n_threads: int = 4) -> None:
        self.models = models
        self.beyond = beyond
        self._threads = ThreadPoolExecutor(n_threads, thread_name_prefix="pilotfish-model")
        self._streams: weakref.WeakSet[_Streamed] = weakref.WeakSet()

    async def send(self, method: str, target: bytes, headers: Headers, body: bytes) -> UpstreamReply | None:
        """Answer a call from a local model; None where it is for none."""
        path = target.partition(b"?")[0]
        if method == "POST":
            data = json_object(body)
            name = str(data.get("model"))
            model = self.models.get(name)
            if model is None:
                return None
            if path.endswith(b"/chat/completions"):
                return await self._complete(name, model, data)
            # The endpoint knows no such model, and what is meant for a local model is not to leave this machine.
            said = f"Model {name!r} is answered by the gateway itself and takes chat calls alone: send them to {_CHAT}."
            return LocalReply(400, error_body(said, "invalid_request_error", "unsupported_endpoint", "model"))
        if method == "GET" and path.endswith(b"/models"):
            return await self._list(method, target, headers, body)
        name = unquote(path.removeprefix(b"/models/").decode("latin-1"))
        if method == "GET" and path.startswith(b"/models/") and name in self.models:
            return LocalReply(200, orjson.dumps(_entry(name)))
        return None

    async def close(self) -> None:
        """Let go of the models; what is being streamed ends."""
        for stream in list(self._streams):
            stream.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _complete(self, name: str, model: Model, data: Mapping[str, Any]) -> UpstreamReply:
        options = data.get("stream_options")
        with_usage = isinstance(options, dict) and options.get("include_usage") is True
        left = threading.Event()
        try:
            requests = _requests(data)
            # Only texts come piece by piece: what else a reply has is known at its end.
            pieces = hasattr(model, "stream") and len(requests) == 1 and not data.get("tools")
            pieces = pieces and requests[0].log_probs is None
            if data.get("stream") and pieces:
                made = _Streamed(name, model.stream(requests[0]), with_usage)  # type: ignore[attr-defined]
                self._streams.add(made)
                self._threads.submit(made.run)
                return await made.begun()
            loop = asyncio.get_running_loop()
            if pieces:
                replies = await loop.run_in_executor(self._threads, _written, model, requests[0], left)
            else:
                replies = await loop.run_in_executor(self._threads, model.generate, requests)
        except Exception as error:  # noqa: BLE001 - whatever a model fails with is told in the form of an endpoint
            return LocalReply(*_refusal(error), cost=getattr(error, "cost", 0.0))
        finally:
            left.set()
        replies = [reply.replace(model=name) for reply in replies]
        call_id, now = secrets.token_hex(12), time.time()
        if data.get("stream"):
            body = completion_stream(call_id, now, name, *replies, with_usage=with_usage)
        else:
            body = orjson.dumps(completion(call_id, now, name, *replies))
        cost = sum(reply.usage.cost for reply in replies)
        return LocalReply(200, body, _SSE if data.get("stream") else _JSON, replies[0].reason, cost)

    async def _list(self, method: str, target: bytes, headers: Headers, body: bytes) -> UpstreamReply:
        own = [_entry(name) for name in self.models]
        others: list[Any] = []
        try:
            reply = await self.beyond.send(method, target, headers, body)
            parts = []
            while part := await reply.read_some():
                parts.append(part)
            reply.close()
            if reply.status == 200:
                others = list(orjson.loads(b"".join(parts)).get("data", []))
        except (UpstreamError, orjson.JSONDecodeError):
            others = []
        return LocalReply(200, orjson.dumps({"object": "list", "data": [*own, *others]}))


class LocalReply:
    """A reply that is there at once.

    Parameters
    ----------
    status : int
        The HTTP status.
    body : bytes
        The whole body.
    raw_headers : sequence of pairs of bytes
        The headers.
    reason : str
        Why this model answered, where one was chosen.
    cost : float
        US dollars that everything asked for it took, as far as that is known.
    """

    def __init__(
        self,
        status: int,
        body: bytes,
        raw_headers: Sequence[tuple[bytes, bytes]] = _JSON,
        reason: str = "",
        cost: float = 0.0,
    ) -> None:
        self.status = status
        self.raw_headers = raw_headers
        self.reason = reason
        self.cost = cost
        self._body = body

    async def read_some(self) -> bytes:
        body, self._body = self._body, b""
        return body

    def close(self) -> None:
        self._body = b""


class _Streamed:
    """A reply whose text comes from a thread. Its head waits for the first text, so that a refusal has its own status.

    Parameters
    ----------
    name : str
        The model's, as clients ask for it.
    texts : iterator of str
        A generator that returns the reply says also why it ended and what it took.
    with_usage : bool
        Whether the client asked for what it took.
    """

    status = 200
    raw_headers = _SSE

    def __init__(self, name: str, texts: Iterator[str], with_usage: bool) -> None:
        self._texts = texts
        self._with_usage = with_usage
        self._loop = asyncio.get_running_loop()
        self._parts: asyncio.Queue[bytes | LocalReply] = asyncio.Queue()
        self._left = threading.Event()
        self._first = b""
        self._head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": name,
        }

    def run(self) -> None:
        """Pass on the texts as events, until the client leaves."""
        begun = False
        try:
            for event in self._events():
                self._put(event)
                begun = True
        except Exception as error:  # noqa: BLE001 - told to the client, as in a reply that is not streamed
            status, body = _refusal(error)
            self._put(b"data: " + body + b"\n\n" if begun else LocalReply(status, body))
        finally:
            close = getattr(self._texts, "close", None)
            if close is not None:
                close()
            self._put(b"")

    async def begun(self) -> UpstreamReply:
        """This reply once its first text is there, or the refusal in its place."""
        try:
            first = await self._parts.get()
        except asyncio.CancelledError:
            self.close()
            raise
        if isinstance(first, LocalReply):
            return first
        self._first = first
        return self

    async def read_some(self) -> bytes:
        first, self._first = self._first, b""
        part = first or await self._parts.get()
        assert isinstance(part, bytes), "a refusal comes first"
        return part

    def close(self) -> None:
        self._left.set()

    def _events(self) -> Iterator[bytes]:
        before = self._event({"role": "assistant", "content": ""})
        while not self._left.is_set():
            try:
                text = next(self._texts)
            except StopIteration as end:
                reply = end.value if isinstance(end.value, Reply) else None
                yield before + self._event({}, reply.finish_reason if reply is not None else "stop")
                if self._with_usage and reply is not None:
                    body = {**self._head, "choices": [], "usage": usage_body(reply)}
                    yield b"data: " + orjson.dumps(body) + b"\n\n"
                yield b"data: [DONE]\n\n"
                return
            yield before + self._event({"content": text})
            before = b""

    def _event(self, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        usage = {"usage": None} if self._with_usage else {}
        return b"data: " + orjson.dumps({**self._head, "choices": [choice], **usage}) + b"\n\n"

    def _put(self, part: bytes | LocalReply) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._parts.put_nowait, part)


def _entry(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "pilotfish"}


def _requests(data: Mapping[str, Any]) -> list[Request]:
    """What is asked, as often as choices are wanted, each with a seed of its own where there is one."""
    n = data.get("n")
    if n is not None and (not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= _MOST_CHOICES):
        raise InputError(f"Field 'n' is {n!r}: give a whole number of 1 to {_MOST_CHOICES}.")
    request = Request.from_json({key: value for key, value in data.items() if key != "n"})
    seeds = [None if request.seed is None else request.seed + i for i in range(n or 1)]
    return [request.replace(seed=seed) for seed in seeds]


def _written(model: Any, request: Request, left: threading.Event) -> list[Reply]:
    """The reply of a model that writes it piece by piece, which stops when the client has left."""
    texts: Iterator[str] = model.stream(request)
    pieces: list[str] = []
    try:
        while not left.is_set():
            pieces.append(next(texts))
    except StopIteration as end:
        if isinstance(end.value, Reply):
            return [end.value]
    finally:
        close = getattr(texts, "close", None)
        if close is not None:
            close()
    return [Reply("".join(pieces))]


def _refusal(error: Exception) -> tuple[int, bytes]:
    if isinstance(error, ContextLengthError):
        return 400, error_body(str(error), "invalid_request_error", "context_length_exceeded")
    if isinstance(error, InputError):
        return 400, error_body(str(error), "invalid_request_error", None)
    if isinstance(error, UpstreamError):
        status = error.status or (504 if isinstance(error, UpstreamTimeoutError) else 502)
        return status, error_body(str(error), "upstream_error", "upstream_failed")
    if not isinstance(error, PilotfishError):
        _logger.error("A local model failed.", exc_info=error)
        error = ModelError(f"The model failed with {type(error).__name__}: the gateway's log says more.")
    return 500, error_body(str(error), "server_error", "model_failed")
