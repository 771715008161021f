"""The calls that rows are made of, and the probe that each proxy must pass before it is timed."""

from __future__ import annotations

import http.client
from typing import TYPE_CHECKING

from bench.load.request import Request
from bench.peers.contract import Running, Wire
from bench.processes import NotReadyError
from bench.upstream.bodies import CHAT_PATH, STREAM_HEADER, UNARY_PATH, USAGE, chat_reply, chat_request, grpc_frame

if TYPE_CHECKING:
    from bench.stage import Stage

_PROBE_S = 1


def chat(running: Running, wire: Wire = Wire.HTTP, *, body: bytes | None = None, **headers: str) -> Request:
    """A chat call as an SDK makes it."""
    address = running.addresses[wire]
    fields = {
        "content-type": "application/json",
        "accept": "application/json",
        "authorization": "Bearer sk-bench-0000000000000000",
        "user-agent": "bench",
    }
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    path = address.prefix + CHAT_PATH
    return Request(address.port, path, fields | running.headers | named, chat_request() if body is None else body)


def stream(running: Running, wire: Wire = Wire.HTTP, *, chunks: int, gap_ms: int) -> Request:
    """A chat call that is answered in pieces."""
    body = chat_request(is_stream=True)
    return chat(running, wire, body=body, **{STREAM_HEADER: f"{chunks};{gap_ms}", "accept": "text/event-stream"})


def unary(running: Running) -> Request:
    """A gRPC-shaped unary call of 1 kB."""
    address = running.addresses[Wire.H2]
    fields = {"content-type": "application/grpc", "te": "trailers"}
    return Request(address.port, UNARY_PATH, fields | running.headers, grpc_frame(), address.authority)


def grpc(running: Running, path: str) -> Request:
    """A gRPC call of 1 kB messages, with the fields that grpcio sends beside those that gRPC asks for."""
    address = running.addresses[Wire.H2]
    fields = {
        "te": "trailers",
        "content-type": "application/grpc",
        "user-agent": "grpc-python/1.80.0 grpc-c/54.0.0 (linux; chttp2)",
        "grpc-accept-encoding": "identity, deflate, gzip",
    }
    return Request(address.port, path, fields | running.headers, grpc_frame(), address.authority)


def probe(running: Running, request: Request) -> None:
    """Make one call and compare the answer with the upstream's own, byte for byte. Raises NotReadyError."""
    connection = http.client.HTTPConnection("127.0.0.1", request.port, timeout=20)
    try:
        connection.request("POST", request.path, body=request.body, headers=request.headers)
        reply = connection.getresponse()
        body = reply.read()
    except (OSError, http.client.HTTPException) as error:
        raise NotReadyError(f"{running.name}: no answer to a single call: {error!r}") from None
    finally:
        connection.close()
    is_whole = body == chat_reply(USAGE) or running.name == "litellm"  # it words answers anew
    if reply.status != 200 or not is_whole:
        raise NotReadyError(f"{running.name}: answered a single call with {reply.status}: {body[:300]!r}")


def probe_stream(running: Running, request: Request, events: int) -> None:
    """Read one stream and count its events. Raises NotReadyError."""
    connection = http.client.HTTPConnection("127.0.0.1", request.port, timeout=20)
    try:
        connection.request("POST", request.path, body=request.body, headers=request.headers)
        reply = connection.getresponse()
        body = reply.read()
    except (OSError, http.client.HTTPException) as error:
        raise NotReadyError(f"{running.name}: no whole answer to a single stream: {error!r}") from None
    finally:
        connection.close()
    if reply.status != 200 or body.count(b"\n\n") != events or not body.endswith(b"data: [DONE]\n\n"):
        seen = body.count(b"\n\n")
        raise NotReadyError(f"{running.name}: status {reply.status}, {seen} of {events} events: {body[:300]!r}")


def probe_unary(stage: Stage, running: Running, request: Request) -> None:
    """Make unary calls that look at the trailers too, which h2load does not. Raises NotReadyError."""
    seen = stage.own("unary", request, 1, 1, 0.2, seconds=_PROBE_S)
    if not seen.count or seen.errors:
        raise NotReadyError(f"{running.name}: {seen.count} unary calls ended with grpc-status 0, {seen.errors} did not")


def probe_messages(stage: Stage, running: Running, request: Request, sent: int, got: int) -> None:
    """Make gRPC calls and look at every message and the trailers. Raises NotReadyError."""
    seen = stage.own("messages", request, 1, 1, 0.2, sent, got, seconds=_PROBE_S)
    if not seen.count or seen.errors:
        raise NotReadyError(f"{running.name}: {seen.count} messages came back, {seen.errors} streams did not end well")
