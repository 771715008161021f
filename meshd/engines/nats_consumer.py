"""A consumer that pushes: what a stream holds of one subject, and what comes, in order, for as long as we listen.

The server forgets it with us. Its messages are numbered, so a missing one is seen; where the server has been silent for
two of its heartbeats, `wrong` is called, and the connection is made anew.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from meshd.engines import nats_server as server
from meshd.engines.link import Look
from meshd.engines.port import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.engines.nats_wire import Message, Wire

HEARTBEAT_S: Final = 5.0
SILENT_S: Final = HEARTBEAT_S + 1.0
"""Between two looks whether anything has come: after two heartbeats that did not, at the latest, it is seen."""
SLACK_S: Final = 1.0
"""Of such a look (`meshd.engines.link.Look`)."""


class Numbers(NamedTuple):
    """What JetStream says of a message in its reply's subject."""

    sequence: int
    """In its stream."""
    number: int
    """In its consumer; from 1, without a gap."""
    time_ns: int
    """When the server took it, in Unix nanoseconds."""
    pending: int
    """How many more there are for the consumer."""


class Made(msgspec.Struct):
    """The answer to CONSUMER.CREATE."""

    name: str = ""
    created: str = ""
    num_pending: int = 0
    error: server.ApiError | None = None


def numbers(reply: str) -> Numbers | None:
    """Read them; None for what JetStream did not send.

    $JS.ACK.STREAM.CONSUMER.DELIVERED.STREAM_SEQUENCE.CONSUMER_SEQUENCE.TIME.PENDING; later servers put two more fields
    behind $JS.ACK, and one behind all.
    """
    fields = reply.split(".")
    if len(fields) == 9:
        sequence, number, time_ns, pending = fields[5:]
    elif len(fields) >= 11:
        sequence, number, time_ns, pending = fields[7:11]
    else:
        return None
    try:
        return Numbers(int(sequence), int(number), int(time_ns), int(pending))
    except ValueError:
        return None


class Consumer:
    """See the module."""

    def __init__(
        self,
        wire: Wire,
        stream: str,
        config: dict[str, Any],
        heard: Callable[[Message, Numbers | None], None],
        wrong: Callable[[Wire, str], None],
    ) -> None:
        """`config` says which messages; `heard` gets no numbers where one before it is missing."""
        self.wire = wire
        self._stream = stream
        self._config = config
        self._heard = heard
        self._wrong = wrong
        self._sid = 0
        self._next = 1
        self._silence: Look | None = None
        self._is_heard = False
        self.is_ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def start(self, where: str) -> Made:
        """Listen; from the return of this on nothing is missed. Raises StoreError."""
        inbox = self.wire.new_inbox()
        self._sid = self.wire.subscribe(inbox, self._arrived)
        config: dict[str, Any] = {
            "deliver_subject": inbox,
            "ack_policy": "none",
            "max_deliver": 1,
            "flow_control": True,
            "idle_heartbeat": int(HEARTBEAT_S * 1e9),
            "num_replicas": 1,
            "mem_storage": True,
        }
        request = msgspec.json.encode({"stream_name": self._stream, "config": config | self._config})
        try:
            message = await self.wire.ask(f"{server.API}CONSUMER.CREATE.{self._stream}", request)
            made = server.decoded(message, Made, where)
            if made.error is not None:
                raise server.told(where, made.error)
        except BaseException as error:
            if not self.is_ready.done():
                self.is_ready.set_exception(error if isinstance(error, StoreError) else StoreError("not listened to"))
                self.is_ready.exception()
            raise
        self._wait()
        self.is_ready.set_result(None)
        return made

    def stop(self) -> None:
        if self._silence is not None:
            self._silence.cancel()
        self.wire.unsubscribe(self._sid)

    def _wait(self) -> None:
        self._is_heard = False
        self._silence = Look(SILENT_S, SLACK_S, self._look)

    def _look(self) -> None:
        # One timer for all that comes: it is silent where nothing has come between two looks.
        if self._is_heard:
            self._wait()
        else:
            self._wrong(self.wire, f"what is listened to in {self._stream} has fallen silent")

    def _arrived(self, message: Message) -> None:
        self._is_heard = True
        if message.status == 100:  # a heartbeat, or flow control, which is answered
            stalled = message.headers.partition(b"Nats-Consumer-Stalled: ")[2].partition(b"\r\n")[0].decode()
            if to := stalled or message.reply:
                self.wire.publish(to)
            return
        found = numbers(message.reply)
        is_next = found is not None and found.number == self._next
        self._next = found.number + 1 if found is not None else self._next
        self._heard(message, found if is_next else None)
