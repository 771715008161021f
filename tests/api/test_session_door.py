"""Sessions through the API's own door: over gRPC, as JSON in a WebSocket, beside one another, and in a whole daemon."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import aiohttp
import grpc
import pytest

from meshd.api import session_frames as frames
from meshd.trace.texts import SUFFIX
from meshd_sdk.v1 import session_pb2 as pb
from meshd_sdk.v1 import trace_pb2, trace_pb2_grpc
from tests.api.house import house
from tests.api.session_peer import EndedError, Peer

if TYPE_CHECKING:
    from pathlib import Path

CONNECT = "/meshd.v1.SessionService/Connect"
ALONE = "agent: manager\nupstreams: {}\n"


async def test_json_in_a_websocket_calls_an_agent_over_grpc(tmp_path: Path) -> None:
    async with house(tmp_path, ALONE) as one, aiohttp.ClientSession() as http:
        researcher = Peer(one.channel)
        await researcher.hello("researcher")
        async with http.ws_connect(f"http://{one.address}{CONNECT}") as socket:
            await socket.send_json({"hello": {"revision": 1, "credit": 4, "agent": {"name": "manager"}}})
            welcome = (await socket.receive_json())["welcome"]
            assert welcome["credit"] == frames.CREDIT
            call = {"id": "1", "target": "researcher", "operation": "search", "payload": "e30="}
            await socket.send_json({"seq": "1", "call": call, "aFrameOfTomorrow": {}})
            await researcher.answer(await researcher.next("call"), b"[]")
            reply = (await socket.receive_json())["reply"]
            assert (reply["id"], reply["payload"]) == ("1", "W10=")


async def test_a_websocket_that_says_nonsense_is_told_and_ended(tmp_path: Path) -> None:
    async with house(tmp_path, ALONE) as one, aiohttp.ClientSession() as http:
        for first, field in (({"hello": {"revision": 1}}, "hello.agent.name"), ({"seq": "1"}, "hello")):
            async with http.ws_connect(f"http://{one.address}{CONNECT}") as socket:
                await socket.send_json(first)
                error = (await socket.receive_json())["error"]
                assert error["code"] == "invalid_argument"
                assert error["message"].startswith(field)
        async with http.ws_connect(f"http://{one.address}{CONNECT}") as socket:
            await socket.send_json({"hello": {"revision": 1, "agent": {"name": "a"}}})
            await socket.receive_json()
            await socket.send_str("{not json")
            assert (await socket.receive_json())["error"]["code"] == "invalid_argument"


async def test_bytes_that_are_no_frame_end_the_stream_with_words(tmp_path: Path) -> None:
    async with house(tmp_path, ALONE) as one:
        stream = one.channel.stream_stream(CONNECT)()
        await stream.write(pb.ConnectRequest(hello=pb.Hello(revision=1, agent={"name": "a"})).SerializeToString())
        await stream.read()
        await stream.write(b"\xff\xff\xff")
        assert await stream.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_end_carries_its_reason(tmp_path: Path) -> None:
    async with house(tmp_path, ALONE) as one:
        peer = Peer(one.channel)
        with pytest.raises(EndedError):
            await peer.hello("w")
        details = dict(await peer.stream.trailing_metadata())
        assert b"MALFORMED" in details["grpc-status-details-bin"]
        assert details["grpc-retry-pushback-ms"] == "-1"


async def test_what_a_session_records_is_in_the_workflows_trace(tmp_path: Path) -> None:
    async with house(tmp_path, ALONE) as one:
        context = await one.open("w", agent="")
        peer = Peer(one.channel)
        await peer.hello("manager")
        entry = trace_pb2.TraceEntry(id="e1", step=trace_pb2.ReasoningStep(name="plan"))
        entry.began.GetCurrentTime()
        request = trace_pb2.RecordRequest(token=context.token, entries=[entry])
        await peer.send(record=pb.Record(id=7, request=request))
        reply = await peer.next("recorded")
        assert (reply.id, reply.status.code) == (7, 0)
        stub = trace_pb2_grpc.TraceServiceStub(one.channel)
        (found,) = (await stub.List(trace_pb2.ListRequest(token=context.token))).entries
        assert found.step.name == "plan"
        for id, token in ((8, ""), (9, "nonsense")):
            request = trace_pb2.RecordRequest(token=token, entries=[entry])
            await peer.send(record=pb.Record(id=id, request=request))
            assert (await peer.next("recorded")).status.reason == "context_invalid"


async def test_what_a_session_records_and_is_not_kept_has_a_status(tmp_path: Path) -> None:
    async with house(tmp_path, ALONE) as one:
        context = await one.open("w", agent="")
        peer = Peer(one.channel)
        await peer.hello("manager")
        one.trace.log.path.with_suffix(SUFFIX).symlink_to("/dev/full")
        entry = trace_pb2.TraceEntry(id="e1", step=trace_pb2.ReasoningStep(name="plan"))
        entry.began.GetCurrentTime()
        request = trace_pb2.RecordRequest(token=context.token, entries=[entry])
        await peer.send(record=pb.Record(id=7, request=request))
        status = (await peer.next("recorded")).status
        assert (status.reason, "the disk is full" in status.message) == ("store_unavailable", True)


async def test_another_agents_token_records_nothing(tmp_path: Path) -> None:
    async with house(tmp_path, ALONE) as one:
        peer = Peer(one.channel)
        await peer.hello("other")
        context = await one.open("w")
        await peer.send(record=pb.Record(id=1, request=trace_pb2.RecordRequest(token=context.token)))
        assert (await peer.next("recorded")).status.reason == "context_invalid"


@pytest.mark.timeout(60)
async def test_a_daemon_drains_under_a_live_session_and_the_next_one_knows_it_not(tmp_path: Path) -> None:
    first, port = await daemon(tmp_path)
    channel = grpc.aio.insecure_channel(port)
    a, b = Peer(channel), Peer(channel)
    await a.hello("a")
    await b.hello("b")
    id = await a.call("b")
    delivery = await b.next("call")
    first.send_signal(signal.SIGTERM)
    assert (await a.next("drain")).grace.seconds == 30
    await b.next("drain")
    await b.answer(delivery, b"finished")
    assert (await a.reply(id)).payload == b"finished"
    ended = await a.ended()
    assert ended.code is grpc.StatusCode.UNAVAILABLE
    assert await first.wait() == 0
    await channel.close()
    second, port = await daemon(tmp_path)
    async with grpc.aio.insecure_channel(port, (("grpc.use_local_subchannel_pool", 1),)) as channel:
        again = Peer(channel)
        await again.hello("a", session=a.welcome.session, received=a.received)
        assert not again.welcome.is_resumed
        again.break_off()
    second.terminate()
    assert await second.wait() == 0


async def daemon(home: Path) -> tuple[asyncio.subprocess.Process, str]:
    """Start a daemon, and return it with the address of its unix socket."""
    (home / "policy.yaml").write_text(ALONE)
    ports = dict.fromkeys(("MESHD_LISTEN", "MESHD_ADMIN", "MESHD_METRICS", "MESHD_API", "MESHD_INBOUND"), "127.0.0.1:0")
    environment: dict[str, Any] = {**os.environ, **ports, "MESHD_HOME": str(home), "MESHD_BUS": "memory:"}
    command = (sys.executable, "-m", "meshd.cli", "run", "--policy", str(home / "policy.yaml"), "--app", "session")
    process = await asyncio.create_subprocess_exec(
        *command, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    path = home / "api.sock"
    assert process.stdout is not None
    said = b""
    while b"Metrics" not in said:
        line = await process.stdout.readline()
        assert line, said.decode()
        said += line
    assert path.exists(), said.decode()
    return process, f"unix:{path}"
