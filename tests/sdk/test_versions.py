"""An SDK one version older and one newer than its sidecar: fields and frames that the other side does not know.

A relay stands between the two and adds to the bytes of every frame what a later version might say.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest

from meshd_sdk import Agent, CallFailed, Ctx
from meshd_sdk.v1 import session_pb2 as pb
from tests.sdk.conftest import soon

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    Make = Callable[..., Agent]

CONNECT = "/meshd.v1.SessionService/Connect"
UNKNOWN_FIELDS = b"\xc2\x3e\x05later" + b"\xc8\x3e\x07" + b"\xd1\x3e12345678" + b"\xdd\x3e1234"
"""Field 1000 as text, 1001 as a number, 1002 and 1003 as fixed ones."""
UNKNOWN_FRAME = b"\xe2\x3e\x02hi"
"""A frame of a kind that nobody knows, as field 1004 of the oneof's message, with no `seq`."""


class Relay:
    """A gRPC server that passes a session on, and adds to it."""

    def __init__(self, api: str, *, to_sidecar: bool, to_agent: bool) -> None:
        self._to_sidecar, self._to_agent = to_sidecar, to_agent
        self._channel = grpc.aio.insecure_channel(api)
        self._server = grpc.aio.server()
        self.count = 0
        self.revisions: list[int] = []

    async def start(self) -> str:
        handler = grpc.stream_stream_rpc_method_handler(self._connect)
        service = grpc.method_handlers_generic_handler("meshd.v1.SessionService", {"Connect": handler})
        self._server.add_generic_rpc_handlers((service,))
        port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        return f"127.0.0.1:{port}"

    async def close(self) -> None:
        await self._server.stop(None)
        await self._channel.close()

    async def _connect(self, requests: AsyncIterator[bytes], context: Any) -> None:
        stream: Any = self._channel.stream_stream(CONNECT)()

        async def up() -> None:
            async for request in requests:
                await self._pass_up(stream, request)
            await stream.done_writing()

        passing = asyncio.create_task(up())
        try:
            while (response := await stream.read()) is not grpc.aio.EOF:
                if self._to_agent:
                    self.count += 1
                    await context.write(response + UNKNOWN_FIELDS)
                    if self.count > 1:  # nothing comes before Welcome
                        await context.write(UNKNOWN_FRAME)
                else:
                    await context.write(response)
        finally:
            passing.cancel()

    async def _pass_up(self, stream: Any, request: bytes) -> None:
        if not self._to_sidecar:
            await stream.write(request)
            return
        frame = pb.ConnectRequest.FromString(request)
        if frame.HasField("hello"):
            frame.hello.revision = 2
            self.revisions.append(frame.hello.revision)
        self.count += 1
        await stream.write(frame.SerializeToString() + UNKNOWN_FIELDS)
        await stream.write(UNKNOWN_FRAME)


@pytest.mark.parametrize(("to_sidecar", "to_agent"), [(True, False), (False, True), (True, True)])
async def test_what_the_other_side_does_not_know_it_passes_over(
    make: Make, api: str, to_sidecar: bool, to_agent: bool
) -> None:
    relay = Relay(api, to_sidecar=to_sidecar, to_agent=to_agent)
    name = f"skew-{to_sidecar:d}{to_agent:d}"
    agent, seen = make(name, api=await relay.start()), []

    @agent.tool
    async def echo(ctx: Ctx, text: str) -> str:
        await ctx.note(text)
        return text

    @agent.on(f"{name}.event")
    async def handle(event: Any) -> None:
        seen.append(event.data)

    async with agent:
        for at in range(20):
            assert await agent.ctx.call(f"{name}/echo", {"text": str(at)}) == str(at)
            await agent.ctx.publish(f"{name}.event", at)
        await soon(lambda: len(seen) == 20)
        assert agent._session is not None
        assert agent._session.era == 1
    assert relay.count > 60
    assert relay.revisions == ([2] if to_sidecar else [])
    await relay.close()


