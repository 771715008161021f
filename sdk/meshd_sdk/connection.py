"""A session's stream, held open over broken connections. Imports grpcio and protobuf.

`SessionState` says what goes when. `Connection` moves it: one task writes, one reads, and one around both connects
again, with back-off and full jitter, for as long as the agent is there.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio

from meshd_sdk.backoff import delay_s
from meshd_sdk.channel import REVISION, connect
from meshd_sdk.errors import Failure, MeshError, NoSidecar, ProtocolBroken
from meshd_sdk.messages import seconds
from meshd_sdk.probe import probe
from meshd_sdk.session_state import ACK_EVERY, SessionState
from meshd_sdk.statuses import failure_of_rpc
from meshd_sdk.v1 import session_pb2

if TYPE_CHECKING:
    from meshd_sdk.channel import Opened
    from meshd_sdk.session_state import Frame
    from meshd_sdk.settings import Place
    from meshd_sdk.v1 import discovery_pb2

CLIENT: Final = "meshd-sdk-python/0.1.0"
ACK_S: Final = 0.05
"""After which what was received is acknowledged, where nothing else is sent."""
RESUME_S: Final = 60.0
"""How long a sidecar that does not say keeps a broken session."""
FRAME_BYTES_MAX: Final = 4 * 2**20
GOODBYE_S: Final = 2.0
_NEVER: Final = ("INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "OUT_OF_RANGE")
"""Codes that a resume which ended with one would end with again. ABORTED is none: the Hello of a stream that broke may
be read after the next one's, and then takes the session over for a moment; nor is INTERNAL, which a reset may be."""
log = logging.getLogger("meshd_sdk")


