"""Models behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import asyncio
import os
import queue
import random
import re
import threading
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import orjson

from pilotfish.errors import (
    ConfigError,
    ContextLengthError,
    InputError,
    RateLimitedError,
    UpstreamError,
    UpstreamTimeoutError,
)
from pilotfish.models.completions import read_chunk, read_completion
from pilotfish.types import Reply, Request, Usage

if TYPE_CHECKING:
    import aiohttp

__all__ = ["OpenAIModel"]

T = TypeVar("T")
_PUBLIC_URL = "https://api.openai.com/v1"
_FIRST_WAIT = 0.5
_LONGEST_WAIT = 60.0
_RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529})
_TOO_LONG = re.compile(r"context.{0,20}(length|window|size)|maximum.{0,20}tokens|prompt is too long", re.IGNORECASE)


class OpenAIModel:
    """A model behind an OpenAI-compatible chat completion endpoint.

    Calls of a batch run concurrently. What may pass (time-outs, broken connections, 408, 409, 425, 429, 5xx, replies
    that are no chat completion) is tried again after an exponentially growing, fully jittered wait, or after what
    ``Retry-After`` asks for, up to a minute.

    Parameters
    ----------
    model : str
        The name to ask the endpoint for; empty passes on the request's own.
    base_url, api_key : str, optional
        The endpoint; by default ``OPENAI_BASE_URL`` and ``OPENAI_API_KEY``, read at the first call.
    prompt_price, completion_price : float
        US dollars per million tokens read and written.
    timeout : float
        Seconds for one attempt; for a stream, between two chunks.
    n_retries : int
        Attempts after the first.
    max_concurrency : int
        Calls under way at once.
    requests_per_minute : int, optional
        Attempts started in any 60 seconds; no limit by default.
    headers : mapping of str to str, optional
        Further headers.

    Examples
    --------
    >>> model = OpenAIModel("gpt-5-mini", prompt_price=0.25, completion_price=2.0)
    >>> model.cost(1_000_000, 1_000_000)
    2.25
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        prompt_price: float = 0.0,
        completion_price: float = 0.0,
        timeout: float = 60.0,
        n_retries: int = 4,
        max_concurrency: int = 16,
        requests_per_minute: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.model = model
        self.base_url = base_url
        self.prompt_price = prompt_price
        self.completion_price = completion_price
        self.timeout = timeout
        self.n_retries = n_retries
        self.max_concurrency = max_concurrency
        self.requests_per_minute = requests_per_minute
        self.headers = headers
        self._api_key = api_key
        self._endpoint: _Endpoint | None = None
        self._lock = threading.Lock()

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """Answer a batch: one reply per request, in order.

        Raises
        ------
        RateLimitedError, UpstreamTimeoutError, UpstreamError
            When a call has failed for good; the other calls are given up.
        ContextLengthError
            When a prompt is longer than the model's window.
        """
        if not requests:
            return []

        async def every(endpoint: _Endpoint) -> list[Reply]:
            tasks = [asyncio.ensure_future(self._complete(endpoint, request)) for request in requests]
            try:
                return list(await asyncio.gather(*tasks))
            finally:
                for task in tasks:
                    task.cancel()

        return _result(every(self._open()))

    def stream(self, request: Request) -> Iterator[str]:
        """Yield the reply's text as it arrives; leaving the iteration ends the call.

        Raises
        ------
        RateLimitedError, UpstreamTimeoutError, UpstreamError
            When the call fails, also in the middle; it is tried again only before the first chunk.
        """
        endpoint = self._open()
        chunks: queue.Queue[str | BaseException | None] = queue.Queue()

        async def fill() -> None:
            try:
                await self._relay(endpoint, request, chunks.put)
                chunks.put(None)
            except BaseException as error:
                chunks.put(error)
                raise

        future = asyncio.run_coroutine_threadsafe(fill(), _loop())
        try:
            while (item := chunks.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            future.cancel()

    def cost(self, n_prompt_tokens: int, n_completion_tokens: int) -> float:
        """Price in US dollars of so many tokens."""
        return (self.prompt_price * n_prompt_tokens + self.completion_price * n_completion_tokens) / 1e6

    def close(self) -> None:
        """Close the connections; the model can be used again."""
        with self._lock:
            endpoint, self._endpoint = self._endpoint, None
        if endpoint is not None:
            endpoint.finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _open(self) -> _Endpoint:
        with self._lock:
            if self._endpoint is None:
                url = (self.base_url or os.environ.get("OPENAI_BASE_URL") or _PUBLIC_URL).rstrip("/")
                key = self._api_key if self._api_key is not None else os.environ.get("OPENAI_API_KEY", "")
                if not url.startswith(("http://", "https://")):
                    raise ConfigError(f"The base_url is {url!r}: give an http or https address.")
                if not key and url == _PUBLIC_URL:
                    raise ConfigError("No API key is given: pass api_key or set OPENAI_API_KEY.")
                session = _result(self._session(key))
                self._endpoint = _Endpoint(
                    f"{url}/chat/completions",
                    key,
                    session,
                    asyncio.Semaphore(self.max_concurrency),
                    weakref.finalize(self, _close, session),
                )
            return self._endpoint

    async def _session(self, key: str) -> aiohttp.ClientSession:
        import aiohttp

        headers = {"Content-Type": "application/json", **(self.headers or {})}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        connector = aiohttp.TCPConnector(limit=self.max_concurrency)
        return aiohttp.ClientSession(headers=headers, connector=connector, trust_env=True)

    def _body(self, request: Request, *, stream: bool) -> bytes:
        body = request.to_json()
        body["model"] = self.model or request.model
        if not body["model"]:
            raise InputError("Neither the model nor the request names a model: name one.")
        body.pop("stream", None)
        if stream:
            body["stream"] = True
        else:
            body.pop("stream_options", None)
        try:
            return orjson.dumps(body, default=dict)
        except TypeError as error:
            raise InputError(f"The request cannot be written as JSON ({error}): mend its text and fields.") from None

    async def _complete(self, endpoint: _Endpoint, request: Request) -> Reply:
        import aiohttp

        body, start = self._body(request, stream=False), time.perf_counter()
        limit = aiohttp.ClientTimeout(total=self.timeout)

        async def call() -> Reply:
            async with endpoint.session.post(endpoint.url, data=body, timeout=limit) as response:
                raw = await response.read()
                _check(endpoint, response, raw)
            return read_completion(raw)

        reply = await self._retried(endpoint, call)
        n_read, n_written = reply.usage.prompt_tokens, reply.usage.completion_tokens
        usage = Usage(n_read, n_written, self.cost(n_read, n_written), time.perf_counter() - start)
        return reply.replace(usage=usage, model=reply.model or self.model or request.model)

    async def _relay(self, endpoint: _Endpoint, request: Request, take: Callable[[str], None]) -> None:
        """Hand the texts of a streamed reply on as they arrive."""
        import aiohttp

        body, n_taken = self._body(request, stream=True), 0
        limit = aiohttp.ClientTimeout(total=None, sock_connect=self.timeout, sock_read=self.timeout)

        async def call() -> None:
            nonlocal n_taken
            async with endpoint.session.post(endpoint.url, data=body, timeout=limit) as response:
                if response.status != 200:
                    _check(endpoint, response, await response.read())
                finished = False
                async for event in _events(response.content.iter_any()):
                    if event == b"[DONE]":
                        return
                    text, ends = read_chunk(event)
                    finished |= ends
                    if text:
                        n_taken += 1
                        take(text)
            if not finished:
                raise UpstreamError("The model's stream ended before the reply did: ask again.")

        await self._retried(endpoint, call, is_final=lambda: n_taken > 0)

    async def _retried(
        self, endpoint: _Endpoint, call: Callable[[], Awaitable[T]], is_final: Callable[[], bool] = lambda: False
    ) -> T:
        """Call until it works, cannot work, or has been tried often enough; failures become our errors."""
        import aiohttp

        attempt = 0
        while True:
            wait: float | None = None
            vain = attempt == self.n_retries
            error: UpstreamError | ContextLengthError
            try:
                async with endpoint.slots:
                    await endpoint.pace(self.requests_per_minute)
                    return await call()
            except _RefusedError as refused:
                error, wait = refused.error, refused.wait
                vain |= refused.is_final
            except TimeoutError:
                error = UpstreamTimeoutError(f"{endpoint.url} did not answer in time: raise timeout or try later.")
            except aiohttp.ClientError as broken:
                said = endpoint.hidden(str(broken) or type(broken).__name__)
                error = UpstreamError(f"{endpoint.url} could not be reached or broke off ({said}): check the network.")
            except UpstreamError as garbage:
                error = garbage
            if vain or is_final():
                raise error
            if wait is None:
                wait = random.uniform(0, _FIRST_WAIT * 2**attempt)  # noqa: S311
            await asyncio.sleep(min(wait, _LONGEST_WAIT))
            attempt += 1


@dataclass
class _Endpoint:
    """The open connections to one endpoint."""

    url: str
    key: str = field(repr=False)
    session: aiohttp.ClientSession
    slots: asyncio.Semaphore
    finalizer: weakref.finalize[Any, Any]
    started: deque[float] = field(default_factory=deque)

    async def pace(self, requests_per_minute: int | None) -> None:
        """Wait until one more call may start."""
        if requests_per_minute is None:
            return
        while True:
            now = time.monotonic()
            while self.started and now - self.started[0] >= 60:
                self.started.popleft()
            if len(self.started) < requests_per_minute:
                self.started.append(now)
                return
            await asyncio.sleep(60 - (now - self.started[0]))

    def hidden(self, text: str) -> str:
        """``text`` without the key."""
        return text.replace(self.key, "***") if self.key else text


class _RefusedError(Exception):
    """The endpoint answered with an error; it may have stated how many seconds to wait."""

    def __init__(
        self, error: UpstreamError | ContextLengthError, wait: float | None = None, *, is_final: bool = False
    ) -> None:
        super().__init__(str(error))
        self.error = error
        self.wait = wait
        self.is_final = is_final


def _check(endpoint: _Endpoint, response: aiohttp.ClientResponse, raw: bytes) -> None:
    """Raise for a status other than 200."""
    if response.status == 200:
        return
    text = endpoint.hidden(raw.decode("utf-8", "replace"))
    message, code = text, ""
    try:
        stated = orjson.loads(text)["error"]
        message = str(stated["message"]) if isinstance(stated, dict) else str(stated)
        code = str(stated.get("code")) if isinstance(stated, dict) else ""
    except (ValueError, KeyError, TypeError):
        pass
    said = f"{endpoint.url} answered with status {response.status}: {' '.join(message.split())[:300]}"
    if response.status in (400, 413, 422) and (code == "context_length_exceeded" or _TOO_LONG.search(message)):
        raise _RefusedError(ContextLengthError(said), is_final=True)
    kind = RateLimitedError if response.status == 429 else UpstreamError
    error = kind(said, response.status, text.encode())
    wait = _retry_after(response.headers.get("Retry-After"))
    raise _RefusedError(error, wait, is_final=code == "insufficient_quota" or response.status not in _RETRIED)


def _retry_after(value: str | None) -> float | None:
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


async def _events(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The data of server-sent events."""
    left = b""
    async for chunk in chunks:
        *lines, left = (left + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()


_shared: asyncio.AbstractEventLoop | None = None
_shared_pid = 0
# A collection of garbage may close a model's session while its thread holds the lock.
_shared_lock = threading.RLock()
_closing: set[asyncio.Task[None]] = set()


def _loop() -> asyncio.AbstractEventLoop:
    """The event loop of all these models, on a thread of its own; a forked process gets another."""
    global _shared, _shared_pid
    with _shared_lock:
        if _shared is None or _shared_pid != os.getpid():
            _shared, _shared_pid = asyncio.new_event_loop(), os.getpid()
            threading.Thread(target=_shared.run_forever, name="pilotfish-openai", daemon=True).start()
        return _shared


def _result(coroutine: Coroutine[Any, Any, T]) -> T:
    future: Future[T] = asyncio.run_coroutine_threadsafe(coroutine, _loop())
    try:
        return future.result()
    finally:
        future.cancel()


def _close(session: aiohttp.ClientSession) -> None:
    if session.closed:
        return
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        loop = None
    if loop is not None and loop is _shared:
        # Garbage was collected on the loop's own thread, which cannot wait for itself.
        task = loop.create_task(session.close())
        _closing.add(task)
        task.add_done_callback(_closing.discard)
    else:
        _result(session.close())
