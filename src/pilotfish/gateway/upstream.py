"""The large model's endpoint: its connections, retries and the circuit breaker."""

from __future__ import annotations

import asyncio
import random
import time
import urllib.request
from collections.abc import Callable, Sequence
from typing import Protocol
from urllib.parse import urlsplit

from pilotfish.errors import UpstreamError
from pilotfish.gateway.config import UpstreamConfig
from pilotfish.gateway.wire import Headers, NeverSentError, StaleConnectionError, Wire

__all__ = ["Breaker", "Transport", "Upstream", "UpstreamReply"]

RETRIED_STATUSES = frozenset([502, 503, 504])
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 5.0
MAX_STALE = 8


class UpstreamReply(Protocol):
    """A reply whose head has arrived and whose body is read as it comes."""

    @property
    def status(self) -> int:
        """The HTTP status."""
        ...

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


class Transport(Protocol):
    """What carries calls to an endpoint."""

    async def send(self, method: str, target: bytes, headers: Headers, body: bytes) -> UpstreamReply:
        """Send a call and wait for the head of its reply."""
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...


class Near(Protocol):
    """What answers some calls itself, with no regard to how the endpoint fares."""

    async def send(self, method: str, target: bytes, headers: Headers, body: bytes) -> UpstreamReply | None:
        """Answer a call; None for one that is the endpoint's."""
        ...

    async def close(self) -> None:
        """Let go of what answers."""
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
    near : callable or None
        From the endpoint's transport to what answers some calls itself: local models.
    """

    def __init__(
        self,
        config: UpstreamConfig,
        on_retry: Callable[[], None] | None = None,
        near: Callable[[Transport], Near] | None = None,
    ) -> None:
        self.config = config
        self.authorization = (
            f"Bearer {config.api_key.get_secret_value()}".encode() if config.api_key is not None else None
        )
        self.breaker = Breaker(config.breaker_failures, config.breaker_open_s)
        self.on_retry = on_retry
        self._make_near = near
        self._near: Near | None = None
        self._transport: Transport | None = None

    def open(self) -> None:
        """Get ready to send; called on the event loop that will."""
        config = self.config
        timeouts = config.connect_timeout_s, config.read_timeout_s, config.total_timeout_s
        if _needs_proxy(config.base_url):
            from pilotfish.gateway.proxied import Proxied

            self._transport = Proxied(config.base_url, *timeouts)
        else:
            self._transport = Wire(config.base_url, *timeouts)
        if self._make_near is not None:
            self._near = self._make_near(self._transport)

    async def close(self) -> None:
        """Close the connections."""
        if self._near is not None:
            await self._near.close()
        if self._transport is not None:
            await self._transport.close()

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
        target = path.removeprefix(b"/v1") + (b"?" + query if query else b"")
        if self._near is not None:
            reply = await self._near.send(method, target, headers, body)
            if reply is not None:
                return reply
        for attempt in range(self.config.retries + 1):
            if not self.breaker.allows():
                raise UpstreamError(
                    f"The upstream {self.config.base_url} failed {self.breaker.n_failures} times in a row and is left "
                    f"alone for {self.breaker.seconds_left:.0f} s more: try again then.",
                    503,
                )
            last = attempt == self.config.retries
            try:
                reply = await self._send_fresh(method, target, headers, body, repeatable)
            except UpstreamError as error:
                self.breaker.failed()
                if last or not (repeatable or isinstance(error, NeverSentError)):
                    raise
                wait = _pause(attempt)
            else:
                if reply.status not in RETRIED_STATUSES:
                    self.breaker.succeeded()
                    return reply
                self.breaker.failed()
                if last or not repeatable or self.breaker.is_open:
                    return reply
                wait = _asked_pause(reply, attempt)
                reply.close()
            if self.on_retry is not None:
                self.on_retry()
            await asyncio.sleep(wait)
        raise AssertionError("unreachable")

    async def _send_fresh(
        self, method: str, target: bytes, headers: Headers, body: bytes, repeatable: bool
    ) -> UpstreamReply:
        """Send a call; kept connections that were closed meanwhile say nothing about the endpoint."""
        assert self._transport is not None, "open() was not called"
        for _ in range(MAX_STALE):
            try:
                return await self._transport.send(method, target, headers, body)
            except StaleConnectionError:
                if not repeatable:
                    raise
        return await self._transport.send(method, target, headers, body)


def _needs_proxy(base_url: str) -> bool:
    """Whether the environment names a proxy for an address."""
    parts = urlsplit(base_url)
    proxies = urllib.request.getproxies()
    return parts.scheme in proxies and not urllib.request.proxy_bypass(parts.netloc)


def _pause(attempt: int) -> float:
    longest = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2**attempt)
    return random.uniform(longest / 2, longest)  # noqa: S311


def _asked_pause(reply: UpstreamReply, attempt: int) -> float:
    for name, value in reply.raw_headers:
        if name.lower() == b"retry-after" and value.isdigit():
            return min(float(value), LONGEST_PAUSE_SECONDS)
    return _pause(attempt)
