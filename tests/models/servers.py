"""Small HTTP servers that misbehave on request."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class FileServer:
    """Serves bytes by path; ``cuts`` are numbers of bytes after which a reply is cut, ``statuses`` come first."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    ranges: bool = True
    seen: list[tuple[str, str | None]] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)


@contextmanager
def serving(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            answer(self)

        def do_POST(self) -> None:
            answer(self)

        def log_message(self, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *args: object) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.02), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def file_server() -> Iterator[FileServer]:
    state = FileServer()

    def answer(http: BaseHTTPRequestHandler) -> None:
        if http.path == "/":
            http.send_response(200)
            http.send_header("Content-Length", "0")
            http.end_headers()
            return
        wanted = http.headers.get("Range")
        state.seen.append((http.path, wanted))
        state.authorizations.append(http.headers.get("Authorization"))
        if state.statuses:
            http.send_response(state.statuses.pop(0))
            http.send_header("Content-Length", "0")
            http.send_header("Retry-After", "0")
            http.end_headers()
            return
        if http.path not in state.files:
            http.send_response(404)
            http.send_header("Content-Length", "0")
            http.end_headers()
            return
        body = state.files[http.path]
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and state.ranges else 0
        if start and start >= len(body):
            http.send_response(416)
            http.send_header("Content-Length", "0")
            http.end_headers()
            return
        http.send_response(206 if start else 200)
        if start:
            http.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        http.send_header("Content-Length", str(len(body) - start))
        http.end_headers()
        n = state.cuts.pop(0) if state.cuts else len(body)
        http.wfile.write(body[start : start + n])
        if n < len(body) - start:
            http.wfile.flush()
            http.close_connection = True

    with serving(answer) as url:
        state.url = url
        yield state
