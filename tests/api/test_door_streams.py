"""Streams through the door on both faces, many at once, clients that never read, and the drain."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from meshd.api import json_http
from meshd.api.services import SERVICES
from meshd.api.splice import End
from meshd.refusal import Reason, Refused
from meshd_sdk.v1 import session_pb2
from tests.api.house import house, until

if TYPE_CHECKING:
    pass

pytestmark = pytest.mark.both_loops

OPEN = "/meshd.v1.ContextService/Open"


class Echo:
    """A stream that answers each Hello with a Welcome; one named `refuse` is refused."""

    def __init__(self, mesh: Any) -> None:
        self.mesh = mesh

    async def connect(self, frames: Any, send: Any, peer: str) -> None:
        async for frame in frames:
            if frame.hello.session == "refuse":
                raise Refused(Reason.MALFORMED, "hello.session must be another.")
            await send(session_pb2.ConnectResponse(welcome=session_pb2.Welcome(session=frame.hello.session)))


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, ...]:
    from meshd.api.services import Service

    return (*SERVICES[:1], Service("meshd.v1.SessionService", "meshd_sdk.v1.session_pb2", __name__, "Echo"))


CONNECT = "/meshd.v1.SessionService/Connect"


def hello(session: str) -> session_pb2.ConnectRequest:
    return session_pb2.ConnectRequest(hello=session_pb2.Hello(session=session))


async def test_a_stream_over_grpc(tmp_path: Path, streams: Any) -> None:
    async with house(tmp_path, services=streams) as one:
        call = one.channel.stream_stream(
            CONNECT,
            request_serializer=session_pb2.ConnectRequest.SerializeToString,
            response_deserializer=session_pb2.ConnectResponse.FromString,
        )()
        await call.write(hello("a"))
        assert (await call.read()).welcome.session == "a"
        await call.write(hello("refuse"))
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await call.read()
        assert ended.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_stream_over_a_websocket(tmp_path: Path, streams: Any) -> None:
    async with house(tmp_path, services=streams) as one, aiohttp.ClientSession() as session:
        url = f"http://{one.address}{CONNECT}"
        async with session.ws_connect(url) as stream:
            await stream.send_str('{"hello": {"session": "a"}, "fieldOfTomorrow": 1}')
            assert (await stream.receive_json())["welcome"]["session"] == "a"
            await stream.send_str("{")
            assert (await stream.receive_json())["error"]["code"] == "invalid_argument"
            assert (await stream.receive()).type is aiohttp.WSMsgType.CLOSE
        async with session.ws_connect(url) as stream:
            await stream.send_bytes(b"\x00")
            assert (await stream.receive_json())["error"]["code"] == "invalid_argument"
        async with session.get(url) as reply:
            assert reply.status == 426
        async with session.post(url, json={}) as reply:
            assert reply.status == 405
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await session.ws_connect(url, origin="https://evil.example")
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await session.ws_connect(f"http://{one.address}{OPEN}")


# ------------------------------------------------------------------ many, and slow ones


async def test_many_at_once_get_each_their_own(tmp_path: Path) -> None:
    async with house(tmp_path) as one:
        await one.open()
        asked = [one.open(f"w{number}") for number in range(200)]
        posted = [one.ask("ContextService/Open", {"workflow": f"p{number}"}) for number in range(50)]
        opened = await asyncio.gather(*asked)
        answered = await asyncio.gather(*posted)
        assert [context.workflow for context in opened] == [f"w{number}" for number in range(200)]
        assert [said["context"]["workflow"] for _, said in answered] == [f"p{number}" for number in range(50)]


async def test_a_client_that_never_reads_holds_a_bounded_amount(tmp_path: Path, streams: Any) -> None:
    """It floods a stream that echoes, and takes nothing: the flood stands still, and others are served."""
    async with house(tmp_path, services=streams) as one:
        await one.open()
        before = rss_bytes()
        channel = grpc.aio.insecure_channel(one.address, options=(("grpc.use_local_subchannel_pool", 1),))
        call = channel.stream_stream(CONNECT)()
        body = hello("x" * 60_000).SerializeToString()
        written = asyncio.ensure_future(flood(call, body))
        held = -1
        # It stands still where a second look finds no more.
        while held != (held := written_bytes(one)):
            await asyncio.sleep(0.2)
        assert not written.done()
        assert held < 2**20
        assert rss_bytes() - before < 64 * 2**20
        assert (await one.open()).workflow == "w"
        call.cancel()
        written.cancel()
        await asyncio.gather(written, return_exceptions=True)
        await channel.close(grace=None)
        assert (await one.open()).workflow == "w"


async def test_an_answer_that_is_never_read_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_http, "WRITE_TIMEOUT_S", 0.2)
    async with house(tmp_path) as one:
        token = (await one.open()).token
        entries = [{"id": f"{at}", "began": "2026-11-26T09:00:00Z", "note": {"text": "x" * 4096}} for at in range(240)]
        assert (await one.ask("TraceService/Record", {"token": token, "entries": entries}))[0] == 200
        body = json.dumps({"token": token, "entriesMax": 1000}).encode()
        head = f"POST /meshd.v1.TraceService/List HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n"
        silent = socket.socket(socket.AF_UNIX)
        silent.connect(str(one.door.path))
        silent.sendall(head.encode() + b"content-type: application/json\r\n\r\n" + body)
        http = one.door._http
        await until(lambda: http.connections)
        await until(lambda: not http.connections)
        silent.close()


async def flood(call: Any, body: bytes) -> None:
    for _ in range(10_000):
        await call.write(body)


def written_bytes(one: Any) -> int:
    """What splices hold for either side."""
    ends = [end for end in one.door.connections if isinstance(end, End)]
    ends += [end.other for end in ends if end.other is not None]
    return sum(end.transport.get_write_buffer_size() for end in ends)


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# ------------------------------------------------------------------ the end


async def test_a_drain_lets_what_runs_end_and_takes_nothing_more(tmp_path: Path, streams: Any) -> None:
    async with house(tmp_path, services=streams) as one:
        call = one.channel.stream_stream(
            CONNECT,
            request_serializer=session_pb2.ConnectRequest.SerializeToString,
            response_deserializer=session_pb2.ConnectResponse.FromString,
        )()
        await call.write(hello("a"))
        await call.read()
        watch = health_pb2_grpc.HealthStub(one.channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == 1
        draining = asyncio.ensure_future(one.door.drain(60.0))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        await call.write(hello("b"))
        assert (await call.read()).welcome.session == "b"
        assert not draining.done()
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        await draining
        with pytest.raises(OSError):
            await one.connect()


async def test_a_drain_lets_a_websocket_end(tmp_path: Path, streams: Any) -> None:
    async with house(tmp_path, services=streams) as one, aiohttp.ClientSession() as session:
        async with session.ws_connect(f"http://{one.address}{CONNECT}") as stream:
            await stream.send_str('{"hello": {"session": "a"}}')
            await stream.receive_json()
            draining = asyncio.ensure_future(one.door.drain(60.0))
            await stream.send_str('{"hello": {"session": "b"}}')
            assert (await stream.receive_json())["welcome"]["session"] == "b"
            assert not draining.done()
        await draining


async def test_a_drain_ends_in_time_whoever_stays(tmp_path: Path, streams: Any) -> None:
    async with house(tmp_path, services=streams) as one:
        call = one.channel.stream_stream(CONNECT)()
        await call.write(hello("a").SerializeToString())
        await call.read()
        await one.door.drain(0.05)
        ended = await call.code()
        assert ended in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


async def test_requests_under_way_survive_a_drain(tmp_path: Path) -> None:
    async with house(tmp_path) as one:
        await one.open()
        asked = [asyncio.ensure_future(one.open(f"w{number}")) for number in range(100)]
        await asyncio.sleep(0)
        await one.door.drain(30.0)
        ended = await asyncio.gather(*asked, return_exceptions=True)
        answered = [one for one in ended if not isinstance(one, BaseException)]
        others = [one for one in ended if isinstance(one, BaseException)]
        assert len(answered) + len(others) == 100
        for error in others:
            assert isinstance(error, grpc.aio.AioRpcError)
            # It was not begun: a client may ask another sidecar.
            assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


async def test_while_draining_http_is_told_so(tmp_path: Path) -> None:
    async with house(tmp_path) as one:
        one.mesh.proxy.is_draining = True
        status, said = await one.ask("ContextService/Open", {})
        assert (status, said["code"]) == (503, "unavailable")
        assert said["details"][0]["debug"]["reason"] == "DRAINING"


def held(one: Any, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """What lets the door load its HTTP."""
    may, load = threading.Event(), one.door._load_http
    monkeypatch.setattr(one.door._http, "_load", lambda: (may.wait(60), load())[1])
    return may


async def test_a_drain_waits_for_who_came_before_http_was_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house(tmp_path) as one:
        may = held(one, monkeypatch)
        reader, writer = await one.connect()
        writer.write(b"POST %b HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n" % OPEN.encode())
        writer.write(b"content-length: 2\r\nconnection: close\r\n\r\n{}")
        await until(lambda: one.door._http._tasks)
        draining = asyncio.ensure_future(one.door.drain(30.0))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not draining.done()
        may.set()
        await draining
        await one.door.close()
        assert (await asyncio.wait_for(reader.read(), 60))[9:12] == b"200"
        writer.close()


async def test_a_drain_ends_in_time_whatever_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with house(tmp_path) as one:
        may = held(one, monkeypatch)
        _, writer = await one.connect()
        writer.write(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
        await until(lambda: one.door._http._tasks)
        await asyncio.wait_for(one.door.drain(0.05), 20)
        may.set()
        writer.close()