class Connection:
    """See the module. `Session` says what frames mean."""

    def __init__(self, place: Place, agent: discovery_pb2.Agent, *, credit: int) -> None:
        self._place, self._agent, self._window = place, agent, credit
        self.state = SessionState()
        self.era = 0
        """Counts the sessions: what belongs to an earlier one is not answered any more."""
        self.frame_bytes_max = FRAME_BYTES_MAX
        self._resume_s = RESUME_S
        self._owed = 0
        """Deliveries that are done, and whose credit was not given back yet."""
        self._is_ack_due = False
        self._ack_timer: asyncio.TimerHandle | None = None
        self._wake = asyncio.Event()
        self._room: deque[asyncio.Future[None]] = deque()
        self._channel: grpc.aio.Channel | None = None
        self._is_connected = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.is_leaving = False
        self._last_words = ""

    # What a frame means, and what a lost session does: see Session.

    def handle(self, frame: session_pb2.ConnectResponse) -> None:
        """Carry out a frame that is new."""
        raise NotImplementedError

    def begin_anew(self, *, is_first: bool) -> None:
        """A session begins: offer again what an earlier one has lost."""
        raise NotImplementedError

    def lose(self) -> None:
        """The session cannot be resumed any more: end what depends on it."""
        raise NotImplementedError

    @property
    def deliveries_count(self) -> int:
        """How many deliveries are under way."""
        raise NotImplementedError

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is under way in either direction."""
        raise NotImplementedError

    # For Session and Services

    async def begin(self) -> None:
        """Connect for the first time. Raises NoSidecar, Refused or ProtocolBroken."""
        opened = await self._connect()
        self._task = asyncio.create_task(self._stay(opened), name="meshd session")

    async def end(self, reason: str = "") -> None:
        """Say goodbye, and let go. What was offered before is sent first, within two seconds."""
        if self._task is None:
            return
        self.is_leaving = True
        if self._is_connected.is_set():
            self.offer(session_pb2.ConnectRequest(goodbye=session_pb2.Goodbye(reason=reason)))
            await asyncio.wait({self._task}, timeout=GOODBYE_S)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        for turn in self._room:
            if not turn.done():
                turn.set_result(None)  # whoever waits for it finds that the agent has left
        self._room.clear()
        await self._close()

    async def channel(self) -> grpc.aio.Channel:
        """Return the channel that is open, or wait for one."""
        while self._channel is None or not self._is_connected.is_set():
            if self.is_leaving:
                raise NoSidecar("the agent has left its session")
            await self._is_connected.wait()
        return self._channel

    def offer(self, frame: session_pb2.ConnectRequest, *, is_work: bool = False) -> None:
        """Send a frame as soon as may be."""
        self.state.offer(frame, frame.ByteSize(), is_work=is_work)
        self._wake.set()
        if self._room:
            self.give_room()

    async def room(self) -> None:
        """Wait until more may be offered: first come, first served."""
        if not self.state.is_full and not self._room:
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._room.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it was this one's turn: the next in line gets it
                self.give_room()
            raise

    def give_back(self) -> None:
        """A delivery is done: another may come."""
        self._owed += 1
        self._wake.set()

    def given_credit(self, frames: int) -> None:
        """More work may be sent."""
        self.state.given(frames)
        self._wake.set()

    def hold(self) -> None:
        """The sidecar is about to end: send no more work, and connect again when all is quiet."""
        self.state.is_held = True
        self._wake.set()

    # The stream

    async def _stay(self, opened: Opened) -> None:
        """Serve streams, one after the other, until the agent leaves."""
        while True:
            why = await self._serve(opened)
            if self.is_leaving:
                return
            log.info("the connection to meshd at %s ended (%s)", self._place.grpc_target, why)
            opened = await self._again()

    async def _again(self) -> Opened:
        """Connect again, however long it takes; after the resume window the session is given up."""
        attempt, away_s, is_lost = 0, time.monotonic(), False
        while True:
            await asyncio.sleep(delay_s(attempt, random.random()))  # noqa: S311 - jitter is no secret
            attempt += 1
            try:
                return await self._connect()
            except MeshError as error:
                self._say(str(error))
            except Exception as error:  # noqa: BLE001 - whatever it is, the agent must come back
                self._say(repr(error))
            if not is_lost and time.monotonic() - away_s > self._resume_s:
                is_lost = True
                self.state.session = ""
                self.lose()

    def _say(self, words: str) -> None:
        """Log why there is no connection, once for each reason."""
        if words != self._last_words:
            self._last_words = words
            log.warning("no connection to meshd: %s; trying on", words)

    async def _connect(self) -> Opened:
        await probe(self._place)
        state = self.state
        # What is said here is what there is room for now: it stands for all credit that was given back before.
        self._owed = 0
        hello = session_pb2.Hello(
            revision=REVISION,
            agent=self._agent,
            session=state.session,
            received=state.received_seq if state.session else 0,
            credit=max(0, self._window - self.deliveries_count),
            client=CLIENT,
        )
        try:
            opened = await connect(self._place, hello)
        except Failure as error:
            if state.session and not error.is_retryable and error.code in _NEVER:
                state.session = ""  # what it cannot resume it may still begin
            raise
        try:
            self._welcome(opened.welcome)
        except MeshError:
            state.session = ""  # the two sides do not agree on it any more
            await opened.channel.close()
            raise
        if self._last_words and opened.welcome.is_resumed:  # whoever has read that it was gone reads that it is back
            log.warning("connected to meshd again, and the session goes on")
        self._channel, self._last_words = opened.channel, ""
        self._is_connected.set()
        self._wake.set()
        self.give_room()
        return opened

    def _welcome(self, welcome: session_pb2.Welcome) -> None:
        """Take up what Welcome says. Raises ProtocolBroken."""
        if not welcome.session:
            raise ProtocolBroken("Welcome names no session")
        self.frame_bytes_max = welcome.frame_bytes_max or FRAME_BYTES_MAX
        if welcome.HasField("resume_window"):
            self._resume_s = seconds(welcome.resume_window)
        for notice in welcome.notices:
            log.warning("meshd: %s", notice)
        if welcome.is_resumed and welcome.session == self.state.session:
            self.state.resumed(welcome.received, welcome.credit)
            return
        self.era += 1
        self.begin_anew(is_first=self.era == 1)
        self.state.begun(welcome.session, welcome.credit)

    async def _serve(self, opened: Opened) -> str:
        """Move frames until the stream ends; return why it did."""
        tasks = [asyncio.create_task(self._read(opened.stream)), asyncio.create_task(self._write(opened.stream))]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            # A write fails because the stream has ended; why it has, the reader knows.
            if tasks[0] not in done:
                await asyncio.wait(tasks[:1], timeout=GOODBYE_S)
            return await self._reason(opened.stream, tasks)
        finally:
            for task in tasks:
                task.cancel()
            self._is_connected.clear()
            self.state.broken()
            await asyncio.gather(*tasks, return_exceptions=True)
            await opened.channel.close()

    async def _reason(self, stream: Any, tasks: list[asyncio.Task[None]]) -> str:
        for task in tasks:
            if task.done() and not task.cancelled() and isinstance(error := task.exception(), ProtocolBroken):
                log.warning("the session with meshd is connected anew: %s", error)
                return str(error)
        for task in tasks:
            if task.done() and not task.cancelled() and isinstance(error := task.exception(), grpc.aio.AioRpcError):
                failure = failure_of_rpc(error)
                if failure.reason or error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                    log.warning("meshd ended the stream: %s", failure)
                return f"{failure.code}: {failure}"
        for task in tasks:
            if task.done() and not task.cancelled() and (fault := task.exception()) is not None:
                if not isinstance(fault, asyncio.InvalidStateError):
                    log.error("the session's stream ended by a fault of the SDK's", exc_info=fault)
                return repr(fault)
        return "its end"

    async def _read(self, stream: Any) -> None:
        state = self.state
        while True:
            frame = await stream.read()
            if frame is grpc.aio.EOF:
                return
            if state.received(frame.seq, frame.ack):
                self.handle(frame)
            if frame.seq:
                self._plan_ack()
            if state.is_held or self.is_leaving:
                self._wake.set()
            if self._room:
                self.give_room()

    async def _write(self, stream: Any) -> None:
        """Write until the session is left, or is quiet and held: then this side of the stream is closed."""
        while True:
            self._wake.clear()
            while (request := self._next()) is not None:
                await stream.write(request)
            if (self.is_leaving and self.state.is_idle) or (self.state.is_held and self.is_quiet):
                await stream.done_writing()
                return
            await self._wake.wait()

    def _next(self) -> session_pb2.ConnectRequest | None:
        state = self.state
        frame: Frame | None = None
        # Credit goes out in one frame for many deliveries, where nothing else does or half of it is out.
        if self._owed * 2 < self._window:
            frame = state.take()
        if frame is None and self._owed:
            credit, self._owed = session_pb2.Credit(frames=self._owed), 0
            state.acked = state.received_seq
            return session_pb2.ConnectRequest(ack=state.acked, credit=credit)
        frame = frame or state.take_ack(is_due=self._is_ack_due)
        if frame is None:
            return None
        self._is_ack_due = False
        if frame.body is None:
            return session_pb2.ConnectRequest(ack=frame.ack)
        request: session_pb2.ConnectRequest = frame.body
        request.seq, request.ack = frame.seq, frame.ack
        return request

    def _plan_ack(self) -> None:
        if self._ack_timer is None:
            self._ack_timer = asyncio.get_running_loop().call_later(ACK_S, self._ack)
        if self.state.received_seq - self.state.acked >= ACK_EVERY:
            self._wake.set()

    def _ack(self) -> None:
        self._ack_timer = None
        self._is_ack_due = self.state.received_seq > self.state.acked
        if self._is_ack_due or self.is_leaving:
            self._wake.set()

    def give_room(self) -> None:
        while self._room and not self.state.is_full:
            turn = self._room.popleft()
            if not turn.done():
                turn.set_result(None)
                return  # each offers one frame, and then the next may look

    async def _close(self) -> None:
        if self._ack_timer is not None:
            self._ack_timer.cancel()
        if self._channel is not None:
            await self._channel.close()
            self._channel = None
