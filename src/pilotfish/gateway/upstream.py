"""The large model's endpoint: connections, time-outs, retries and the circuit breaker."""

from __future__ import annotations

import asyncio
import random
import time
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from pilotfish.errors import UpstreamError, UpstreamTimeoutError
from pilotfish.gateway.config import UpstreamConfig

__all__ = ["Breaker", "Headers", "Upstream", "UpstreamReply"]

Headers = list[tuple[bytes, bytes]]
RETRIED_STATUSES = frozenset([502, 503, 504])
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 5.0
MAX_CACHED_URLS = 256
READ_BUFFER_BYTES = 1 << 17
_NEVER_SENT = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
_SKIPPED = frozenset(["User-Agent", "Accept", "Accept-Encoding", "Content-Type"])


class UpstreamReply(Protocol):
    """A reply whose head has arrived and whose body is read as it comes."""

    status: int

    @property
    def raw_headers(self) -> Sequence[tuple[bytes, bytes]]:
        """The headers as received, names included."""
        ...

    async def read_some(self) -> bytes:
        """What has arrived of the body, waiting for at least one byte; empty at its end."""
        ...

    def close(self) -> None:
        """Let go of the connection; what has not arrived is given up."""
        ...


class Breaker:
    """Leave an endpoint alone after failures in a row, then let one call through to see.

    Parameters
    ----------
    n_failures : int
        Failures in a row that open it.
    open_seconds : float
        How long it stays open.

    Examples
    --------
    >>> breaker = Breaker(1, 10.0)
    >>> breaker.failed(); breaker.allows()
    False
    """

    def __init__(self, n_failures: int, open_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.n_failures = n_failures
        self.open_seconds = open_seconds
        self._clock = clock
        self._failures = 0
        self._open_until: float | None = None

    @property
    def is_open(self) -> bool:
        """Whether calls are held back."""
        return self._open_until is not None

    @property
    def seconds_left(self) -> float:
        """Until the next call is let through."""
        return 0.0 if self._open_until is None else max(0.0, self._open_until - self._clock())

    def allows(self) -> bool:
        """Whether a call may be sent; one trial is let through after the pause, the next only after another."""
        if self._open_until is None:
            return True
        now = self._clock()
        if now < self._open_until:
            return False
        self._open_until = now + self.open_seconds
        return True

    def succeeded(self) -> None:
        """Record an answer."""
        self._failures = 0
        self._open_until = None

    def failed(self) -> None:
        """Record a failure."""
        self._failures += 1
        if self._failures >= self.n_failures:
            self._open_until = self._clock() + self.open_seconds


class Upstream:
    """One endpoint that answers calls.

    Parameters
    ----------
    config : UpstreamConfig
        Its address, time-outs and retries.
    on_retry : callable or None
        Told of each further try.
    """

    def __init__(self, config: UpstreamConfig, on_retry: Callable[[], None] | None = None) -> None:
        self.config = config
        self.authorization = (
            f"Bearer {config.api_key.get_secret_value()}".encode() if config.api_key is not None else None
        )
        self.breaker = Breaker(config.breaker_failures, config.breaker_open_s)
        self.on_retry = on_retry
        self._session: aiohttp.ClientSession | None = None
        self._urls: dict[tuple[bytes, bytes], URL] = {}

    async def open(self) -> None:
        """Make the connection pool; called on the event loop that will use it."""
        config = self.config
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30),
            timeout=aiohttp.ClientTimeout(
                total=config.total_timeout_s, sock_connect=config.connect_timeout_s, sock_read=config.read_timeout_s
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=_SKIPPED,
            # Looking the proxies up costs every call a little.
            trust_env=bool(urllib.request.getproxies()),
            read_bufsize=READ_BUFFER_BYTES,
            max_line_size=1 << 16,
            max_field_size=1 << 16,
        )

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def send(
        self, method: str, path: bytes, query: bytes, headers: Headers, body: bytes, *, repeatable: bool
    ) -> UpstreamReply:
        """Send a call and wait for the head of its reply.

        Parameters
        ----------
        method, path, query : str, bytes, bytes
            What is asked; ``path`` starts with ``/v1/``, as received (percent-encoded).
        headers : list of (bytes, bytes)
            Sent on as they are; Host and Content-Length are made here.
        body : bytes
            The body.
        repeatable : bool
            Whether the call may be sent again after it may have arrived.

        Raises
        ------
        UpstreamTimeoutError
            When there was no reply in time.
        UpstreamError
            When the endpoint could not be reached, sent garbage or is left alone.
        """
        url = self._url(path, query)
        names = _decoded(headers)
        for attempt in range(self.config.retries + 1):
            if not self.breaker.allows():
                raise UpstreamError(
                    f"The upstream {self.config.base_url} failed {self.breaker.n_failures} times in a row and is left "
                    f"alone for {self.breaker.seconds_left:.0f} s more: try again then.",
                    503,
                )
            last = attempt == self.config.retries
            try:
                reply = await self._send_once(method, url, names, body)
            except UpstreamError as error:
                self.breaker.failed()
                if last or not (repeatable or isinstance(error.__cause__, _NEVER_SENT)):
                    raise
                wait = _pause(attempt)
            else:
                if reply.status not in RETRIED_STATUSES:
                    self.breaker.succeeded()
                    return reply
                self.breaker.failed()
                if last or not repeatable or not self.breaker.allows():
                    return reply
                wait = _asked_pause(reply, attempt)
                reply.close()
            if self.on_retry is not None:
                self.on_retry()
            await asyncio.sleep(wait)
        raise AssertionError("unreachable")

    async def _send_once(self, method: str, url: URL, headers: CIMultiDict[str], body: bytes) -> UpstreamReply:
        assert self._session is not None, "open() was not called"
        try:
            response = await self._session.request(
                method, url, headers=headers, data=body or None, allow_redirects=False
            )
        except TimeoutError as error:
            what = "accept a connection" if isinstance(error, aiohttp.ConnectionTimeoutError) else "reply"
            message = f"The upstream {self.config.base_url} did not {what} in time: try again, or raise its time-outs."
            raise UpstreamTimeoutError(message, 504) from error
        except aiohttp.ClientConnectorError as error:
            why = error.strerror or type(error).__name__
            message = (
                f"The upstream {self.config.base_url} cannot be reached ({why}): check its address, and that it runs."
            )
            raise UpstreamError(message, 502) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            name = type(error).__name__
            message = f"The upstream {self.config.base_url} broke off or sent no valid HTTP ({name}): try again."
            raise UpstreamError(message, 502) from error
        if not 200 <= response.status < 600:
            response.close()
            raise UpstreamError(f"The upstream {self.config.base_url} sent the status {response.status}.", 502)
        return _Reply(response, self.config.base_url)

    def _url(self, path: bytes, query: bytes) -> URL:
        url = self._urls.get((path, query))
        if url is None:
            text = f"{self.config.base_url}{path.decode('latin-1').removeprefix('/v1')}" + (
                f"?{query.decode('latin-1')}" if query else ""
            )
            url = URL(text, encoded=True)
            if len(self._urls) < MAX_CACHED_URLS:
                self._urls[path, query] = url
        return url


