"""An endpoint that answers from memory: ``python -m benchmarks.serving.upstream PORT``."""

from __future__ import annotations

import asyncio
import sys

import httptools
import orjson
import uvloop

ANSWER = "card_arrival"
N_CHUNKS = 20


def _reply() -> bytes:
    message = {"role": "assistant", "content": ANSWER, "refusal": None}
    body = orjson.dumps(
        {
            "id": "chatcmpl-0123456789abcdef",
            "object": "chat.completion",
            "created": 1_700_000_000,
            "model": "bench",
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 400, "completion_tokens": 4, "total_tokens": 404},
        }
    )
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-request-id: req-1\r\ncontent-length: %d\r\n\r\n"
    return head % len(body) + body


def _stream() -> bytes:
    head = {"id": "chatcmpl-0", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": "bench"}
    deltas: list[dict[str, str]] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": f"token{i} "} for i in range(N_CHUNKS - 2)]
    events = [
        orjson.dumps({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}) for delta in deltas
    ]
    events.append(orjson.dumps({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}))
    events.append(b"[DONE]")
    chunks = [b"data: " + event + b"\n\n" for event in events]
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    return b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n" + body


REPLY = _reply()
STREAM = _stream()


class _Endpoint(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)
        self.streams = False

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.streams = False

    def on_body(self, body: bytes) -> None:
        self.streams = self.streams or b'"stream":true' in body or b'"stream": true' in body

    def on_message_complete(self) -> None:
        self.transport.write(STREAM if self.streams else REPLY)  # type: ignore[attr-defined]


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(_Endpoint, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
