"""Latency at a constant rate: `python -m bench.load.rate REQUEST CALLS_PER_S SECONDS`; prints a Load with latencies.

Open loop: calls leave by the clock, whether or not earlier ones were answered, and a latency counts from the moment
that the call was due, so a stall delays nobody's stopwatch (no coordinated omission). It runs on select with
microsecond timeouts, since the event loops' timers tick in milliseconds, more than what is measured here.
"""

from __future__ import annotations

import select
import socket
import sys
import time
from pathlib import Path

from bench.load.replies import is_good, reply_bytes
from bench.load.request import Load, Request

_PATIENCE_S = 5.0


class Sender:
    """Keep-alive connections, one call under way on each, opened as they are needed."""

    def __init__(self, request: Request, load: Load) -> None:
        self.message = request.http1()[0]
        self.port = request.port
        self.load = load
        self.idle: list[socket.socket] = []
        self.due_s: dict[socket.socket, float] = {}
        self.kept: dict[socket.socket, bytes] = {}

    def open(self) -> socket.socket:
        """Open a connection. Raises OSError."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=_PATIENCE_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setblocking(False)
        return connection

    def send(self, due_s: float) -> None:
        """Send one call that was due at `due_s`."""
        connection = self.idle.pop() if self.idle else self.open()
        self.due_s[connection], self.kept[connection] = due_s, b""
        connection.send(self.message)

    def receive(self, timeout_s: float) -> None:
        """Take what answers come within `timeout_s`."""
        readable, _, _ = select.select(list(self.due_s), [], [], max(0.0, timeout_s))
        for connection in readable:
            try:
                data = connection.recv(65536)
                data = self.kept[connection] + data if data else b""
                whole = bool(data) and reply_bytes(data) > 0
            except (OSError, ValueError):
                data, whole = b"", False
            if not data:
                self.load.errors += 1
                del self.due_s[connection]
                connection.close()
            elif whole:
                self._answered(connection, data)
            else:
                self.kept[connection] = data

    def _answered(self, connection: socket.socket, data: bytes) -> None:
        if is_good(data):
            self.load.count += 1
            self.load.latencies_s.append(time.perf_counter() - self.due_s[connection])
        else:
            self.load.errors += 1
        del self.due_s[connection]
        self.idle.append(connection)


def send_at_rate(request: Request, calls_per_s: float, seconds: float) -> Load:
    """Send for `seconds` and wait for the last answers. A call that is never answered is an error."""
    load = Load(0, 0, 0.0, "own open-loop caller")
    sender = Sender(request, load)
    sender.idle = [sender.open() for _ in range(4)]
    began_s = time.perf_counter()
    for number in range(round(calls_per_s * seconds)):
        due_s = began_s + number / calls_per_s
        while (left_s := due_s - time.perf_counter()) > 0:
            sender.receive(left_s)
        sender.send(due_s)
    until_s = time.perf_counter() + _PATIENCE_S
    while sender.due_s and time.perf_counter() < until_s:
        sender.receive(until_s - time.perf_counter())
    load.errors += len(sender.due_s)
    load.wall_s = time.perf_counter() - began_s
    return load


if __name__ == "__main__":
    print(send_at_rate(Request.read(Path(sys.argv[1])), float(sys.argv[2]), float(sys.argv[3])).json())
