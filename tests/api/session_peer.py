"""An agent that speaks the session as its specification says, over a real gRPC connection, frame by frame."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc.aio

from meshd.api.mesh import Mesh
from meshd.api.sessions import SessionService
from meshd.mesh_key import MeshKeys
from meshd.refusal import Refused
from meshd_sdk.v1 import session_pb2 as pb
from meshd_sdk.v1 import session_pb2_grpc

if TYPE_CHECKING:
    from tests.proxy.harness import Mesh as DataPlane

WORK = ("call", "publish", "record")
PATIENCE_S = 20.0
"""Guards against never; no test waits for it."""


class _Servicer(session_pb2_grpc.SessionServiceServicer):
    def __init__(self, service: SessionService) -> None:
        self._service = service

    async def Connect(self, request_iterator: Any, context: Any) -> None:  # noqa: N802 - the protocol's name
        async def send(frame: pb.ConnectResponse) -> None:
            await context.write(frame)

        try:
            await self._service.connect(request_iterator, send, context.peer())
        except Refused as refused:
            trailers = (("x-meshd-reason", refused.reason.value),)
            await context.abort(_CODES[refused.grpc], refused.message, trailing_metadata=trailers)


_CODES = {code.value[0]: code for code in grpc.StatusCode}


class Door:
    """The session service of a data plane, behind a gRPC server of its own."""

    def __init__(self, plane: DataPlane, bus: Any = None) -> None:
        self.plane = plane
        chain = plane.proxy.chain
        keys = MeshKeys(plane.home / "mesh.key")
        self.mesh = Mesh(
            proxy=plane.proxy,
            chain=chain,
            keys=keys,
            ledger=None,
            telemetry=plane.telemetry,
            bus=bus,  # type: ignore[arg-type]
        )
        self.service = SessionService(self.mesh)
        self.port = 0
        self._server: Any = None
        self._channels: list[Any] = []
        self._peers: list[Peer] = []

    async def start(self) -> Door:
        self._server = grpc.aio.server()
        session_pb2_grpc.add_SessionServiceServicer_to_server(_Servicer(self.service), self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        return self

    async def peer(self, name: str, **hello: Any) -> Peer:
        """Open a session, or resume one."""
        peer = await self.stranger()
        await peer.hello(name, **hello)
        return peer

    async def stranger(self) -> Peer:
        """Open a stream on which nothing has been said."""
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{self.port}")
        self._channels.append(channel)
        peer = Peer(channel)
        self._peers.append(peer)
        return peer

    async def close(self) -> None:
        for peer in self._peers:
            peer.break_off()
        for channel in self._channels:
            await channel.close()
        self.service.close_now()
        await self._server.stop(None)
        if self.mesh.bus is not None:
            await self.mesh.bus.close()


def other_work(number: int) -> bytes:
    """Return a payload that says something else for each number; digits alone may be counters."""
    word = "".join("bdfgklmnpr"[int(digit)] + "o" for digit in str(number))
    return b'{"look for": "%s"}' % word.encode()


class Peer:
    """One stream of an agent. It acknowledges what it reads, and gives back the credit of what it has answered."""

    def __init__(self, channel: Any) -> None:
        self.stream = session_pb2_grpc.SessionServiceStub(channel).Connect()
        self.name = ""
        self.seq = 0
        self.received = 0
        self.credit = 0
        self.welcome = pb.Welcome()
        self.sent: list[pb.ConnectRequest] = []
        self._ids = 0

    def next_id(self) -> int:
        self._ids += 1
        return self._ids

    async def hello(
        self, name: str, *, credit: int = 16, session: str = "", received: int = 0, revision: int = 1
    ) -> None:
        self.name, self.received = name, received
        hello = pb.Hello(revision=revision, credit=credit, session=session, received=received, client="test")
        hello.agent.name = name
        await self.stream.write(pb.ConnectRequest(hello=hello))
        frame = await self.read()
        assert frame.WhichOneof("frame") == "welcome", frame
        self.welcome = frame.welcome
        self.credit = self.welcome.credit

    async def send(self, **frame: Any) -> pb.ConnectRequest:
        """Send a frame with the next seq."""
        self.seq += 1
        made = pb.ConnectRequest(seq=self.seq, ack=self.received, **frame)
        self.sent.append(made)
        await self.stream.write(made)
        return made

    async def send_raw(self, frame: pb.ConnectRequest) -> None:
        await self.stream.write(frame)

    async def read(self) -> pb.ConnectResponse:
        """Return the next frame, whatever it is. Raises EndedError where the sidecar has ended the stream."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                frame = await self.stream.read()
        except grpc.aio.AioRpcError as error:
            raise EndedError(error.code(), error.details() or "") from None
        if frame is grpc.aio.EOF:
            raise EOFError
        if frame.seq:
            assert frame.seq == self.received + 1, "a frame was lost or came twice"
            self.received = frame.seq
        if frame.WhichOneof("frame") == "credit":
            self.credit += frame.credit.frames
        return frame

    async def next(self, kind: str) -> Any:
        """Return the next frame of a kind; others but credit and acknowledgements are unexpected."""
        while True:
            frame = await self.read()
            found = frame.WhichOneof("frame")
            if found == kind:
                return getattr(frame, kind)
            assert found in (None, "credit"), frame

    async def call(self, target: str, operation: str = "", payload: bytes | None = None, **fields: Any) -> int:
        """Call; without a payload it asks for something else each time, as work does that is no loop."""
        id = self.next_id()
        payload = other_work(id) if payload is None else payload
        await self.send(call=pb.Call(id=id, target=target, operation=operation, payload=payload, **fields))
        return id

    async def ask(self, target: str, operation: str = "", payload: bytes | None = None, **fields: Any) -> Reply:
        """Call and return the whole reply."""
        id = await self.call(target, operation, payload, **fields)
        return await self.reply(id)

    async def reply(self, id: int) -> Reply:
        pieces: list[pb.CallReply] = []
        while not pieces or pieces[-1].has_more:
            piece = await self.next("reply")
            assert piece.id == id
            pieces.append(piece)
        return Reply(pieces)

    async def answer(self, delivery: pb.CallDelivery, payload: bytes = b"", **fields: Any) -> None:
        await self.send(reply=pb.CallReply(id=delivery.id, payload=payload, **fields))
        if not fields.get("has_more"):
            await self.send_raw(pb.ConnectRequest(credit=pb.Credit(frames=1)))

    async def ended(self) -> EndedError:
        """Read until the stream has ended, and return its status."""
        try:
            while True:
                await self.read()
        except EndedError as error:
            return error

    def break_off(self) -> None:
        """Let the connection break."""
        self.stream.cancel()


class Reply:
    """A CallReply with all of its pieces."""

    def __init__(self, pieces: list[pb.CallReply]) -> None:
        self.pieces = pieces
        self.payload = b"".join(piece.payload for piece in pieces)
        self.status = pieces[-1].status
        self.content_type = pieces[0].content_type
        self.call_id = pieces[0].call_id


class EndedError(Exception):
    """The sidecar has ended the stream."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message