async def test_a_sidecar_of_an_older_revision_that_says_little_is_enough(make: Make) -> None:
    """Welcome with nothing but what revision 1 must say: no sizes, no window, no server."""

    async def connect(requests: AsyncIterator[bytes], context: Any) -> None:
        async for request in requests:
            frame = pb.ConnectRequest.FromString(request)
            if frame.HasField("hello"):
                welcome = pb.Welcome(revision=1, session="s", credit=1)
                await context.write(pb.ConnectResponse(welcome=welcome).SerializeToString())
            elif frame.HasField("publish"):
                reply = pb.PublishReply(id=frame.publish.id)
                await context.write(pb.ConnectResponse(seq=1, ack=frame.seq, published=reply).SerializeToString())
            elif frame.HasField("goodbye"):
                return

    server = grpc.aio.server()
    handler = grpc.stream_stream_rpc_method_handler(connect)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("meshd.v1.SessionService", {"Connect": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with make("modest", api=f"127.0.0.1:{port}") as agent:
        assert (await agent.ctx.publish("x", 1)).id == ""
        with pytest.raises(CallFailed, match="does not know GetBalance: it is older than this SDK") as caught:
            await agent.ctx.balance()
        assert caught.value.code == "UNIMPLEMENTED"
    await server.stop(None)


@pytest.mark.parametrize(
    "frames",
    [
        [pb.ConnectResponse(credit=pb.Credit(frames=1))],
        [pb.ConnectResponse(welcome=pb.Welcome())],
        [pb.ConnectResponse()],
        [],
    ],
    ids=["credit first", "no session", "empty", "nothing"],
)
async def test_a_first_frame_that_is_no_welcome_begins_nothing(make: Make, frames: list[Any]) -> None:
    from meshd_sdk.errors import MeshError

    async def connect(requests: AsyncIterator[bytes], context: Any) -> None:
        for frame in frames:
            await context.write(frame.SerializeToString())

    server = grpc.aio.server()
    handler = grpc.stream_stream_rpc_method_handler(connect)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("meshd.v1.SessionService", {"Connect": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    with pytest.raises(MeshError):
        async with make("nobody", api=f"127.0.0.1:{port}"):
            pass
    await server.stop(None)


@pytest.mark.parametrize(
    "garbage",
    [b"\xff\xff", pb.ConnectResponse(seq=99).SerializeToString(), pb.ConnectResponse(ack=99).SerializeToString()],
    ids=["no message", "a gap", "an ack of nothing"],
)
async def test_garbage_on_the_stream_makes_it_connect_anew_and_lose_nothing(
    make: Make, api: str, garbage: bytes
) -> None:
    relay = Garbling(api, garbage)
    agent = make(f"garbled-{len(garbage)}", api=await relay.start())

    @agent.serve
    async def echo(payload: int) -> int:
        return payload

    async with agent:
        target = agent.name
        found = await asyncio.gather(*[agent.ctx.call(target, at) for at in range(60)])
        assert found == list(range(60))
    assert relay.streams > 1
    await relay.close()


class Garbling(Relay):
    """Says something that is none, once on each of the first three streams."""

    def __init__(self, api: str, garbage: bytes) -> None:
        super().__init__(api, to_sidecar=False, to_agent=False)
        self._garbage = garbage
        self.streams = 0

    async def _connect(self, requests: AsyncIterator[bytes], context: Any) -> None:
        self.streams += 1
        stream: Any = self._channel.stream_stream(CONNECT)()

        async def up() -> None:
            async for request in requests:
                await stream.write(request)
            await stream.done_writing()

        passing, count = asyncio.create_task(up()), 0
        try:
            while (response := await stream.read()) is not grpc.aio.EOF:
                await context.write(response)
                count += 1
                if count == 6 and self.streams <= 3:
                    await context.write(self._garbage)
        finally:
            passing.cancel()
            stream.cancel()


NONSENSE = [
    pb.ConnectResponse(reply=pb.CallReply(id=999, payload=b"x")),
    pb.ConnectResponse(reply=pb.CallReply()),
    pb.ConnectResponse(published=pb.PublishReply(id=999)),
    pb.ConnectResponse(subscribed=pb.SubscribeReply(id=999)),
    pb.ConnectResponse(recorded=pb.RecordReply(id=999)),
    pb.ConnectResponse(cancel=pb.CancelCall(id=999)),
    pb.ConnectResponse(event=pb.EventDelivery(id=7, subscription=999)),
    pb.ConnectResponse(event=pb.EventDelivery()),
    pb.ConnectResponse(call=pb.CallDelivery()),
    pb.ConnectResponse(call=pb.CallDelivery(id=8, operation="\x00" * 999, payload=b"\xff", content_type="\x00;;")),
    pb.ConnectResponse(credit=pb.Credit(frames=2**32 - 1)),
    pb.ConnectResponse(welcome=pb.Welcome(session="another")),
    pb.ConnectResponse(seq=0, ack=0),
]


async def test_frames_that_make_no_sense_end_nothing(make: Make) -> None:
    said: list[pb.ConnectRequest] = []

    async def connect(requests: AsyncIterator[bytes], context: Any) -> None:
        seq = 0
        async for request in requests:
            frame = pb.ConnectRequest.FromString(request)
            said.append(frame)
            if frame.HasField("hello"):
                welcome = pb.Welcome(revision=1, session="s", credit=4)
                await context.write(pb.ConnectResponse(welcome=welcome).SerializeToString())
                for one in NONSENSE:
                    sent = pb.ConnectResponse()
                    sent.CopyFrom(one)
                    seq += 1
                    sent.seq = seq
                    await context.write(sent.SerializeToString())
            elif frame.HasField("publish"):
                seq += 1
                reply = pb.PublishReply(id=frame.publish.id)
                await context.write(pb.ConnectResponse(seq=seq, published=reply).SerializeToString())
                await context.write(pb.ConnectResponse(credit=pb.Credit(frames=1)).SerializeToString())
            elif frame.HasField("goodbye"):
                return

    server = grpc.aio.server()
    handler = grpc.stream_stream_rpc_method_handler(connect)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("meshd.v1.SessionService", {"Connect": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with make("steady", api=f"127.0.0.1:{port}", credit=4) as agent:
        for _ in range(8):
            await agent.ctx.publish("x", 1)
        assert agent._session is not None
        assert agent._session.era == 1
        settled = await soon(lambda: [one.settle for one in said if one.HasField("settle")][1:])
        assert settled[0].verdict == 2  # RETRY: it is for somebody, but not for this agent
        answered = await soon(lambda: [one.reply for one in said if one.HasField("reply") and one.reply.id == 8])
        assert answered[0].status.code == 5
        await soon(lambda: sum(one.credit.frames for one in said) == 4)
    await server.stop(None)