class _Reply:
    """An aiohttp response as the gateway reads it."""

    __slots__ = ("_response", "name", "raw_headers", "status")

    def __init__(self, response: aiohttp.ClientResponse, name: str) -> None:
        self._response = response
        self.status = response.status
        self.raw_headers = response.raw_headers
        self.name = name

    async def read_some(self) -> bytes:
        try:
            return await self._response.content.readany()
        except TimeoutError as error:
            raise UpstreamTimeoutError(f"The upstream {self.name} fell silent.", 504) from error
        except (aiohttp.ClientError, OSError) as error:
            raise UpstreamError(f"The upstream {self.name} broke off ({type(error).__name__}).", 502) from error

    def close(self) -> None:
        # At its end the body has given its connection back already.
        self._response.close()


def _decoded(headers: Headers) -> CIMultiDict[str]:
    try:
        return CIMultiDict([(name.decode(), value.decode()) for name, value in headers])
    except UnicodeDecodeError:
        # aiohttp writes header text as UTF-8: what is no UTF-8 cannot be kept byte for byte.
        return CIMultiDict([(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers])


def _pause(attempt: int) -> float:
    longest = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2**attempt)
    return random.uniform(longest / 2, longest)  # noqa: S311


def _asked_pause(reply: Any, attempt: int) -> float:
    for name, value in reply.raw_headers:
        if name.lower() == b"retry-after" and value.isdigit():
            return min(float(value), LONGEST_PAUSE_SECONDS)
    return _pause(attempt)
