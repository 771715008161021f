"""What a bus on Redis does, in steps, each of which is one script (`meshd.engines.bus_shelf.Shelf`)."""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshd.engines.bus_event import sequence_text
from meshd.engines.bus_port import DeadLetter, Delivery, Event, Position, Published, Verdict
from meshd.engines.bus_redis_look import KEPT, TOPICS
from meshd.engines.bus_redis_scripts import GIVE_BACK, JOIN, KEEP, OPEN, SETTLE, TAKE
from meshd.engines.bus_redis_trim import LETTER, LETTERS, POSITIONS, REDRIVE, TRIM
from meshd.engines.bus_shelf import Attempt, HandedOut, Settled, check_place, full
from meshd.engines.port import StoreCorrupt, StoreError, StoreFull, StoreNewer, StoreUnable
from meshd.engines.redis_server import words_of
from meshd.engines.redis_wire import ReplyError, Wire

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from meshd.engines.bus_terms import Clock, Terms
    from meshd.engines.redis_asking import Asking

log = logging.getLogger("meshd")

FORMAT: Final = 1
BATCH_BYTES_MAX: Final = 64 * 2**20
"""What is published together: it is one script, and nobody else is served while that runs."""
BATCH_EVENTS_MAX: Final = 10_000
OWED_MAX: Final = 10_000
"""Verdicts that are said again once the server is back."""
SAID_MAX: Final = 256
"""Of those, in one script."""

KINDS: Final = {"meta": "hash", "events": "stream", "known": "hash", "ids": "zset", "groups": "hash",
                "positions": "zset", "died": "zset", "backs": "zset"}  # fmt: skip
GROUP_KINDS: Final = {"": "hash", ":pending": "hash", ":ready": "zset", ":out": "zset", ":wait": "zset",
                      ":heads": "hash", ":behind": "zset", ":dead": "zset"}  # fmt: skip
_SCRIPTS: Final = (OPEN, KEEP, JOIN, TAKE, SETTLE, GIVE_BACK, LETTERS, LETTER, REDRIVE, POSITIONS, TRIM, KEPT, TOPICS)


class _Group:
    """A group that was joined. Its handle here stays the same where the server's number does not."""

    __slots__ = ("held", "name", "number", "topic")

    def __init__(self, name: str, topic: str, number: int) -> None:
        self.name = name
        self.topic = topic
        self.number = number
        self.held: set[Attempt] = set()
        """What is out with this sidecar."""


