"""The stand-in on HTTP/2 without TLS: a gRPC service of three methods, with messages of 1 kB.

Unary answers one message with one; Stream sends each message back as it comes; Flood answers one with a thousand, each
in a DATA frame of its own, as fast as the windows let them go. All end with the trailer `grpc-status: 0`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import ngh2

from bench.upstream.bodies import FLOOD_MESSAGES, FLOOD_PATH, STREAM_PATH, grpc_frame

if TYPE_CHECKING:
    from bench.upstream.http1 import Counters

_HEAD = [(b":status", b"200"), (b"content-type", b"application/grpc")]
_TRAILERS = [(b"grpc-status", b"0")]
_REPLY = grpc_frame()
_SETTINGS = {ngh2.Setting.MAX_CONCURRENT_STREAMS: 10_000, ngh2.Setting.INITIAL_WINDOW_SIZE: 1 << 20}
_CONNECTION_WINDOW = 16 << 20
_STREAM = STREAM_PATH.encode()
_FLOOD = FLOOD_PATH.encode()
_BATCH = 16
"""Messages of a flood that are handed to the socket in one write."""


def whole_messages(data: bytes) -> int:
    """Return how many bytes of `data` are whole gRPC messages, prefixes included."""
    at = 0
    while at + 5 <= len(data):
        end = at + 5 + int.from_bytes(data[at + 1 : at + 5], "big")
        if end > len(data):
            break
        at = end
    return at


class GrpcUpstream(asyncio.Protocol):
    """One connection and the streams on it."""

    def __init__(self, counters: Counters) -> None:
        self.counters = counters
        self.transport: asyncio.Transport
        self.connection = ngh2.Connection(ngh2.Role.SERVER)
        self.kept: dict[int, bytes] = {}
        """What has come of a message that is not whole yet, for each stream that is sent back."""
        self.floods: dict[int, int] = {}
        """Messages that are still to be sent, for each stream that floods or is about to."""
        self.is_paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.connection.initiate_connection(_SETTINGS)
        self.connection.set_local_window_size(_CONNECTION_WINDOW)
        self._flush()

    def data_received(self, data: bytes) -> None:
        try:
            self.connection.receive_data(data)
        except ngh2.NGH2Error:
            self.transport.close()
            return
        for event in self.connection.events():
            kind = event.__class__
            if kind is ngh2.DataReceived:
                self._on_data(event)
            elif kind is ngh2.RequestReceived:
                self._on_request(event)
            elif kind is ngh2.StreamClosed:
                self.kept.pop(event.stream_id, None)
                self.floods.pop(event.stream_id, None)
        self._flush()

    def _on_request(self, event: ngh2.RequestReceived) -> None:
        id = event.stream_id
        path = next(value for name, value in event.headers if name == b":path")
        if path == _STREAM:
            self.kept[id] = b""
            self.connection.send_response(id, _HEAD)
        elif path == _FLOOD:
            self.floods[id] = 0
            self.connection.send_response(id, _HEAD)
        if event.end_stream:
            self._end(id)

    def _on_data(self, event: ngh2.DataReceived) -> None:
        id = event.stream_id
        kept = self.kept.get(id)
        if kept is not None:
            data = kept + event.data
            whole = whole_messages(data)
            self.kept[id] = data[whole:]
            if whole:
                self.connection.send_data(id, data[:whole])
        if event.end_stream:
            self._end(id)

    def _end(self, id: int) -> None:
        """The caller has sent its last byte."""
        connection = self.connection
        if id in self.floods:
            self.floods[id] = FLOOD_MESSAGES
            return
        if id not in self.kept:
            self.counters.unary += 1
            connection.send_response(id, _HEAD)
            connection.send_data(id, _REPLY)
        connection.send_trailers(id, _TRAILERS)

    def _flush(self) -> None:
        data = self.connection.data_to_send()
        if data:
            self.transport.write(data)
        while self.floods and not self.is_paused and self._pump():
            pass

    def _pump(self) -> bool:
        """Send some messages of each flood; return whether any could go."""
        connection = self.connection
        out = []
        for id, left in tuple(self.floods.items()):
            for _ in range(min(left, _BATCH)):
                if connection.queued_body_size(id):
                    break  # the window is closed; its opening brings us here again
                connection.send_data(id, _REPLY)
                self.floods[id] = left = left - 1
                if not left:
                    connection.send_trailers(id, _TRAILERS)
                    del self.floods[id]
                out.append(connection.data_to_send())
        written = b"".join(out)
        if written:
            self.transport.write(written)
        return bool(written)

    def pause_writing(self) -> None:
        self.is_paused = True

    def resume_writing(self) -> None:
        self.is_paused = False
        self._flush()
