"""A client that keeps a number of connections busy and is no bottleneck itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import orjson
import uvloop

SYSTEM = "Classify the customer's message into one of the bank's intents. Answer with the intent's name only. " * 12


@dataclass
class Load:
    """What a load measured: latency of each call in seconds, calls per second, calls that failed."""

    latencies: np.ndarray
    calls_per_s: float
    n_failed: int

    def ms(self, quantile: float) -> float:
        """A quantile of the latency in milliseconds."""
        return float(np.quantile(self.latencies, quantile)) * 1e3 if self.latencies.size else float("nan")


@dataclass
class _Tally:
    latencies: list[float] = field(default_factory=list)
    n_failed: int = 0
    deadline: float = 0.0
    n_sent: int = 0


def request(host: str, port: int, model: str, index: int, stream: bool) -> bytes:
    """One chat completion call as it goes over the wire."""
    body = orjson.dumps(
        {
            "model": model,
            "messages": [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": f"My new card has not arrived yet, what shall I do? ({index:09d})"},
            ],
            "temperature": 0,
            **({"stream": True} if stream else {}),
        }
    )
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}:{port}\r\naccept: application/json\r\n"
        "content-type: application/json\r\nauthorization: Bearer sk-bench\r\nuser-agent: bench\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class _Connection(asyncio.Protocol):
    """One connection that sends its next call when the reply to the last is complete."""

    def __init__(self, template: bytes, tally: _Tally, on_reply: Callable[[bytes], None] | None) -> None:
        self.template = template
        self.position = template.rindex(b"(000000000)") + 1
        self.tally = tally
        self.on_reply = on_reply
        self.buffer = b""
        self.needed = -1
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._send()

    def connection_lost(self, _error: Exception | None) -> None:
        if not self.done.done():
            self.tally.n_failed += 1
            self.done.set_result(None)

    def data_received(self, data: bytes) -> None:
        self.buffer = self.buffer + data if self.buffer else data
        if self.needed < 0:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self.buffer[:end].lower()
            at = head.find(b"content-length: ")
            if at >= 0:
                self.needed = end + 4 + int(head[at + 16 : at + 28].split(b"\r\n")[0])
            else:
                self.needed = 0
        if self.needed:
            if len(self.buffer) < self.needed:
                return
        elif not self.buffer.endswith(b"0\r\n\r\n"):
            return
        self._finished()

    def _finished(self) -> None:
        now = time.perf_counter()
        self.tally.latencies.append(now - self.sent)
        if not self.buffer.startswith(b"HTTP/1.1 200"):
            self.tally.n_failed += 1
        if self.on_reply is not None:
            self.on_reply(self.buffer)
        self.buffer = b""
        self.needed = -1
        if now < self.tally.deadline:
            self._send()
        else:
            self.done.set_result(None)
            self.transport.close()

    def _send(self) -> None:
        self.tally.n_sent += 1
        at = self.position
        self.sent = time.perf_counter()
        self.transport.write(  # type: ignore[attr-defined]
            self.template[:at] + b"%09d" % self.tally.n_sent + self.template[at + 9 :]
        )


async def _load(
    port: int, model: str, concurrency: int, seconds: float, stream: bool, on_reply: Callable[[bytes], None] | None
) -> Load:
    loop = asyncio.get_running_loop()
    template = request("127.0.0.1", port, model, 0, stream)
    tally = _Tally(deadline=time.perf_counter() + seconds)
    start = time.perf_counter()
    connections = [
        (await loop.create_connection(lambda: _Connection(template, tally, on_reply), "127.0.0.1", port))[1]
        for _ in range(concurrency)
    ]
    await asyncio.gather(*(connection.done for connection in connections))
    took = time.perf_counter() - start
    return Load(np.array(tally.latencies), len(tally.latencies) / took, tally.n_failed)


def load(
    port: int,
    concurrency: int,
    seconds: float,
    *,
    model: str = "bench",
    stream: bool = False,
    on_reply: Callable[[bytes], None] | None = None,
) -> Load:
    """Keep ``concurrency`` connections busy for some seconds, one call at a time on each."""
    return uvloop.run(_load(port, model, concurrency, seconds, stream, on_reply))