class RedisShelf:
    """See the module. `taker` is who took what is out, anew with each connection."""

    def __init__(
        self,
        asking: Callable[[Sequence[str]], Asking],
        prefix: str,
        database: int,
        terms: Terms,
        clock: Clock,
        *,
        is_time_own: bool,
    ) -> None:
        """`asking` makes what asks, of the scripts; with `is_time_own`, the clock's time takes the server's place."""
        self.asking = asking(_SCRIPTS)
        self.taker = b""
        self.is_crowded = False
        # Channels are one namespace over all databases of a server.
        self.channel = f"{prefix}:wake:{database}".encode()
        self._where = self.asking.where
        self._terms = terms
        self._clock = clock
        self._is_time_own = is_time_own
        self._prefix = prefix
        self._names = (f"{prefix}:meta".encode(),)
        self._era = b""
        self._groups: list[_Group] = []
        """By handle."""
        self._owed: list[tuple[int, Attempt, Verdict]] = []
        """What could not be said; it is said again once the server is back."""
        self._doubtful: list[tuple[int, bytes]] = []
        """Of which groups, and as which taker, something may be out of which the reply was lost."""
        self._swept = "-"
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(Event).decode

    async def begin(self, wire: Wire, run: str) -> None:
        """Make the bus, or find it, over a new connection to a `run` of the server. Raises StoreError."""
        await self.asking.load(wire)
        try:
            era, format_ = await wire.ask("EVAL", OPEN, 1, *self._names, secrets.token_hex(6), run)
            if int(format_) > FORMAT:
                raise StoreNewer(f"{self._where} was written by a newer meshd (format {int(format_)})")
            self.taker = secrets.token_hex(6).encode()
            is_empty = self._era not in (b"", era)
            if is_empty:
                log.error("%s was emptied or replaced: the events that it held are gone", self._where)
                self._owed.clear()
                self._doubtful.clear()
            await self._join_anew(wire, era, is_empty)
        except ReplyError as error:
            raise self._told(error) from None
        self._era = era

    async def _join_anew(self, wire: Wire, era: bytes, is_empty: bool) -> None:
        """Find the groups by their names: a server that forgot one may have given its number to another."""
        for group in self._groups:
            if is_empty:
                group.held.clear()
            join = self._join(group.name, group.topic, "oldest" if is_empty else "now")
            number = await wire.ask("EVAL", JOIN, 1, *self._names, era, self._time(), self.taker, self.channel, *join)
            group.number = int(number) if number != b"full" else -1

    async def mend(self) -> None:
        """After a connection was lost and made anew: say what could not be said, and take back what nobody got."""
        while self._owed:
            handle = self._owed[0][0]
            some = [one for one in self._owed if one[0] == handle][:SAID_MAX]
            await self._settle(handle, [(attempt, verdict.value, 0, "") for _, attempt, verdict in some])
            said = set(some)
            self._owed = [one for one in self._owed if one not in said]
        # What this connection has out may be on its way here.
        doubtful = list({one for one in self._doubtful if one[1] != self.taker})
        self._doubtful = [one for one in self._doubtful if one[1] == self.taker]
        while doubtful:
            handle, taker = doubtful[-1]
            held = [number for attempt in self._groups[handle].held for number in attempt]
            arguments = (self._terms.attempts_max, self._groups[handle].number, "others", *held)
            try:
                self._log(handle, await self.ask(GIVE_BACK, *arguments, taker=taker, handle=handle))
            except StoreError:
                self._doubtful += doubtful
                raise
            doubtful.pop()

    def handle_of(self, number: bytes) -> int:
        """Return what a group is called here that has this number in the server; -1 where it is not joined."""
        for handle, group in enumerate(self._groups):
            if b"%d" % group.number == number:
                return handle
        return -1

    # The shelf.

    async def keep(self, events: Sequence[Event]) -> list[Published]:
        if not events:
            return []
        packed: list[bytes | str] = []
        for event in events:
            rest = self._encode(msgspec.structs.replace(event, topic="", partition_key="", source="", id="", data=b""))
            packed += (event.topic, event.partition_key, event.source, event.id, event.data, rest)
        size = sum(map(len, packed))
        if size > BATCH_BYTES_MAX or len(events) > BATCH_EVENTS_MAX:
            raise StoreUnable(
                f"{len(events)} events of {size} bytes are too many to be published together: "
                f"at most {BATCH_EVENTS_MAX}, of {BATCH_BYTES_MAX} bytes"
            )
        try:
            reply = await self.ask(KEEP, self._terms.keep_bytes, *packed)
        except StoreFull:
            # The server's own limit comes before ours. What nobody needs is let go, and if that was enough it goes in.
            self.is_crowded = True
            await self._trim(2 * size + 2**20)
            # Not as this sidecar: who asked already in vain is to hear of it, too.
            reply = await self.ask(KEEP, self._terms.keep_bytes, *packed, taker=b"-")
        if reply[0] == b"full":
            self.is_crowded = True
            raise full(self._terms, reply[1].decode())
        self.is_crowded = reply[0] == 1
        return [
            Published(event.id, sequence_text(place), is_known == 1)
            for event, place, is_known in zip(events, reply[1::2], reply[2::2], strict=True)
        ]

    async def join(self, group: str, topic: str, *, starts_at_oldest: bool) -> int:
        return await self.join_at(group, topic, "oldest" if starts_at_oldest else "now")

    async def join_at(self, group: str, topic: str, begins: str, value: int = 0) -> int:
        """Join; a new group begins `now`, with the `oldest`, `at` milliseconds or `after` a place. Raises StartGone."""
        reply = await self.ask(JOIN, *self._join(group, topic, begins, value))
        if isinstance(reply, list):
            check_place(value, int(reply[0]), is_whole=reply[1] == 1)
        if reply == b"full":
            raise StoreFull(f"the bus remembers {self._terms.groups_max} groups, and takes no more")
        for handle, one in enumerate(self._groups):
            if (one.name, one.topic) == (group, topic):
                return handle
        self._groups.append(_Group(group, topic, int(reply)))
        return len(self._groups) - 1

    def _join(self, group: str, topic: str, begins: str, value: int = 0) -> tuple[str | int, ...]:
        return (group, topic, lua_pattern(topic), self._terms.groups_max, begins, value)

    async def hand_out(self, group: int, handling_s: Sequence[float]) -> HandedOut:
        self.asking.link.current()  # where there is none nothing is sent, and nothing is in doubt
        of, taker = self._groups[group], self.taker
        times = [round(one * 1000) for one in handling_s]
        try:
            is_more, due_ms, taken, buried = await self.ask(
                TAKE, self._terms.attempts_max, of.number, *times, handle=group
            )
        except StoreError:
            self._doubtful.append((group, taker))
            raise
        self._log(group, buried)
        deliveries, damaged = [], []
        for place, number, is_marked, *parts in taken:
            attempt = Attempt(int(place), int(number))
            event = self.event(attempt.place, *parts)
            if event is None:
                damaged.append(attempt)
            else:
                of.held.add(attempt)
                deliveries.append(Delivery(event, attempt.number, is_marked == b"1", attempt.place))
        if damaged:
            await self._settle(group, [(attempt, "damaged", 0, "") for attempt in damaged])
        due_s = None if due_ms < 0 else self._clock.now_s() + due_ms / 1000
        return HandedOut(deliveries, due_s, is_more == 1 or bool(damaged))

    async def settle(
        self, group: int, attempt: Attempt, verdict: Verdict, retry_after_s: float | None, reason: str
    ) -> Settled:
        wait_s = self._terms.retry_s(attempt.number) if retry_after_s is None else retry_after_s
        self._groups[group].held.discard(attempt)
        try:
            (settled,) = await self._settle(group, [(attempt, verdict.value, round(wait_s * 1000), reason)])
        except StoreError:
            if verdict is not Verdict.RETRY and len(self._owed) < OWED_MAX:
                self._owed.append((group, attempt, verdict))
            raise
        return settled

    async def _settle(self, group: int, verdicts: list[tuple[Attempt, str, int, str]]) -> list[Settled]:
        flat = [part for attempt, *rest in verdicts for part in (*attempt, *rest)]
        *settled, buried = await self.ask(
            SETTLE, self._terms.attempts_max, self._groups[group].number, *flat, handle=group
        )
        self._log(group, buried)
        now_s = self._clock.now_s()
        return [
            Settled(counted == 1, freed == 1, None if due_ms < 0 else now_s + due_ms / 1000)
            for counted, freed, due_ms in settled
        ]

    async def give_back(self, group: int, attempts: Sequence[Attempt], *, is_unseen: bool) -> None:
        of = self._groups[group]
        of.held.difference_update(attempts)
        how = "unseen" if is_unseen else "lost"
        pairs = [number for attempt in attempts for number in attempt]
        self._log(group, await self.ask(GIVE_BACK, self._terms.attempts_max, of.number, how, *pairs, handle=group))

    async def dead_letters(self, group: str, after: int, limit: int) -> list[DeadLetter]:
        ids = await self.ask(LETTERS, group, after, limit)
        found = await asyncio.gather(*(self.ask(LETTER, id) for id in ids))
        return [self._letter(id, *reply) for id, reply in zip(ids, found, strict=True) if reply is not None]

    def _letter(self, id: int, *parts: Any) -> DeadLetter:
        group, pattern, place, attempts, reason, died, topic, *rest = parts
        event = self.event(int(place), topic, rest[2], rest[0], rest[1], rest[3], rest[4])
        if event is None:
            event = Event(topic.decode(errors="replace"), "", data=rest[3], sequence=sequence_text(int(place)))
        text = reason.decode(errors="replace")
        return DeadLetter(id, group.decode(), pattern.decode(), event, int(attempts), text, int(died) / 1000)

    async def redrive(self, group: str, ids: Sequence[int]) -> list[int]:
        numbers = await self.ask(REDRIVE, self._terms.attempts_max, group, *ids)
        return [self.handle_of(b"%d" % number) for number in numbers]

    async def positions(self) -> list[Position]:
        reply = await self.ask(POSITIONS)
        return sorted(
            Position(name.decode(), topic.decode(), sequence_text(int(float(position))), *map(int, counts))
            for name, topic, position, *counts in reply
        )

    async def trim(self) -> bool:
        if self._owed:  # also where it was not the connection that failed
            await self.mend()
        is_more, self.is_crowded, _ = await self._trim(0)
        return is_more

    async def _trim(self, wanted: int) -> tuple[bool, bool, str]:
        keep = (self._terms.keep_s, self._terms.repeat_s, self._terms.dead_keep_s)
        times = [round(one * 1000) for one in keep]
        is_more, is_crowded, swept = await self.ask(
            TRIM, self._terms.attempts_max, *times, self._terms.keep_bytes, self._swept, wanted
        )
        self._swept = swept.decode()
        return is_more == 1, is_crowded == 1, self._swept

    async def close(self) -> None:
        for handle, group in enumerate(self._groups):
            if group.held:
                try:
                    await self.give_back(handle, sorted(group.held), is_unseen=False)
                except StoreError as error:
                    log.warning("what was under way is handed out again once its time is over: %s", error)
                    break
        await self.asking.finish()
        await self.asking.link.close()

    # Below.

    def _time(self) -> bytes:
        return b"%d" % round(self._clock.now_s() * 1000) if self._is_time_own else b""

    async def ask(self, script: str, *arguments: Any, taker: bytes = b"", handle: int = -1) -> Any:
        """Run a script; return its reply. Raises StoreError."""
        self.asking.check()
        head = (self._era, self._time(), taker or self.taker, self.channel)
        reply = await self.asking.run(script, self._names, (*head, *arguments))
        if not isinstance(reply, ReplyError):
            return reply
        error = self._told(reply)
        if words_of(reply).startswith("WRONGTYPE"):
            error = await self._foreign_of(handle) or error
        raise error

    def _told(self, reply: ReplyError) -> StoreError:
        text = words_of(reply)
        kind, _, rest = text.partition(" ")
        if kind == "MESHDERA":
            error = StoreCorrupt(f"{self._where} was emptied or replaced while it was used")
            self.asking.dial_anew(error)
            return error
        if kind in ("MESHDFOREIGN", "MESHDGROUP"):
            return self._foreign(rest.split()[0])
        if kind == "OOM":
            return StoreFull(f"{self._where} is full: raise its maxmemory, or remove what is not meshd's")
        return self.asking.told(text)

    def _foreign(self, key: str) -> StoreCorrupt:
        return StoreCorrupt(f"what stands under {key} in {self._where} is not what meshd put there")

    async def _foreign_of(self, handle: int) -> StoreCorrupt | None:
        """Say which key holds something of another kind than meshd's."""
        kinds = {f"{self._prefix}:{name}": kind for name, kind in KINDS.items()}
        for one in self._groups if handle < 0 else (self._groups[handle],):
            group = f"{self._prefix}:group:{one.number}"
            kinds |= {group + name: kind for name, kind in GROUP_KINDS.items()}
        ask = self.asking.link.current().ask
        found = await self.asking.all(*(ask("TYPE", key) for key in kinds))
        for (key, kind), reply in zip(kinds.items(), found, strict=True):
            if reply not in (kind.encode(), b"none"):
                return self._foreign(key)
        return None

    def event(
        self, place: int, topic: bytes, key: bytes, source: bytes, id: bytes, data: bytes, rest: bytes
    ) -> Event | None:
        try:
            return msgspec.structs.replace(
                self._decode(rest),
                topic=topic.decode(),
                partition_key=key.decode(),
                source=source.decode(),
                id=id.decode(),
                data=data,
                sequence=sequence_text(place),
            )
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None

    def _log(self, handle: int, places: list[bytes]) -> None:
        for place in places:
            group = self._groups[handle]
            log.warning("event %s is a dead letter of the group %s (%s)", place.decode(), group.name, group.topic)


def lua_pattern(topic: str) -> str:
    """Return what a topic, a valid one, is as a pattern of Lua."""
    words = {"*": "[^.]+", ">": ".+"}
    return "^" + "%.".join(words.get(word, word.replace("-", "%-")) for word in topic.split(".")) + "$"
