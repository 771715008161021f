"""What a bus on Redis does, in steps, each of which is one script (`meshd.engines.bus_shelf.Shelf`)."""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshd.engines.bus_event import sequence_text
from meshd.engines.bus_port import DeadLetter, Event, Position, Published, Verdict
from meshd.engines.bus_redis_look import KEPT, TOPICS
from meshd.engines.bus_redis_scripts import GIVE_BACK, JOIN, KEEP, OPEN, SETTLE, TAKE
from meshd.engines.bus_redis_trim import LETTER, LETTERS, POSITIONS, REDRIVE, TRIM
from meshd.engines.bus_redis_untold import Owed, Untold
from meshd.engines.bus_shelf import (
    Attempt,
    HandedOut,
    Patient,
    Settled,
    Unheard,
    check_place,
    full,
    none_unheard,
    ordinal,
)
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
        self.held: dict[Attempt, bytes] = {}
        """What subscribers of this sidecar have, and as which taker: until its end has been said, or is owed."""


class RedisShelf(Patient):
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
        self.untold = Untold()
        self.unheard = none_unheard()
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
                self.untold.clear()
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
        await self.untold.say(self)

    def held(self, group: int) -> dict[Attempt, bytes]:
        """Return what subscribers of this sidecar have, and as which taker."""
        return self._groups[group].held

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
            self._log(group, buried)
            deliveries, damaged = [], []
            for place, number, is_marked, *parts in taken:
                attempt = Attempt(int(place), int(number))
                event = self.event(attempt.place, *parts)
                if event is None:
                    damaged.append(attempt)
                else:
                    deliveries.append(attempt.handed(event, is_marked=is_marked == b"1"))
            if damaged:
                await self.settle_all(group, [(attempt, "damaged", 0, "") for attempt in damaged])
        except StoreError:
            self.untold.doubtful.append((group, taker))  # what was begun has been seen by nobody
            raise
        of.held.update((Attempt.of(one), taker) for one in deliveries)
        due_s = None if due_ms < 0 else self._clock.now_s() + due_ms / 1000
        return HandedOut(deliveries, due_s, is_more == 1 or bool(damaged))

    async def settle(
        self, group: int, attempt: Attempt, verdict: Verdict, retry_after_s: float | None, reason: str
    ) -> Settled:
        wait_s = self._terms.retry_s(ordinal(attempt.number)) if retry_after_s is None else retry_after_s
        wait_ms = round(wait_s * 1000)
        held = self._groups[group].held
        try:
            (settled,) = await self.settle_all(group, [(attempt, verdict.value, wait_ms, reason)])
        except StoreError:
            if self.untold.owe(Owed(group, attempt, verdict, wait_ms, reason)):
                held.pop(attempt, None)
            raise
        held.pop(attempt, None)
        return settled

    async def settle_all(
        self, group: int, verdicts: list[tuple[Attempt, str, int, str]], *, taker: bytes = b""
    ) -> list[Settled]:
        flat = [part for attempt, *rest in verdicts for part in (*attempt, *rest)]
        *settled, buried = await self.ask(
            SETTLE, self._terms.attempts_max, self._groups[group].number, *flat, taker=taker, handle=group
        )
        self._log(group, buried)
        now_s = self._clock.now_s()
        return [
            Settled(counted == 1, freed == 1, None if due_ms < 0 else now_s + due_ms / 1000)
            for counted, freed, due_ms in settled
        ]

    async def give_back(self, group: int, attempts: Sequence[Attempt], *, is_unseen: bool) -> None:
        # Not held from now on: the number of what is unseen is also that of the next attempt, which may be here soon.
        held = self._groups[group].held
        several = [(one, held.pop(one)) for one in attempts if one in held]
        if several:  # what is not held is settled, or will be said once the server is back
            how = "unseen" if is_unseen else "lost"
            try:
                await self.ask_back(group, how, several)
            except StoreError:
                self.untold.keep(group, how, several)
                raise

    async def ask_back(
        self, group: int, how: str, several: Sequence[tuple[Attempt, bytes]], *, taker: bytes = b""
    ) -> None:
        """Give attempts back, each with who took it: see the script. Raises StoreError."""
        flat = [part for attempt, its_taker in several for part in (*attempt, its_taker)]
        arguments = (self._terms.attempts_max, self._groups[group].number, how, *flat)
        self._log(group, await self.ask(GIVE_BACK, *arguments, taker=taker, handle=group))

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
        return DeadLetter(id, group.decode(), pattern.decode(), event, ordinal(int(attempts)), text, int(died) / 1000)

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
        if self.untold.is_any:  # also where it was not the connection that failed
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
        try:
            await self.mend()
            for handle, group in enumerate(self._groups):
                await self.give_back(handle, sorted(group.held), is_unseen=False)
        except StoreError as error:
            log.warning("what was under way is handed out again once its time is over: %s", error)
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

    def _log(self, handle: int, buried: list[tuple[bytes, bytes, int]]) -> None:
        for place, letter, is_unheard in buried:
            group = self._groups[handle]
            if is_unheard:
                self.unheard.append(Unheard(group.name, int(letter)))
            log.warning("event %s is a dead letter of the group %s (%s)", place.decode(), group.name, group.topic)


def lua_pattern(topic: str) -> str:
    """Return what a topic, a valid one, is as a pattern of Lua."""
    words = {"*": "[^.]+", ">": ".+"}
    return "^" + "%.".join(words.get(word, word.replace("-", "%-")) for word in topic.split(".")) + "$"
