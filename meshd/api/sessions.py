"""SessionService: all sessions of this sidecar, and the two loops that hold one over a stream.

Whatever the stream is (gRPC, or JSON in a WebSocket), `connect` reads frames from it and writes frames to it. One
task reads and one writes; a frame costs no task of its own, but what must wait for the bus.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from meshd.api import session_frames as frames
from meshd.api.session import Session, Wire
from meshd.policy.upstreams import session_upstream
from meshd.refusal import Reason, Refused
from meshd.view import meshd_version
from meshd_sdk.v1 import session_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from meshd.api.mesh import Mesh

ID_BYTES: Final = 16
"""Of a session's id, which is a secret: 128 random bits."""
log = logging.getLogger("meshd.api")


class SessionService:
    """Every session. Stands among the proxy's callers, since it shares their sweep and their drain."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._by_digest: dict[bytes, Session] = {}
        """By SHA-256 of the id: how long a look-up takes says nothing of the ids there are."""
        self._by_name: dict[str, set[Session]] = {}
        self._is_draining = False

    # ------------------------------------------------------------------ one stream

    async def connect(
        self,
        received: AsyncIterator[pb.ConnectRequest],
        send: Callable[[pb.ConnectResponse], Awaitable[None]],
        peer: str,
    ) -> None:
        """Hold a session over one stream: `received` yields the agent's frames, `send` writes ours.

        Returns where the agent has ended the stream, and raises Refused where we do.
        """
        try:
            async with asyncio.timeout(frames.HELLO_S):
                first = await anext(received, None)
        except TimeoutError:
            raise frames.malformed("hello", f"it did not come within {frames.HELLO_S:g} s") from None
        if first is None:
            return
        # Not before: a service is made in a thread.
        self._mesh.proxy.sessions.add(self)
        wire = Wire()
        session = self._open(first, wire, peer)
        reader = asyncio.create_task(self._read(session, wire, received))
        writer = asyncio.create_task(self._write(session, wire, send))
        try:
            why = await wire.ended
        finally:
            for task in (reader, writer):
                task.cancel()
            if session.wire is wire:
                session.leave(None)
            # Bounded: a read of grpc.aio's may miss its cancellation where the stream is cancelled in the same turn.
            done, _ = await asyncio.wait((reader, writer), timeout=frames.HELLO_S)
            for task in done:
                if not task.cancelled():
                    task.exception()
        if why is not None:
            raise why

    async def _read(self, session: Session, wire: Wire, received: AsyncIterator[pb.ConnectRequest]) -> None:
        proxy = self._mesh.proxy
        try:
            async for frame in received:
                if wire.ended.done():
                    return
                proxy.enter()
                try:
                    session.receive(frame)
                except Refused as refused:
                    # What was got wrong cannot be put right by sending it again, so the session is not kept for that.
                    session.stop(refused)
                    wire.end(refused)
                    return
                finally:
                    proxy.leave()
            wire.end(None)
        except Refused as refused:
            # What came was no frame: said by whoever reads the stream's bytes.
            session.stop(refused)
            wire.end(refused)
        except Exception as error:  # noqa: BLE001 - the stream must end, and the session with it may be resumed
            log.debug("a stream of %s broke: %s", session.name, error)
            wire.end(None)

    @staticmethod
    async def _write(session: Session, wire: Wire, send: Callable[[pb.ConnectResponse], Awaitable[None]]) -> None:
        try:
            while session.wire is wire:
                frame = session.next_frame()
                wire.is_writing = frame is not None
                if frame is None:
                    wire.wake.clear()
                    await wire.wake.wait()
                else:
                    if frame.HasField("event"):
                        await session.events.look_again(frame)
                        if session.wire is not wire:
                            return  # it goes out over the next, as all that is kept does
                    await send(frame)
        except Exception as error:  # noqa: BLE001 - as above
            log.debug("a stream of %s broke: %s", session.name, error)
            wire.end(None)

    # ------------------------------------------------------------------ Hello

    def _open(self, first: pb.ConnectRequest, wire: Wire, peer: str) -> Session:
        if first.WhichOneof("frame") != "hello":
            raise frames.malformed("hello", "it must be the first frame of a stream")
        hello = first.hello
        frames.check_agent(hello.agent)
        if not hello.revision:
            raise frames.malformed("hello.revision", "it is missing; this is revision 1")
        if self._is_draining or self._mesh.proxy.is_draining:
            raise _draining()
        session = self._found(hello.session) if hello.session else None
        is_resumed = session is not None
        if session is None:
            session = self._new(hello, peer)
        elif session.name != hello.agent.name:
            raise frames.malformed("hello.agent.name", "the session was opened by an agent of another name")
        welcome = self._welcome(session, hello, is_resumed=is_resumed)
        proxy = self._mesh.proxy
        proxy.enter()
        try:
            session.join(wire, pb.ConnectResponse(welcome=welcome), hello)
        finally:
            proxy.leave()
        if session.is_callable and self._mesh.discovering is not None:
            self._mesh.discovering.agent_told(session.agent)
        log.info(
            "the agent %s has %s a session (%s)",
            session.name,
            "resumed" if is_resumed else "opened",
            hello.client[:64] or "no client named",
        )
        return session

    def _welcome(self, session: Session, hello: pb.Hello, *, is_resumed: bool) -> pb.Welcome:
        welcome = pb.Welcome(
            revision=min(hello.revision, frames.REVISION),
            session=session.id,
            is_resumed=is_resumed,
            received=session.received,
            credit=session.credit_left,
            frame_bytes_max=frames.FRAME_BYTES_MAX,
            resume_window=frames.duration(frames.RESUME_WINDOW_S),
            server=f"meshd/{meshd_version()}",
        )
        if not session.is_callable:
            welcome.notices.append(
                f"Calls to {session.name} go to an address of the policy: this session is called by nobody. Choose "
                "another name, or write `session: true` in the place of its url."
            )
        return welcome

    def _found(self, id: str) -> Session | None:
        encoded = id.encode("utf-8", "replace")
        session = self._by_digest.get(sha256(encoded).digest())
        if session is None or not hmac.compare_digest(encoded, session.id.encode()):
            return None
        return session

    def _new(self, hello: pb.Hello, peer: str) -> Session:
        name = hello.agent.name
        if len(self._by_digest) >= frames.SESSIONS_MAX:
            raise frames.too_much(f"{frames.SESSIONS_MAX} sessions are open with this sidecar, and it takes no more")
        if name not in self._by_name and len(self._by_name) >= frames.AGENTS_MAX:
            raise frames.too_much(f"{frames.AGENTS_MAX} agents have a session with this sidecar, and it takes no more")
        session = Session(self._mesh, os.urandom(ID_BYTES).hex(), hello, peer, self._ended)
        session.is_callable = self._mesh.proxy.admit_guest(session_upstream(name))
        self._by_digest[sha256(session.id.encode()).digest()] = session
        self._by_name.setdefault(name, set()).add(session)
        return session

    def _ended(self, session: Session) -> None:
        self._by_digest.pop(sha256(session.id.encode()).digest(), None)
        of_name = self._by_name.get(session.name)
        if of_name is not None:
            of_name.discard(session)
            if not of_name:
                del self._by_name[session.name]
                self._mesh.proxy.dismiss_guest(session.name)
                if session.is_callable and self._mesh.discovering is not None:
                    self._mesh.discovering.agent_gone(session.name)

    # ------------------------------------------------------------------ as one of the proxy's callers

    def expire(self, now_s: float) -> None:
        """Called about twice a second: acknowledge what came, and forget who has been away for too long.

        While the sidecar drains, a session ends when nothing is under way in it.
        """
        for session in tuple(self._by_digest.values()):
            session.say_received()
            if self._is_draining and session.is_idle:
                session.stop(_draining())
            if session.wire is None and now_s - session.parted_s > frames.RESUME_WINDOW_S:
                session.stop(None)

    def drain(self) -> None:
        """Say that the end is near: what is under way goes on, and nothing new begins."""
        self._is_draining = True
        grace_s = self._mesh.policy.limits.drain_s
        for session in tuple(self._by_digest.values()):
            session.put_unkept(pb.ConnectResponse(drain=pb.Drain(grace=frames.duration(grace_s))))

    def close_now(self) -> None:
        """End every session."""
        for session in tuple(self._by_digest.values()):
            session.stop(_draining())
        self._mesh.proxy.sessions.discard(self)

    @property
    def count(self) -> int:
        """How many sessions there are, broken ones included."""
        return len(self._by_digest)


def _draining() -> Refused:
    message = "This sidecar is shutting down: connect again."
    return frames.ended(frames.UNAVAILABLE, Reason.DRAINING, message, is_retryable=True)
