"""Reading the events of one group, as many as somebody waits for.

A consumer of this sidecar's own, that the server forgets with us: it takes nothing away from anybody. What is pulled
and was begun with by another sidecar meanwhile is passed over. One pull is under way at a time, which stays until what
it asks for has come. None asks to be answered at once: of a stream from which something was removed meanwhile, NATS 2.9
may count more than there is, and never answers that.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshd.engines import nats_server as server
from meshd.engines.bus_nats_listing import BYTES_MAX, STORED_S, consumer
from meshd.engines.bus_nats_message import Found, found
from meshd.engines.nats_consumer import Made, numbers

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.engines.bus_nats_streams import Streams
    from meshd.engines.nats_wire import Message, Wire

PULL_S: Final = 30.0
"""How long a pull stays that nothing comes for."""
FORGOTTEN_S: Final = 300.0
"""After so long without a pull, the server forgets the consumer."""
PULLED_MAX: Final = 256


class Reader:
    """See the module. `came` is called when something came that nobody was waiting for in `fill`."""

    def __init__(self, streams: Streams, topic: str, label: str, came: Callable[[], None]) -> None:
        self.buffer: deque[Found] = deque()
        """What was pulled, in order, and taken by nobody yet."""
        self.expected = 0
        """The last event that is known to be there."""
        self._streams = streams
        self._topic = topic
        self._label = label
        self._came = came
        self._wire: Wire | None = None
        self._consumer = ""
        self._made = 0
        self._sid = 0
        self._inbox = ""
        self._next = 1
        self._cursor = 0
        """The last event that the consumer brought; and up to where all are known that are the group's."""
        self._known = 0
        self._pull = 0
        self._wanted = 0
        """Events that the pull under way has yet to bring; 0 where none is."""
        self._pending = 0
        """How many more the server says that there are."""
        self._moved: asyncio.Future[None] | None = None

    async def fill(self, many: int, position: int, gone_ms: int) -> None:
        """Pull until there are `many` events beyond a position, or no more. Raises StoreError.

        What was kept until `gone_ms` may have been removed since it was read.
        """
        self._let_go(position, gone_ms)
        while not self._is_filled(many, position):
            if self._is_to_begin(position):
                await self._begin(position)
            else:
                await self._move()

    def fill_at_once(self, many: int, position: int, gone_ms: int) -> bool:
        """Do as `fill`, where nothing need be waited for; return False where something must."""
        self._let_go(position, gone_ms)
        return self._is_filled(many, position)

    def _let_go(self, position: int, gone_ms: int) -> None:
        while self.buffer and self.buffer[0].place <= position:
            self.buffer.popleft()
        self._known = max(self._known, position)
        if self.buffer and self.buffer[0].at_ms <= gone_ms:
            self._drop()

    def _is_filled(self, many: int, position: int) -> bool:
        """Say whether there is what is wanted, or no more; ask for what is lacking, where there is a consumer."""
        lacking = many - len(self.buffer)
        if lacking <= 0:
            return True
        if self._is_to_begin(position):
            return False
        if not self._wanted:
            self._ask(min(lacking, PULLED_MAX))
        return self._is_all_known

    def _is_to_begin(self, position: int) -> bool:
        return self._wire is None or not self._wire.is_open or self._is_behind(position)

    @property
    def _is_all_known(self) -> bool:
        return self._known >= self.expected and not self._pending

    def note(self, one: Found, *, is_for: bool) -> None:
        """Take note of an event that this sidecar has published, and that is the next: it need not be read."""
        self._known = one.place
        if is_for:
            self.buffer.append(one)

    def is_next(self, place: int) -> bool:
        """Say whether an event is the first behind those that were read, and can be kept here."""
        return self._wire is not None and self._known == place - 1 and len(self.buffer) < PULLED_MAX

    def is_waiting(self, position: int) -> bool:
        """Say whether all there is beyond a position was read, and what comes is brought."""
        is_all_taken = not self.buffer or self.buffer[-1].place <= position
        return is_all_taken and self._wanted > 0 and self._is_all_known

    def stop(self) -> None:
        """Read no more."""
        if self._wire is not None:
            self._wire.unsubscribe(self._sid)
            if self._wire.is_open and self._consumer:
                self._wire.publish(f"{server.API}CONSUMER.DELETE.{self._streams.events}.{self._consumer}")
        self._wire = None
        self.buffer.clear()

    def _is_behind(self, position: int) -> bool:
        # Reading on brings what others have begun with. A little of it costs less than another consumer.
        return not self.buffer and position - self._cursor > PULLED_MAX

    async def _begin(self, position: int) -> None:
        self.stop()
        wire = self._streams.wire
        self._made += 1
        name = f"{self._label}-{self._made}"
        subject = f"{self._streams.topics}{self._topic}"
        config: dict[str, Any] = {
            **consumer(position + 1, FORGOTTEN_S),
            "name": name,
            "filter_subject": subject,
        }
        stream = self._streams.events
        request = {"stream_name": stream, "config": config}
        made = await self._streams.api(f"CONSUMER.CREATE.{stream}.{name}.{subject}", request, Made, wire=wire)
        if made.error is not None:
            raise self._streams.told(made.error)
        self._consumer, self._cursor, self._known, self._next = name, position, position, 1
        self._wanted, self._pending = 0, made.num_pending
        self._inbox = wire.new_inbox()
        self._sid = wire.subscribe(f"{self._inbox}.*", self._arrived)
        self._wire = wire

    def _ask(self, many: int) -> None:
        assert self._wire is not None
        self._pull += 1
        self._wanted = many
        request = msgspec.json.encode({"batch": many, "max_bytes": BYTES_MAX, "expires": int(PULL_S * 1e9)})
        call = f"{server.API}CONSUMER.MSG.NEXT.{self._streams.events}.{self._consumer}"
        self._wire.publish(call, request, reply=f"{self._inbox}.{self._pull}")

    async def _move(self) -> None:
        """Wait until something has come."""
        self._moved = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(STORED_S):
                await self._moved
        except TimeoutError:
            self.expected, self._pending = self._known, 0  # it has been removed meanwhile
        finally:
            self._moved = None

    def _tell(self) -> None:
        if self._moved is None:
            self._came()
        elif not self._moved.done():
            self._moved.set_result(None)

    def _arrived(self, message: Message) -> None:
        if message.subject.startswith(self._inbox):
            if message.subject.rpartition(".")[2] == str(self._pull) and message.status != 100:
                self._wanted = 0
                # Its time is over, or it has brought as many bytes as it may; or the consumer is gone.
                if message.status != 408 and b"Nats-Pending" not in message.headers:
                    self._drop()
                self._tell()
            return
        told = numbers(message.reply)
        if told is None or told.number != self._next:
            self._drop()  # one is missing: another consumer begins where the last one was taken
            self._tell()
            return
        self._next += 1
        self._cursor = told.sequence
        self._wanted = max(0, self._wanted - 1)
        self._pending = told.pending
        if told.sequence > self._known:
            self._known = told.sequence
            one = found(self._streams.topics, message.subject, message.headers, message.data, told.sequence)
            self.buffer.append(one)
        if self._moved is None or not self._wanted or self._is_all_known:
            self._tell()

    def _drop(self) -> None:
        self.stop()
        self._wanted = 0
