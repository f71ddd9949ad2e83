"""A small HTTP/1.1 client for one endpoint: pooled connections, parsed by llhttp, nothing else on the way.

A general client costs a call about 0.1 ms of interpreter time, more than all else that the gateway does; one that
knows its only endpoint, forwards headers as bytes and follows nothing needs a fifth of it.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import cast
from urllib.parse import urlsplit

import httptools

from pilotfish.errors import UpstreamError, UpstreamTimeoutError

__all__ = ["Headers", "NeverSentError", "StaleConnectionError", "Wire", "WireReply"]

IDLE_SECONDS = 30.0
HIGH_WATER_BYTES = 1 << 18
MAX_HEADER_BYTES = 1 << 18
NO_BODY_STATUSES = (204, 304)
BODILESS_METHODS = frozenset(["GET", "HEAD", "OPTIONS", "DELETE"])
Headers = list[tuple[bytes, bytes]]


class NeverSentError(UpstreamError):
    """No connection was made: the call has not left."""


class StaleConnectionError(UpstreamError):
    """A kept connection was closed by the other end as it was used again."""


class Wire:
    """Connections to one endpoint.

    Parameters
    ----------
    base_url : str
        The endpoint; only scheme, host and port matter.
    connect_timeout, read_timeout, total_timeout : float
        Seconds to connect, of silence, and of a whole call.
    """

    def __init__(self, base_url: str, connect_timeout: float, read_timeout: float, total_timeout: float) -> None:
        parts = urlsplit(base_url)
        self.name = base_url
        self.host = parts.hostname or ""
        self.tls = ssl.create_default_context() if parts.scheme == "https" else None
        self.port = parts.port or (443 if self.tls else 80)
        self.connect_timeout = connect_timeout
        self.read_timeout = read_timeout
        self.total_timeout = total_timeout
        self._prefix = parts.path.rstrip("/").encode()
        self._host_line = f" HTTP/1.1\r\nhost: {parts.netloc.rpartition('@')[2]}\r\n".encode()
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()

    async def send(self, method: str, target: bytes, headers: Headers, body: bytes) -> WireReply:
        """Send a call and wait for the head of its reply.

        Parameters
        ----------
        method, target : str, bytes
            What is asked; the target is the path below the endpoint's, with the query.
        headers : list of (bytes, bytes)
            Sent as they are; Host and Content-Length are made here.
        body : bytes
            The body.

        Raises
        ------
        NeverSentError
            When no connection was made.
        StaleConnectionError
            When a kept connection turned out to be closed.
        UpstreamTimeoutError
            When there was no reply in time.
        UpstreamError
            When the other end broke off or sent no valid HTTP.
        """
        connection = self._take()
        if connection is None:
            connection = await self._connect()
        head = self._head(method, target, headers, len(body))
        reply = connection.send(head, body, expects_body=method != "HEAD")
        try:
            await reply.head
        except asyncio.CancelledError:
            reply.close()
            raise
        return reply

    async def close(self) -> None:
        """Close all connections."""
        for connection in list(self._open):
            connection.abort()
        # Their transports are gone after a turn of the loop.
        await asyncio.sleep(0)

    def give_back(self, connection: _Connection) -> None:
        """Keep a connection for another call."""
        self._idle.append(connection)

    def forget(self, connection: _Connection) -> None:
        """Forget a connection that is closed."""
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def _head(self, method: str, target: bytes, headers: Headers, n_body: int) -> bytes:
        lines = [method.encode(), b" ", self._prefix, target, self._host_line]
        for name, value in headers:
            lines += (name, b": ", value, b"\r\n")
        if n_body or method not in BODILESS_METHODS:
            lines.append(b"content-length: %d\r\n" % n_body)
        lines.append(b"\r\n")
        return b"".join(lines)

    def _take(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_fresh():
                return connection
            connection.abort()
        return None

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.connect_timeout):
                _, connection = await loop.create_connection(
                    lambda: _Connection(self, loop),
                    self.host,
                    self.port,
                    ssl=self.tls,
                    server_hostname=self.host if self.tls else None,
                )
        except TimeoutError as error:
            message = f"The upstream {self.name} did not accept a connection in time: check its address."
            raise NeverSentError(message, 504) from error
        except OSError as error:
            why = error.strerror or type(error).__name__
            message = f"The upstream {self.name} cannot be reached ({why}): check its address, and that it runs."
            raise NeverSentError(message, 502) from error
        self._open.add(connection)
        return connection


class WireReply:
    """A reply whose head has arrived (once ``head`` is done) and whose body is read as it comes."""

    __slots__ = (
        "_connection",
        "_error",
        "_expects_body",
        "_headers_done",
        "_n_buffered",
        "_n_header_bytes",
        "_parser",
        "_parts",
        "_sized",
        "_waiter",
        "ended",
        "head",
        "keep_alive",
        "raw_headers",
        "status",
        "touched",
    )

    def __init__(self, connection: _Connection, loop: asyncio.AbstractEventLoop, expects_body: bool) -> None:
        self.status = 0
        self.raw_headers: list[tuple[bytes, bytes]] = []
        self.head: asyncio.Future[None] = loop.create_future()
        self.ended = False
        self.keep_alive = False
        self.touched = False
        self._connection = connection
        self._expects_body = expects_body
        self._headers_done = False
        self._sized = False
        self._parts: list[bytes] = []
        self._n_buffered = 0
        self._n_header_bytes = 0
        self._error: UpstreamError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)

    async def read_some(self) -> bytes:
        """What has arrived of the body, waiting for at least one byte; empty at its end.

        Raises
        ------
        UpstreamTimeoutError
            When nothing came in time.
        UpstreamError
            When the other end broke off.
        """
        while not self._parts:
            if self.ended:
                return b""
            if self._error is not None:
                raise self._error
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        parts, self._parts, self._n_buffered = self._parts, [], 0
        self._connection.resume()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Let go of the connection; what has not arrived is given up."""
        if not self.ended and self._error is None:
            self._error = UpstreamError("The reply was given up.", 502)
            self._connection.abort()

    def feed(self, data: bytes) -> None:
        """Take what has arrived."""
        if self._parser is None:
            return
        self.touched = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.fail(UpstreamError("The upstream switched protocols unasked.", 502))
        except httptools.HttpParserError as error:
            name = self._connection.wire.name
            self.fail(UpstreamError(f"The upstream {name} sent no valid HTTP ({error}): check its address.", 502))
        if self.ended or self._error is not None:
            # It holds methods of this reply: were the two left to the garbage collection, all calls would wait for it.
            self._parser = None

    def finish(self) -> bool:
        """Take the end of the connection; whether that is the end of the body."""
        if self._headers_done and not self._sized and self._error is None:
            self._end()
        return self.ended

    def fail(self, error: UpstreamError) -> None:
        """Give up, with a reason for whoever waits."""
        if self.ended or self._error is not None:
            return
        self._error = error
        self._connection.abort()
        if not self.head.done():
            self.head.set_exception(error)
        self._wake()

    def on_message_begin(self) -> None:
        """Called by the parser; a second reply on the heels of the first is one that nobody asked for."""
        if self.ended:
            self._connection.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser; also for trailers, which are left out."""
        if self._headers_done:
            return
        self._n_header_bytes += len(name) + len(value)
        if self._n_header_bytes > MAX_HEADER_BYTES:
            self.fail(UpstreamError("The upstream's headers are too long.", 502))
            return
        self.raw_headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Called by the parser, also for interim replies."""
        assert self._parser is not None
        status = self._parser.get_status_code()
        if status < 200:
            return
        if status > 599:
            self.fail(UpstreamError(f"The upstream {self._connection.wire.name} sent the status {status}.", 502))
            return
        self.status = status
        self._headers_done = True
        self.keep_alive = self._parser.should_keep_alive()
        self._sized = any(name.lower() in (b"content-length", b"transfer-encoding") for name, _ in self.raw_headers)
        if not self._expects_body or status in NO_BODY_STATUSES:
            # The parser would wait for the body that the headers promise.
            self.keep_alive = self.keep_alive and status in NO_BODY_STATUSES and self._expects_body
            self._end()
        if not self.head.done():
            self.head.set_result(None)

    def on_body(self, body: bytes) -> None:
        """Called by the parser."""
        if self.ended or self._error is not None:
            return
        self._parts.append(body)
        self._n_buffered += len(body)
        if self._n_buffered > HIGH_WATER_BYTES:
            self._connection.pause()
        self._wake()

    def on_message_complete(self) -> None:
        """Called by the parser, also for interim replies."""
        if not self._headers_done:
            self.raw_headers.clear()
        elif not self.ended:
            self._end()

    def _end(self) -> None:
        self.ended = True
        self._connection.release(self.keep_alive)
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class _Connection(asyncio.Protocol):
    """One connection, with at most one call on it."""

    def __init__(self, wire: Wire, loop: asyncio.AbstractEventLoop) -> None:
        self.wire = wire
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._reply: WireReply | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._used_before = False
        self._paused = False
        self._sent = 0.0
        self._heard = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._heard = self._loop.time()
        if self._reply is None:
            # Nobody asked: what follows could be taken for another call's reply.
            self.abort()
        else:
            self._reply.feed(data)

    def connection_lost(self, error: Exception | None) -> None:
        self.wire.forget(self)
        reply, transport = self._reply, self._transport
        self._transport = None
        if reply is not None and not (error is None and reply.finish()):
            name = self.wire.name
            if self._used_before and not reply.touched:
                reply.fail(StaleConnectionError(f"The upstream {name} closed a kept connection: try again.", 502))
            else:
                reply.fail(UpstreamError(f"The upstream {name} broke off: try again.", 502))
        self._stop_timer()
        if transport is not None:
            transport.close()

    def send(self, head: bytes, body: bytes, expects_body: bool) -> WireReply:
        """Send a call."""
        assert self._transport is not None
        self._sent = self._loop.time()
        self._reply = reply = WireReply(self, self._loop, expects_body)
        self._timer = self._loop.call_later(min(self.wire.read_timeout, self.wire.total_timeout), self._look_at_clock)
        self._transport.write(head + body if len(body) < 65_536 else head)
        if len(body) >= 65_536:
            self._transport.write(body)
        return reply

    def is_fresh(self) -> bool:
        """Whether a kept connection may be used again."""
        return self._transport is not None and self._loop.time() - max(self._heard, self._sent) < IDLE_SECONDS

    def pause(self) -> None:
        """Stop reading until the reader has caught up."""
        if not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._paused and self._transport is not None:
            self._paused = False
            self._heard = self._loop.time()
            self._transport.resume_reading()

    def release(self, keep_alive: bool) -> None:
        """End a call; keep the connection where both ends want to."""
        self._stop_timer()
        transport = self._transport
        if transport is None:
            return
        self.resume()
        self._reply = None
        if keep_alive and not transport.is_closing() and transport.get_write_buffer_size() == 0:
            self._used_before = True
            self.wire.give_back(self)
        else:
            self.abort()

    def abort(self) -> None:
        """Close at once."""
        self._stop_timer()
        self.wire.forget(self)
        if self._transport is not None:
            self._transport.abort()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_at_clock(self) -> None:
        reply = self._reply
        if reply is None:
            return
        now = self._loop.time()
        silent_until = max(self._sent, self._heard) + self.wire.read_timeout
        until = self._sent + self.wire.total_timeout
        if now >= until - 0.001 or (now >= silent_until - 0.001 and not self._paused):
            what = "did not reply in time" if not reply.status else "fell silent or took too long"
            message = f"The upstream {self.wire.name} {what}: try again, or raise its time-outs."
            reply.fail(UpstreamTimeoutError(message, 504))
            return
        wait = until - now if self._paused else min(until, silent_until) - now
        self._timer = self._loop.call_later(max(wait, 0.01), self._look_at_clock)
