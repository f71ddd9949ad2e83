"""A scripted upstream, a running gateway, and a plain client between them."""

from __future__ import annotations

import asyncio
import http.client
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
import uvicorn

from pilotfish.gateway import Gateway, GatewayConfig
from pilotfish.gateway.serve import settings
from pilotfish.traffic import Call, TrafficLog

CHAT = "/v1/chat/completions"


@dataclass
class Received:
    """A request as the upstream got it."""

    method: str
    target: str
    headers: list[tuple[bytes, bytes]]
    body: bytes

    def header(self, name: str) -> list[bytes]:
        return [value for key, value in self.headers if key.lower() == name.encode()]

    @property
    def data(self) -> Any:
        return orjson.loads(self.body)


Script = Callable[[Received, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait a while for something to become true."""
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def whole(body: bytes, status: int = 200, headers: str = "content-type: application/json\r\n") -> bytes:
    """A reply with its length."""
    return f"HTTP/1.1 {status} Whatever\r\n{headers}content-length: {len(body)}\r\n\r\n".encode() + body


def answer(text: str = "card_arrival", **more: Any) -> bytes:
    """The body of a chat completion."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15}
    return orjson.dumps(
        {
            "id": "chatcmpl-up",
            "object": "chat.completion",
            "created": 1,
            "model": "large",
            "choices": [choice],
            "usage": usage,
        }
        | more
    )


def chunk(data: bytes) -> bytes:
    """One chunk of a body of unknown length."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def events(*deltas: dict[str, Any], usage: dict[str, int] | None = None) -> list[bytes]:
    """The server-sent events of a completion."""
    head = {"id": "chatcmpl-up", "object": "chat.completion.chunk", "created": 1, "model": "large"}
    bodies = [{**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    bodies.append({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    if usage is not None:
        bodies.append({**head, "choices": [], "usage": usage})
    return [b"data: " + orjson.dumps(body) + b"\n\n" for body in bodies] + [b"data: [DONE]\n\n"]


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class Scripted:
    """An endpoint that does what a test says, in a thread of its own."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.tls = tls
        self.received: list[Received] = []
        self.n_connections = 0
        self.disconnected = threading.Event()
        self.script: Script | None = None
        self.loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        async def main() -> asyncio.Server:
            return await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=1 << 26, ssl=self.tls)

        self._server = asyncio.run_coroutine_threadsafe(main(), self.loop).result()
        self.port = self._server.sockets[0].getsockname()[1]

    def stop(self) -> None:
        """Close the door and every connection."""

        async def main() -> None:
            assert self._server is not None
            self._server.close()
            for task in asyncio.all_tasks():
                if task is not asyncio.current_task():
                    task.cancel()
            await asyncio.sleep(0.01)

        asyncio.run_coroutine_threadsafe(main(), self.loop).result()

    def close(self) -> None:
        self.stop()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def replies(self, *replies: bytes) -> None:
        """Send these, one a call, the last again and again."""
        left = list(replies)

        async def script(received: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(left.pop(0) if len(left) > 1 else left[0])

        self.script = script

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.n_connections += 1
        try:
            while True:
                received = await _read(reader)
                self.received.append(received)
                if self.script is None:
                    writer.write(whole(answer()))
                else:
                    await self.script(received, reader, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            self.disconnected.set()
        except asyncio.CancelledError:
            pass
        finally:
            writer.close()


async def _read(reader: asyncio.StreamReader) -> Received:
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head[:-4].split(b"\r\n")
    method, target, _ = first.decode("latin-1").split(" ")
    headers = [(name, value) for name, _, value in (line.partition(b": ") for line in lines)]
    lengths = [int(value) for name, value in headers if name.lower() == b"content-length"]
    return Received(method, target, headers, await reader.readexactly(lengths[0] if lengths else 0))


@dataclass
class Answered:
    """What a client got."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name), None)

    @property
    def data(self) -> Any:
        return orjson.loads(self.body)


@dataclass
class Running:
    """A gateway that runs in a thread."""

    port: int
    config: GatewayConfig
    gateway: Gateway
    server: uvicorn.Server
    thread: threading.Thread
    stopped: bool = field(default=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)

    def call(self, method: str, path: str, body: bytes = b"", headers: Any = ()) -> Answered:
        """Send exactly these headers."""
        connection = self.connection()
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            connection.putheader("Host", f"127.0.0.1:{self.port}")
            for name, value in headers:
                connection.putheader(name, value)
            if body or method == "POST":
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            response = connection.getresponse()
            return Answered(response.status, response.getheaders(), response.read())
        finally:
            connection.close()

    def chat(self, prompt: str = "Hi", headers: Any = (), **fields: Any) -> Answered:
        body = {"model": "large", "messages": [{"role": "user", "content": prompt}], **fields}
        return self.call("POST", CHAT, orjson.dumps(body), [("content-type", "application/json"), *headers])

    def calls(self, n_calls: int = 1) -> list[Call]:
        """The log's calls, once there are so many."""
        deadline = time.monotonic() + 5
        with TrafficLog(self.config.log.path, read_only=True) as log:
            while log.count() < n_calls and time.monotonic() < deadline:
                time.sleep(0.01)
            return list(log.calls())

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = self.call("GET", "/metrics").body.decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.partition("{")[0].partition(" ")[0] == name)

    def stop(self) -> None:
        if not self.stopped:
            self.stopped = True
            self.server.should_exit = True
            self.thread.join(20)
            assert not self.thread.is_alive()


@contextmanager
def running(config: GatewayConfig, **more: Any) -> Iterator[Running]:
    gateway = Gateway(config, **more)
    server = uvicorn.Server(uvicorn.Config(gateway, **settings(config)))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 10
    while not server.started and thread.is_alive() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert server.started
    port = server.servers[0].sockets[0].getsockname()[1]
    run = Running(port, config, gateway, server, thread)
    try:
        yield run
    finally:
        run.stop()
