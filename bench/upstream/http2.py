"""The stand-in on HTTP/2 without TLS: a gRPC-shaped unary method that answers 1 kB and the trailer `grpc-status: 0`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import ngh2

from bench.upstream.bodies import grpc_frame

if TYPE_CHECKING:
    from bench.upstream.http1 import Counters

_HEAD = [(b":status", b"200"), (b"content-type", b"application/grpc")]
_TRAILERS = [(b"grpc-status", b"0")]
_REPLY = grpc_frame()
_SETTINGS = {ngh2.Setting.MAX_CONCURRENT_STREAMS: 10_000}


class UnaryUpstream(asyncio.Protocol):
    """One connection; every stream that the client ends is answered."""

    def __init__(self, counters: Counters) -> None:
        self.counters = counters
        self.transport: asyncio.Transport
        self.connection = ngh2.Connection(ngh2.Role.SERVER)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.connection.initiate_connection(_SETTINGS)
        self._flush()

    def data_received(self, data: bytes) -> None:
        connection = self.connection
        try:
            connection.receive_data(data)
        except ngh2.NGH2Error:
            self.transport.close()
            return
        for event in connection.events():
            if isinstance(event, (ngh2.DataReceived, ngh2.RequestReceived)) and event.end_stream:
                self.counters.unary += 1
                connection.send_response(event.stream_id, _HEAD)
                connection.send_data(event.stream_id, _REPLY)
                connection.send_trailers(event.stream_id, _TRAILERS)
        self._flush()

    def _flush(self) -> None:
        data = self.connection.data_to_send()
        if data:
            self.transport.write(data)
