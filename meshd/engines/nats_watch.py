"""Hearing of changes in a bucket: an ephemeral consumer per watched space, which the server forgets with us.

Its messages are numbered. Where one is missing, everybody is told to look again: what was missed need not be fetched,
since it is only news of a change. Where the server has been silent for two of its heartbeats, the connection is made
anew and the consumers with it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshd.engines import nats_server as server
from meshd.engines.nats_keys import decoded, encoded
from meshd.engines.port import StoreError
from meshd.engines.watchers import MISSED

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.engines.nats_wire import Message, Wire
    from meshd.engines.watchers import Watchers

HEARTBEAT_S: Final = 5.0


class _Made(msgspec.Struct):
    error: server.ApiError | None = None


class Ear:
    """Listens in the spaces that somebody watches."""

    def __init__(self, bucket: str, watchers: Watchers, wrong: Callable[[Wire, str], None]) -> None:
        """`wrong` is called where a consumer has failed; the connection is then made anew, and this with it."""
        self._bucket = bucket
        self._watchers = watchers
        self._wrong = wrong
        self._spaces: dict[str, _Consumer] = {}

    async def listen(self, wire: Wire, space: str) -> None:
        """Hear of changes in a space over a connection, from the return of this on. Raises StoreError."""
        before = self._spaces.get(space)
        if before is not None and before.wire is wire:
            await before.is_ready
            return
        consumer = self._spaces[space] = _Consumer(wire, self._bucket, space, self._heard, self._wrong)
        try:
            await consumer.start()
        except BaseException:
            consumer.stop()
            if self._spaces.get(space) is consumer:
                del self._spaces[space]
            raise
        finally:
            if before is not None:
                before.stop()

    def leave(self, space: str) -> None:
        """Listen in a space no longer."""
        if (consumer := self._spaces.pop(space, None)) is not None:
            consumer.stop()

    def close(self) -> None:
        for space in list(self._spaces):
            self.leave(space)

    def _heard(self, space: str, key: str) -> None:
        self._watchers.tell(space, (key,))


class _Consumer:
    def __init__(
        self,
        wire: Wire,
        bucket: str,
        space: str,
        heard: Callable[[str, str], None],
        wrong: Callable[[Wire, str], None],
    ) -> None:
        self.wire = wire
        self._bucket = bucket
        self._space = space
        self._prefix = f"$KV.{bucket}.{encoded(space)}."
        self._heard = heard
        self._wrong = wrong
        self._sid = 0
        self._inbox = ""
        self._next = 1
        self._silence: asyncio.TimerHandle | None = None
        self.is_ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        self._inbox = self.wire.new_inbox()
        self._sid = self.wire.subscribe(self._inbox, self._arrived)
        config: dict[str, Any] = {
            "deliver_subject": self._inbox,
            "deliver_policy": "new",
            "ack_policy": "none",
            "max_deliver": 1,
            "headers_only": True,
            "filter_subject": f"{self._prefix}>",
            "flow_control": True,
            "idle_heartbeat": int(HEARTBEAT_S * 1e9),
            "num_replicas": 1,
            "mem_storage": True,
        }
        stream = f"KV_{self._bucket}"
        request = msgspec.json.encode({"stream_name": stream, "config": config})
        try:
            message = await self.wire.ask(f"{server.API}CONSUMER.CREATE.{stream}", request)
            made = server.decoded(message, _Made, "the nats store")
            if made.error is not None:
                raise server.told("the nats store", made.error)
        except BaseException as error:
            if not self.is_ready.done():
                self.is_ready.set_exception(error if isinstance(error, StoreError) else StoreError("not watched"))
                self.is_ready.exception()
            raise
        self._wait()
        self.is_ready.set_result(None)

    def stop(self) -> None:
        if self._silence is not None:
            self._silence.cancel()
        self.wire.unsubscribe(self._sid)

    def _wait(self) -> None:
        if self._silence is not None:
            self._silence.cancel()
        self._silence = asyncio.get_running_loop().call_later(
            2 * HEARTBEAT_S + 1, self._wrong, self.wire, "a watched space has fallen silent"
        )

    def _arrived(self, message: Message) -> None:
        self._wait()
        if message.status == 100:  # a heartbeat, or flow control, which is answered
            stalled = message.headers.partition(b"Nats-Consumer-Stalled: ")[2].partition(b"\r\n")[0].decode()
            if to := stalled or message.reply:
                self.wire.publish(to)
            return
        # $JS.ACK.STREAM.CONSUMER.DELIVERED.STREAM_SEQUENCE.CONSUMER_SEQUENCE.TIME.PENDING; later servers put two
        # more fields behind $JS.ACK.
        fields = message.reply.split(".")
        number = fields[-3] if len(fields) >= 9 else ""
        key = decoded(message.subject.removeprefix(self._prefix))
        if number != str(self._next) or key is None:
            key = MISSED
        self._next = int(number) + 1 if number.isdigit() else self._next
        self._heard(self._space, key)
