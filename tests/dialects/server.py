"""A small real HTTP server that gives prepared answers and counts who asks for them."""

from __future__ import annotations

import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from meshd.call import Headers


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    owner: AnswerServer


class AnswerServer:
    """Serves each prepared answer below a prefix of its own, on loopback, from a thread."""

    def __init__(self) -> None:
        self._answers: dict[str, tuple[int, Headers, bytes]] = {}
        self._bodies: dict[str, bytes] = {}
        self._asked: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.owner = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def prepare(self, status: int, headers: Headers, body: bytes) -> str:
        """Return the base URL below which this answer is given."""
        with self._lock:
            name = str(len(self._answers))
            self._answers[name] = (status, headers, body)
        return f"http://127.0.0.1:{self._server.server_address[1]}/{name}"

    def asked(self, url: str) -> int:
        """Return how many requests came for an answer."""
        with self._lock:
            return self._asked[url.rpartition("/")[2]]

    def body(self, url: str) -> bytes:
        """Return the body of the last request for an answer."""
        with self._lock:
            return self._bodies[url.rpartition("/")[2]]

    def answer(self, path: str, body: bytes) -> tuple[int, Headers, bytes]:
        """Count a request and return its answer."""
        name = path.split("/")[1]
        with self._lock:
            self._asked[name] += 1
            self._bodies[name] = body
            return self._answers[name]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        request = self.rfile.read(int(self.headers.get("content-length", "0")))
        status, headers, body = self.server.owner.answer(self.path, request)
        self.send_response(status)
        for name, value in headers:
            self.send_header(name.decode(), value.decode())
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def serving() -> Iterator[AnswerServer]:
    """Serve while a fixture lives."""
    with AnswerServer() as server:
        yield server
