"""Publishing to a bus on NATS: all of what is published together or, as far as that is in our hands, none of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from meshd.engines.bus_event import sequence_text
from meshd.engines.bus_nats_message import written
from meshd.engines.bus_nats_trim import Trimming
from meshd.engines.bus_port import EventMalformed, Published
from meshd.engines.bus_shelf import full
from meshd.engines.port import StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshd.engines.bus_port import Event
    from meshd.engines.nats_server import Ack


class Publishing(Trimming):
    """See the module."""

    def check(self) -> None:
        """Raises StoreClosed."""
        raise NotImplementedError

    def expect(self, event: Event, place: int) -> None:
        """Take note that an event was kept, and wake who waits for it."""
        raise NotImplementedError

    async def keep(self, events: Sequence[Event]) -> list[Published]:
        self.check()
        now_ms = self.now_ms()
        suffixes = [""] * len(events)
        if self.streams.knows_longer:
            suffixes = await asyncio.gather(*map(self._suffix, events))
        messages = [written(event, now_ms, suffix) for event, suffix in zip(events, suffixes, strict=True)]
        for event, (headers, data) in zip(events, messages, strict=True):
            room = self.streams.room(headers) - len(event.topic)
            if len(data) > room:
                raise EventMalformed(
                    "data",
                    f"with the other attributes is {len(data)} bytes, and {self.streams.where} takes {room} "
                    "(its max_payload): keep it elsewhere and say where in data_ref",
                )
        await self._make_room(events, [len(headers) + len(data) for headers, data in messages])
        stored = await self._stored(events, messages)
        return [
            Published(event.id, sequence_text(ack.seq), ack.duplicate)
            for event, ack in zip(events, stored, strict=True)
        ]

    async def _suffix(self, event: Event) -> str:
        """Return what sets an event apart from one whose id the server still knows, and the bus does not."""
        suffix = ""
        while place := await self._known_place(event, suffix):
            if not await self.is_forgotten(place):
                break
            suffix = f".{place}"
        return suffix

    async def _stored(self, events: Sequence[Event], messages: list[tuple[bytes, bytes]]) -> list[Ack]:
        """Write all, or, as far as that is in our hands, none."""
        streams = self.streams
        if len(events) == 1:
            return [await self._stored_one(events[0], *messages[0])]
        wire = streams.wire
        asked = [
            wire.ask(streams.topics + event.topic, data, headers)
            for event, (headers, data) in zip(events, messages, strict=True)
        ]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        acks: list[Ack] = []
        failed: BaseException | None = None
        for answer in answers:
            try:
                if isinstance(answer, BaseException):
                    raise answer
                acks.append(streams.taken(wire, streams.events, answer))
            except StoreError as error:
                failed = failed or error
        if failed is None:
            for event, ack in zip(events, acks, strict=True):
                if not ack.duplicate:
                    self.expect(event, ack.seq)
        else:
            for ack in acks:
                if not ack.duplicate:
                    streams.forget(streams.events, ack.seq)
            raise failed
        return acks

    async def _stored_one(self, event: Event, headers: bytes, data: bytes) -> Ack:
        """Write one. Who waits for it here is served in the moment in which the server has it."""
        stored: asyncio.Future[Ack] = asyncio.get_running_loop().create_future()

        def told(ack: Ack | StoreError) -> None:
            if not isinstance(ack, StoreError) and not ack.duplicate:
                self.expect(event, ack.seq)
            if stored.done():
                return  # nobody waits for it any more
            if isinstance(ack, StoreError):
                stored.set_exception(ack)
            else:
                stored.set_result(ack)

        self.streams.put_at_once(self.streams.events, self.streams.topics + event.topic, data, headers, None, told)
        return await stored

    async def _make_room(self, events: Sequence[Event], sizes: list[int]) -> None:
        """Let go of what nobody needs, where there is no room. Raises StoreFull where that is not enough."""
        if not await self.is_over(sum(sizes)):
            return
        # What is kept already needs no room.
        new = [size for event, size in zip(events, sizes, strict=True) if not await self._known_place(event)]
        if not new:
            return
        over = await self.over(sum(new))
        if over <= 0:
            return
        await self.free(over)
        # Looked at anew: others may have made room meanwhile, or used it up.
        if await self.over(sum(new)) <= 0:
            return
        groups = await self.all_groups()
        behind = min(groups, key=lambda group: group.rows.position, default=None)
        raise full(self.terms, f"{behind.rows.group} ({behind.rows.topic})" if behind else "")

    async def _known_place(self, event: Event, suffix: str = "") -> int:
        """Return where an event is kept already; 0 where the server does not know it."""
        headers, _ = written(event, 0, suffix)
        # The server looks for a duplicate first, then at this number, which no subject's last message ever has: so it
        # says what it knows, and keeps nothing.
        subject = self.streams.topics + event.topic
        return (await self.streams.put(self.streams.events, subject, b"", headers, expected=2**62)).seq
