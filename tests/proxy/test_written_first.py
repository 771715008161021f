"""What goes out stands in the trace before its first byte has left, though what goes out together is one record."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import RequestReceived

from meshd.trace.opening import DIRECTORY, open_trace
from meshd.trace.reading import Reader, segment_paths
from meshd.trace.verifying import verify
from tests.trace.logs import frames_in

CALLS = 20


class Watching:
    """An upstream on threads of its own, which looks into the trace the moment that a request reaches it."""

    def __init__(self, directory: Path, *, is_h2: bool) -> None:
        self.missing: list[str] = []
        """Of each request that came before it was written down: how many had come, and how many stood there."""
        self._reader = Reader(directory)
        self._serve = self._serve_h2 if is_h2 else self._serve_h1
        self._lock = threading.Lock()
        self._came = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=CALLS)
        self.port = self._listener.getsockname()[1]
        self._ended: list[socket.socket] = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self._ended.append(near)
                threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _look(self, count: int = 1) -> None:
        with self._lock:
            self._came += count
            written = Counter(event.kind for event in self._reader.events(None))["forwarded"]
            if written < self._came:
                self.missing.append(f"{self._came} had come, {written} stood there")

    def _serve_h1(self, near: socket.socket) -> None:
        with suppress(OSError):
            while head := near.recv(65_536):
                self._look()
                front, _, body = head.partition(b"\r\n\r\n")
                fields = dict(line.lower().split(b": ", 1) for line in front.split(b"\r\n")[1:])
                while len(body) < int(fields.get(b"content-length", 0)):
                    body += near.recv(65_536)
                near.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    def _serve_h2(self, near: socket.socket) -> None:
        wire = H2Connection(H2Configuration(client_side=False))
        wire.initiate_connection()
        with suppress(OSError):
            near.sendall(wire.data_to_send())
            while data := near.recv(65_536):
                came = [event for event in wire.receive_data(data) if isinstance(event, RequestReceived)]
                if came:
                    self._look(len(came))
                for event in came:
                    assert event.stream_id is not None
                    wire.send_headers(event.stream_id, [(":status", "200")], end_stream=True)
                near.sendall(wire.data_to_send())

    def close(self) -> None:
        for one in self._ended:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


@pytest.mark.parametrize("is_h2", [False, True], ids=["to-h1", "to-h2"])
@pytest.mark.parametrize("size", [0, 100, 20_000], ids=["no-body", "short", "long"])
async def test_it_stands_there_before_the_first_byte(
    mesh: Any, h2_client: Any, tmp_path: Path, is_h2: bool, size: int
) -> None:
    recorder = open_trace(tmp_path, segment_bytes=2**16)
    watching = Watching(tmp_path / DIRECTORY, is_h2=is_h2)
    protocol = ", protocol: h2" if is_h2 else ""
    document = f"upstreams: {{up: {{url: 'http://127.0.0.1:{watching.port}', kind: host{protocol}}}}}\n"
    one = await mesh(document, trace=recorder)
    client = await h2_client(one)
    # Wait for the settings: only then windows are known.
    half = await client.ask("/up/first")
    assert half.fields[":status"] == "200"
    ids = []
    for number in range(CALLS):
        id = client.h2.get_next_available_stream_id()
        method = "POST" if size else "GET"
        path = f"/up/{number}"
        pseudo = [(":method", method), (":scheme", "http"), (":authority", "127.0.0.1"), (":path", path)]
        fields = [("content-length", str(size))] if size else []
        client.h2.send_headers(id, [*pseudo, *fields], end_stream=not size)
        if size and size < 1000:
            client.h2.send_data(id, bytes(size), end_stream=True)
        ids.append(id)
    client.flush()  # all in one: the sidecar reads them in one turn of its loop
    if size >= 1000:
        for id in ids:
            await client.send_all(id, bytes(size))
    for id in ids:
        assert (await client.ended(id)).fields[":status"] == "200"
    await one.idle()
    watching.close()
    recorder.close()
    assert watching.missing == []
    found = verify(tmp_path / DIRECTORY)
    assert (found.problems, found.records) == ([], 1 + 2 * (CALLS + 1))
    frames = sum(len(frames_in(path)) for path in segment_paths(tmp_path / DIRECTORY))
    assert frames < found.records, "what went out together became one record"
    kinds = Counter(event.kind for event in Reader(tmp_path / DIRECTORY).events(None))
    assert kinds == {"opened": 1, "forwarded": CALLS + 1, "ended": CALLS + 1}
